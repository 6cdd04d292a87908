import cv2
import numpy as np
import pytest
import torch
from restorers import PHOTO, restorer
from torch import nn

from mambair_cli.archs.mambair import MambaIRConfig
from mambair_cli.bench.figures import lam
from mambair_cli.bench.figures.lam import SEEN, Window, around, attribution, diffusion_index, draw
from mambair_cli.images.folders import read_rgb


class Linear(nn.Module):
    """The image itself, twice as large, so that all is known of its gradients."""

    config = MambaIRConfig(upscale=2, upsampler="")

    def forward(self, image):
        return image.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Far(Linear):
    """Takes each row from eight rows above."""

    def forward(self, image):
        return super().forward(image.roll(8, 2))


def test_only_what_a_network_uses_counts():
    image = PHOTO[:40, :48]
    window = Window(24, 32, 8)  # rows 12 to 16 and columns 16 to 20 of the input
    found = attribution(restorer(Linear()), image, window)
    assert found.shape == (40, 48)
    rows, columns = np.nonzero(found)
    assert rows.min() >= 12
    assert rows.max() < 16
    assert columns.min() >= 16
    assert columns.max() < 20
    shifted = attribution(restorer(Far()), image, window)
    assert np.nonzero(shifted)[0].min() >= 4
    assert np.nonzero(shifted)[0].max() < 8


def test_attributions_sum_to_what_the_path_changes():
    """Completeness: with signs, integrated gradients sum to the change of the detail."""
    image = PHOTO[:24, :24]

    class Once(Linear):
        def forward(self, tensor):
            seen.append(tensor.detach()[0].permute(1, 2, 0).numpy())
            return super().forward(tensor)

    seen = []
    window = Window(8, 8, 24)
    found = attribution(restorer(Once()), image, window)
    assert len(seen) == 50
    np.testing.assert_allclose(seen[-1], image / 255, atol=1e-6)  # the path ends at the image
    start = cv2.GaussianBlur(image / 255, (9, 9), 1.2)
    assert np.abs(seen[0] - start).max() < 0.05  # and begins near the blurred one

    def detail(pixels):
        out = pixels.repeat(2, 0).repeat(2, 1)[8:32, 8:32]
        down, right = out[1:, :-1] - out[:-1, :-1], out[:-1, 1:] - out[:-1, :-1]
        return np.sqrt(down**2 + right**2 + 1e-12).sum()

    assert found.sum() >= 0.9 * (detail(image / 255) - detail(start)) > 1


def test_the_diffusion_index():
    assert diffusion_index(np.ones((8, 8))) == pytest.approx(100)
    point = np.zeros(100)
    point[3] = 2
    assert diffusion_index(point) == pytest.approx(1)
    assert diffusion_index(np.array([1.0, 3.0])) == pytest.approx(
        100 * (1 - 0.25)
    )  # Gini: (3 - 1) / (2 * 4)


def test_a_state_space_network_reaches_further_than_a_local_one(tiny, monkeypatch):
    monkeypatch.setattr(lam, "STEPS", 3)
    image, window = around(PHOTO, Window(120, 90, 16), 2)
    found = [diffusion_index(attribution(r, image, window)) for r in (tiny, restorer(Linear()))]
    assert found[0] > 2 * found[1]


@pytest.mark.parametrize(
    ("window", "part", "inner"),
    [
        (
            Window(120, 90, 16),
            (32, 17),
            Window(56, 56, 16),
        ),  # its centre (64, 49) lies in the middle of 64 x 64
        (Window(0, 0, 16), (0, 0), Window(0, 0, 16)),
        (Window(240, 176, 16), (64, 32), Window(112, 112, 16)),
    ],
)
def test_what_is_seen_around_a_window(window, part, inner):
    seen, found = around(PHOTO, window, 2)
    assert np.array_equal(seen, PHOTO[part[0] :, part[1] :][:SEEN, :SEEN])
    assert found == inner


def test_a_small_image_is_seen_whole():
    seen, found = around(PHOTO[:30, :40], Window(10, 10, 8), 2)
    assert seen.shape == (30, 40, 3)
    assert found == Window(10, 10, 8)


def test_the_figure(tmp_path):
    image = PHOTO[:64, :64]
    maps = np.random.default_rng(0).random((64, 64))
    draw(image, Window(40, 40, 16), [("one", 2, maps), ("two", 2, maps**4)], tmp_path / "lam.png")
    drawn = read_rgb(tmp_path / "lam.png")
    assert drawn.shape[1] > 2 * drawn.shape[0]
    assert torch.is_grad_enabled()
