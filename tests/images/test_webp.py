import numpy as np
import PIL.Image
import pytest
from pictures import noise, photo, pillow_bytes, smooth

from mambair_cli.images import webp
from mambair_cli.images.io import Image, decode_image, encode_image


def grid():
    """Colours that change from pixel to pixel."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[::2, :, 0] = 255
    pixels[:, ::2, 2] = 255
    return pixels


def error(pixels, image, quality=None):
    data, notes = encode_image(image, "webp", quality)
    assert notes == []
    return np.abs(decode_image(data, "").pixels.astype(int) - pixels).max()


@pytest.mark.parametrize("alpha", [False, True])
def test_a_lossless_file_stays_lossless(alpha):
    picture = PIL.Image.fromarray(grid())
    if alpha:
        picture.putalpha(PIL.Image.fromarray(noise((32, 48))))
    image = decode_image(pillow_bytes(picture, "WEBP", lossless=True, exact=True), "")
    assert image.lossless
    assert error(grid(), image) == 0
    assert error(grid(), image, 90) > 0


def test_quality_100_is_lossless_and_less_is_not():
    assert error(grid(), Image(grid()), 100) == 0
    image = decode_image(pillow_bytes(PIL.Image.fromarray(grid()), "WEBP", quality=90), "")
    assert not image.lossless
    assert error(image.pixels, image) > 0


def test_colours_that_change_from_pixel_to_pixel_are_whole():
    assert error(grid(), Image(grid())) == 0
    assert error(grid(), Image(grid()), 95) > 50
    assert error(smooth((32, 48, 3)), Image(smooth((32, 48, 3)))) > 0
    assert webp.suffers(Image(grid()))
    assert not webp.suffers(Image(grid()[..., 0]))
    assert not webp.suffers(Image((photo() * 255).astype(np.uint8)))
