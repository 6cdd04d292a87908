import numpy as np
import pytest
from restorers import SCENE, WHITE, as_type

from mambair_cli.restore import transparency
from mambair_cli.restore.transparency import fill_transparent


def test_colour_under_transparency_comes_from_the_nearest():
    alpha = np.zeros((60, 60), np.uint8)
    alpha[:, :4], alpha[:, -4:] = 255, 255
    pixels = np.zeros((60, 60), np.uint8)
    pixels[:, :4], pixels[:, -4:] = 200, 100
    pixels[:, 4:-4] = np.random.default_rng(0).integers(0, 256, (60, 52))
    filled = fill_transparent(pixels, alpha)
    np.testing.assert_array_equal(filled[:, [0, 3, -4, -1]], pixels[:, [0, 3, -4, -1]])
    assert (filled[:, 4:12] == 200).all()
    assert (filled[:, -12:-4] == 100).all()
    assert filled.min() >= 100
    assert filled.max() <= 200


@pytest.mark.parametrize(("dtype", "mean"), [("uint8", 101), ("uint16", 101), ("float32", 100.875)])
def test_colour_under_transparency_is_rounded(dtype, mean):
    pixels, alpha = np.full((3, 3), 101, dtype), np.full((3, 3), WHITE[dtype], dtype)
    pixels[0, 0], pixels[1, 1], alpha[1, 1] = 100, 0, 0
    filled = fill_transparent(pixels, alpha)
    assert filled.dtype == dtype
    assert filled[1, 1] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colour_spreads_the_same_in_bands(monkeypatch, dtype):
    pixels, alpha = as_type(SCENE, dtype), as_type(SCENE[..., 0], dtype)
    alpha[alpha < alpha.mean()] = 0
    whole = fill_transparent(pixels, alpha)
    monkeypatch.setattr(transparency, "FILL_ROWS", 5)
    bands = fill_transparent(pixels, alpha)
    np.testing.assert_allclose(bands, whole, rtol=1e-5, atol=1 if dtype != "float32" else 1e-5)
