import math

import numpy as np
import pytest
import torch
from torch import nn
from training import DENOISE, noise, recipe, save, sources

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.degradations.jpeg import Jpeg
from mambair_cli.degradations.noise import Noise
from mambair_cli.images.resize import downscale
from mambair_cli.training import validation as module
from mambair_cli.training.validation import Pair, metric_of, restored, score, validation_pairs


def test_validation_pairs_are_centres_that_are_shrunk(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 5)
    image = noise(21, 10)
    save(tmp_path, "a.png", image)
    (pair,), _ = validation_pairs(sources(tmp_path), 2, None, 3, crop=6)
    assert np.array_equal(
        pair.high,
        image[4:16],
        # wide enough by less than a crop: the width stays
    )
    assert np.array_equal(pair.low, downscale(image[4:16], 2))
    (whole,), _ = validation_pairs(sources(tmp_path), 2, None, 3)
    assert np.array_equal(whole.high, image[:20])
    save(tmp_path, "b.png", noise(9, 20))
    (tmp_path / "c.png").touch()
    pairs, skipped = validation_pairs(sources(tmp_path), 2, None, 3)
    assert len(pairs) == 1
    assert "b.png: smaller than 10 pixels" in skipped[0]
    assert "c.png" in skipped[1]
    (tmp_path / "a.png").unlink()
    pairs, skipped = validation_pairs(sources(tmp_path), 2, None, 3)
    assert (pairs, len(skipped)) == ([], 2)


def test_validation_spreads_the_strength_of_what_spoils_images_evenly(tmp_path):
    """Noise of 0 to 40 over four images has 5, 15, 25 and 35, and is the same in every run."""
    for i in range(4):
        save(tmp_path, f"{i}.png", np.full((96, 96, 3), 128, np.uint8))
    files = sources(tmp_path)
    pairs, _ = validation_pairs(files, 1, Noise((0, 40)), 3)
    again, _ = validation_pairs(files, 1, Noise((0, 40)), 3)
    errors = [pair.low * 255 - pair.high for pair in pairs]
    assert [e.std() for e in errors] == pytest.approx([5, 15, 25, 35], rel=0.03)
    assert all(np.array_equal(a.low, b.low) for a, b in zip(pairs, again, strict=True))
    assert not np.allclose(errors[0] / 5, errors[1] / 15, atol=0.1)
    with_range, _ = validation_pairs(files, 1, Jpeg((10, 90)), 3)
    # whole numbers stay whole
    assert len(with_range) == 4


class Network(nn.Module):
    """Takes the place of one that enlarges twice."""

    config = MambaIRConfig(8, (1,), 1, 1.0, "light_c", "pixelshuffledirect", 2)


def measure(model, pairs):
    return score(restored(model, pairs, torch.device("cpu")), pairs, 2, "psnr_y")


def test_validation_is_the_metric_of_the_benchmarks():
    """A net that enlarges exactly, but beyond an image's range; then truths one level off."""

    class Enlarge(Network):
        def forward(self, low):
            assert not self.training
            # clipped
            return low.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3 - 1

    low = np.array([[[0, 0, 0], [255, 255, 255]] * 4] * 8, np.uint8)
    high = low.repeat(2, 0).repeat(2, 1)
    # the border does not count
    high[:2], high[-2:], high[:, :2], high[:, -2:] = 99, 99, 99, 99
    assert measure(Enlarge(), [Pair(low, high)]) == math.inf
    gray = np.full((8, 8, 3), 100, np.uint8)

    class Darker(Network):
        def forward(self, low):
            return (
                low.repeat_interleave(2, 2).repeat_interleave(2, 3) - 0.4 / 255
                # rounded, not cut
            )

    assert measure(Darker(), [Pair(gray, gray.repeat(2, 0).repeat(2, 1))]) == math.inf
    off = high.copy()
    off[2:-2, 2:-2] ^= 1
    expected = 10 * math.log10(255**2 / (219 / 255) ** 2)
    assert measure(Enlarge(), [Pair(low, off)] * 2) == pytest.approx(expected)


def test_noise_beyond_black_and_white_reaches_the_network():
    class Halve(Network):
        config = MambaIRConfig(8, (1,), 1, 1.0, "light_c", "", 1)

        def forward(self, low):
            return low / 2

    low = np.full((8, 8, 3), 1.5, np.float32)
    (out,) = restored(Halve(), [Pair(low, np.zeros((8, 8, 3), np.uint8))], torch.device("cpu"))
    # 0.75, not half of white
    assert set(out.ravel()) == {191}


def test_gray_networks(tmp_path):
    model = MambaIR(MambaIRConfig(8, (1,), 1, 1.0, "light_c", "", 1, in_chans=1))
    model.start_simply()
    image = noise(9, 8)[:, :, :1]
    (out,) = restored(model, [Pair(image, image)], torch.device("cpu"))
    assert np.array_equal(out, image)
    assert score([out], [Pair(image, image)], 1, "psnr") == math.inf


def test_the_metric_fits_the_task():
    assert metric_of(recipe()) == "psnr_y"
    assert metric_of(recipe(**DENOISE)) == "psnr"
    assert metric_of(recipe(**DENOISE | {"degradation": {"kind": "rain"}})) == "psnr_y"
