import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mambair_cli.images import resize
from mambair_cli.images.resize import bicubic, downscale, modcrop

SET5 = Path(__file__).parents[3] / "shared" / "data" / "eval" / "Set5"


def kernel(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    if x <= 2:
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return 0.0


def mirror(position, size):
    """..., 1, 0, 0, 1, ..., size - 1, size - 1, size - 2, ..."""
    while not 0 <= position < size:
        position = -1 - position if position < 0 else 2 * size - 1 - position
    return position


def naive_line(line, new_size, antialias=True):
    """One row of pixels, straight from the definition, counting from 0."""
    scale = new_size / len(line)
    shrink = min(scale, 1) if antialias else 1
    reach = math.ceil(2 / shrink) + 1
    values = []
    for output in range(new_size):
        centre = (output + 0.5) / scale - 0.5
        nearby = range(math.floor(centre) - reach, math.floor(centre) + reach + 2)
        weights = [kernel(shrink * (centre - position)) for position in nearby]
        pixels = [float(line[mirror(position, len(line))]) for position in nearby]
        values.append(sum(w * p for w, p in zip(weights, pixels, strict=True)) / sum(weights))
    return values


def naive(image, height, width, antialias=True):
    """H x W, heights first."""

    def stored(lines):
        lines = np.array(lines)
        if image.dtype.kind == "f":
            return lines
        return np.clip(np.floor(lines + 0.5), 0, np.iinfo(image.dtype).max)

    rows = stored([naive_line(column, height, antialias) for column in image.T]).T
    return stored([naive_line(row, width, antialias) for row in rows])


def noise(*shape, dtype=np.uint8, seed=0):
    largest = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    return (np.random.default_rng(seed).random(shape) * (largest + 0.99)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(8, 7), (4, 7), (16, 14), (32, 28), (64, 7)])
def test_integers_equal_the_definition_rounded_after_each_axis(dtype, size):
    # Scales that are powers of two keep every product exact, so ties at .5 are ties in both.
    image = noise(16, 28, dtype=dtype)
    result = bicubic(image, *size)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, naive(image, *size))


def test_heights_come_first_and_each_axis_is_rounded():
    image = noise(32, 32)
    result = bicubic(image, 16, 16)
    assert (result != bicubic(image.T, 16, 16).T).any()
    assert (result != np.round(bicubic(image.astype(np.float64), 16, 16))).mean() > 0.05


@given(
    before=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    after=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    antialias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_floats_equal_the_definition_at_any_size(before, after, antialias):
    image = noise(*before, dtype=np.float64)
    result = bicubic(image, *after, antialias=antialias)
    np.testing.assert_allclose(result, naive(image, *after, antialias), rtol=0, atol=1e-12)


def test_halving_by_hand():
    # k(1/4) / 2 = 111/256, k(3/4) / 2 = 29/256, k(5/4) / 2 = -9/256, k(7/4) / 2 = -3/256
    line = np.zeros((1, 16))
    line[0, 8] = 256
    np.testing.assert_array_equal(bicubic(line, 1, 8)[0], [0, 0, -3, 29, 111, -9, 0, 0])
    # At the left end, pixels -1, -2, -3 mirror 0, 1, 2.
    line = np.zeros((1, 16))
    line[0, 0] = 256
    np.testing.assert_array_equal(bicubic(line, 1, 8)[0], [111 + 29, -9 - 3, 0, 0, 0, 0, 0, 0])
    # A half goes up.
    assert bicubic(np.array([[0.0, 1.0]]), 1, 1)[0, 0] == 0.5
    assert bicubic(np.array([[0, 1]], np.uint8), 1, 1)[0, 0] == 1


def test_channels_are_resized_on_their_own():
    image = noise(12, 15, 4)
    result = bicubic(image, 9, 20)
    for channel in range(4):
        np.testing.assert_array_equal(result[..., channel], bicubic(image[..., channel], 9, 20))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_keep_their_type_and_overshoot(dtype):
    image = np.repeat(np.array([0, 1], dtype), 8)[None].repeat(4, axis=0)
    result = bicubic(image, 8, 32)
    assert result.dtype == dtype
    assert result.min() < -0.01
    assert result.max() > 1.01


@given(value=st.integers(0, 255), size=st.integers(1, 30), new_size=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_a_constant_stays(value, size, new_size):
    image = np.full((size, 3, 3), value, np.uint8)
    np.testing.assert_array_equal(bicubic(image, new_size, 5), np.full((new_size, 5, 3), value))


def test_the_same_size_and_any_layout_in_memory():
    image = noise(9, 11, 3)
    same = bicubic(image, 9, 11)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)
    flipped = image[::-1, ::-1]
    np.testing.assert_array_equal(bicubic(flipped, 5, 7), bicubic(flipped.copy(), 5, 7))


def test_bands_leave_no_seam(monkeypatch):
    image = noise(41, 23, 3)
    whole = bicubic(image, 27, 31)
    monkeypatch.setattr(resize, "BAND_VALUES", 500)
    np.testing.assert_array_equal(bicubic(image, 27, 31), whole)


def test_downscale_crops_below_and_right():
    image = noise(19, 23, 3)
    cropped = modcrop(image, 4)
    assert np.shares_memory(cropped, image)
    np.testing.assert_array_equal(cropped, image[:16, :20])
    np.testing.assert_array_equal(downscale(image, 4), bicubic(image[:16, :20], 4, 5))


def test_wrong_calls():
    image = noise(6, 6)
    with pytest.raises(ValueError, match="0 x 3"):
        bicubic(image, 0, 3)
    with pytest.raises(ValueError, match="bool"):
        bicubic(image > 3, 3, 3)
    with pytest.raises(ValueError, match="shape"):
        bicubic(image[0], 3, 3)
    with pytest.raises(ValueError, match="shape"):
        downscale(image, 7)
    with pytest.raises(ValueError, match="scale"):
        modcrop(image, 0)


@pytest.mark.skipif(not SET5.is_dir(), reason="needs the benchmark images in ../shared")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_matlabs_own_images_bit_for_bit(scale):
    high = sorted((SET5 / "HR").iterdir())
    assert len(high) == 5
    for path in high:
        low = SET5 / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"
        ours = downscale(np.asarray(Image.open(path).convert("RGB")), scale)
        np.testing.assert_array_equal(
            ours, np.asarray(Image.open(low).convert("RGB")), err_msg=path.stem
        )
