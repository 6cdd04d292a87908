import numpy as np
import pytest
from pictures import (
    RGB_PROFILE,
    WHITE,
    noise,
)

from mambair_cli.images import samples
from mambair_cli.images.io import Image, decode_image, encode_image
from mambair_cli.images.samples import in_bands
from mambair_cli.system import scratch


@pytest.mark.parametrize("on_disk", [False, True])
def test_bands_make_the_whole(monkeypatch, on_disk):
    monkeypatch.setattr(samples, "BAND", 200)
    if on_disk:
        monkeypatch.setattr(scratch, "LARGE", 100)
    first, second = noise((11, 5, 3)), noise((11, 5))
    heights = []

    def change(a, b):
        heights.append(len(a))
        return a * 2.0 + b[..., None]

    result = in_bands(change, np.dtype(np.float32), first, second)
    np.testing.assert_array_equal(result, first * 2.0 + second[..., None])
    assert result.dtype == np.float32
    assert (
        heights == [11] if first[0].nbytes * 11 <= 200 else max(heights) == 200 // first[0].nbytes
    )


def test_every_16_bit_value_is_rounded_to_the_nearest_of_8_bits():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data, _ = encode_image(Image(values), "bmp")
    np.testing.assert_array_equal(decode_image(data, "").pixels, np.rint(values / 257))


def test_float_beyond_its_range_is_clipped_for_integers():
    data, _ = encode_image(Image(np.array([[-0.5, 0.5, 1.5]], np.float32)), "png")
    assert decode_image(data, "").pixels.tolist() == [[0, 32768, 65535]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_alpha_is_laid_on_white(dtype):
    white = WHITE[dtype]
    pixels = np.zeros((1, 3, 3), dtype)
    alpha = np.array([[0, white * 0.4, white]]).astype(dtype)
    data, notes = encode_image(Image(pixels, alpha, RGB_PROFILE), "ppm")
    assert "transparency" in notes[0]
    assert "profile" in notes[-1]
    back = decode_image(data, "").pixels
    np.testing.assert_allclose(back[0, :, 0] / WHITE[back.dtype.name], [1, 0.6, 0], atol=1e-5)
