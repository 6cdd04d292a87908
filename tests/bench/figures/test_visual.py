import numpy as np
import pytest
from restorers import PHOTO

from mambair_cli.bench.figures.visual import View, draw, views
from mambair_cli.bench.quality.candidates import Candidate
from mambair_cli.bench.quality.pairing import Pair, load_sample
from mambair_cli.bench.quality.protocols import jpeg, super_resolution
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.images.metrics import psnr_y, ssim_y
from mambair_cli.images.resize import bicubic


def test_views_and_their_scores(tmp_path):
    write_image(tmp_path / "osprey.png", Image(PHOTO))
    protocol = super_resolution(2)
    sample = load_sample(Pair("osprey", tmp_path / "osprey.png"), protocol)
    candidate = Candidate("tiny-x2", protocol, device="cpu")
    truth, enlarged, restored = views(sample, protocol, [candidate])
    assert (truth.name, truth.psnr) == ("truth", None)
    assert np.array_equal(truth.pixels, PHOTO)
    assert (enlarged.name, restored.name) == ("bicubic", "tiny-x2")
    assert np.array_equal(enlarged.pixels, bicubic(sample.input, *PHOTO.shape[:2]))
    assert (restored.psnr, restored.ssim) == (
        psnr_y(restored.pixels, PHOTO, border=2),
        ssim_y(restored.pixels, PHOTO, border=2),
    )
    assert restored.psnr > enlarged.psnr


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_figure(tmp_path, count):
    found = [View("truth", PHOTO)]
    found += [View(f"view {i}", PHOTO // (i + 2), 20.0 + i, 0.5) for i in range(count)]
    draw("osprey", found, tmp_path / "visual.png", at=(10, 20), side=32)
    picture = read_rgb(tmp_path / "visual.png").astype(int)
    red = (picture[..., 0] > 200) & (picture[..., 1:].max(2) < 60)
    assert red.sum() > 100  # the box


def test_a_gray_figure_finds_its_spot(tmp_path):
    gray = jpeg(10).prepare(PHOTO)
    draw(
        "osprey",
        [View("truth", gray), View("a", gray), View("b", gray // 2, 6.0, 0.4)],
        tmp_path / "v.svg",
    )
    assert "<image" in (tmp_path / "v.svg").read_text()
