import io

import numpy as np
import PIL.Image
import pillow_heif
import pytest
from pictures import noise, pillow_bytes, smooth

from mambair_cli.images.io import Image, decode_image, encode_image


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_ten_bits_are_kept(channels):
    pixels = smooth((32, 48, 3) if channels > 2 else (32, 48), "uint16")
    alpha = smooth((48, 32), "uint16").T.copy() if channels in {2, 4} else None
    data, notes = encode_image(Image(pixels, alpha), "heic")
    assert [word for note in notes for word in note.split() if word.isdigit()] == ["10"]
    image = decode_image(data, "")
    assert image.pixels.dtype == np.uint16
    assert np.abs(image.pixels.astype(int) - pixels).max() < 65535 * 0.02
    assert pillow_heif.open_heif(io.BytesIO(data)).info["bit_depth"] == 10
    assert (image.alpha is None) == (alpha is None)


def test_gain_map_is_said():
    data = pillow_bytes(PIL.Image.fromarray(noise((32, 32, 3))), "HEIF")
    data += b"urn:com:apple:photo:2020:aux:hdrgainmap\0"
    assert "gain map" in decode_image(data, "").notes[0]
