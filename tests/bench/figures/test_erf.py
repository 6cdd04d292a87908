import numpy as np
import pytest
import torch
import torch.nn.functional as F
from failing import fails
from restorers import restorer
from torch import nn

from mambair_cli.archs.mambair import MambaIRConfig
from mambair_cli.bench.figures.erf import SIDE, areas, draw, field
from mambair_cli.errors import CallError
from mambair_cli.images.folders import read_rgb

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (130, 150, 3), dtype=np.uint8) for _ in range(2)]


class Blur(nn.Module):
    """Repeats what a 3x3 kernel makes of each channel, multiplied by the first pixel."""

    def __init__(self, channels=3):
        super().__init__()
        self.config = MambaIRConfig(upscale=2, upsampler="", in_chans=channels)
        self.kernel = nn.Parameter(
            torch.tensor([[1.0, 2, 3], [4, -16, 6], [7, 8, 9]]).expand(channels, 1, 3, 3).clone()
        )

    def forward(self, image):
        blurred = F.conv2d(image, self.kernel, padding=1, groups=image.shape[1])
        return F.interpolate(blurred, scale_factor=2, mode="nearest") * image[:, :, :1, :1].detach()


def test_gradients_by_hand():
    magnitude, rooted = field(restorer(Blur()), IMAGES)
    assert magnitude.shape == rooted.shape == (SIDE, SIDE)
    factors = [
        image[5, 15].astype(float).sum() / 255 for image in IMAGES
    ]  # of the centre crop's first pixel
    kernel = np.abs([[1, 2, 3], [4, -16, 6], [7, 8, 9]])
    assert magnitude[59:62, 59:62] == pytest.approx(np.mean(factors) * kernel, rel=1e-5)
    assert rooted[59:62, 59:62] == pytest.approx(
        np.mean(np.power(factors, 0.25)) * kernel**0.25, rel=1e-5
    )
    assert np.count_nonzero(magnitude) == np.count_nonzero(rooted) == 9


def test_networks_of_one_channel_see_the_mean():
    magnitude, _ = field(restorer(Blur(1)), IMAGES[:1])
    assert magnitude[60, 60] == pytest.approx(16 * IMAGES[0][5, 15].mean() / 255, rel=1e-5)


def test_a_state_space_network_sees_far(tiny):
    shares = []
    magnitude, _ = field(tiny, IMAGES[:1], shares.append)
    assert np.unravel_index(magnitude.argmax(), magnitude.shape) == (60, 60)
    assert np.count_nonzero(magnitude[60]) > 100  # along the row of the centre
    assert shares == [0]


def test_areas_by_hand():
    flat = np.ones((10, 10))
    assert areas(flat, [0.2, 0.49, 0.5, 1]) == pytest.approx(
        [0.25, 0.49, 0.81, 1]
    )  # squares of side 5, 7, 9, all
    point = np.zeros((10, 10))
    point[5, 5] = 3
    assert areas(point) == [0.01] * 4
    corner = np.zeros((10, 10))
    corner[0, 0] = 1
    assert areas(corner, [0.2]) == [1.0]


def test_small_images():
    fails(lambda: field(restorer(Blur()), [IMAGES[0][:119]]), CallError, "150x119", "120")


def test_the_figure(tmp_path):
    maps = RNG.random((2, SIDE, SIDE))
    draw([("one", *maps), ("two", *maps)], tmp_path / "erf.png")
    drawn = read_rgb(tmp_path / "erf.png")
    assert drawn.shape[1] > 1.5 * drawn.shape[0]
    assert drawn.min() < 100
