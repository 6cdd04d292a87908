import struct

import numpy as np
import PIL.Image
import pytest
from pictures import RGB_PROFILE, noise, pillow_bytes

from mambair_cli.images.io import decode_image, encode_image

PIXELS = noise((6, 8, 3))


def long_header(kind, *, profile=b"", points=(0,) * 9, gamma=0.0):
    """A BMP file whose header is Windows' fifth."""
    samples = pillow_bytes(PIL.Image.fromarray(PIXELS), "BMP")[54:]
    head = struct.pack("<IiiHHIIiiII", 124, 8, 6, 1, 24, 0, len(samples), 0, 0, 0, 0)
    head += bytes(16) + kind + struct.pack("<9I3I", *points, *[int(gamma * 65536)] * 3)
    head += struct.pack("<4I", 4, 124 + len(samples), len(profile), 0)
    size = 14 + len(head) + len(samples) + len(profile)
    return struct.pack("<2sIII", b"BM", size, 0, 14 + len(head)) + head + samples + profile


def fixed(*values):
    return tuple(int(value * 2**30) for value in values)


ADOBE = fixed(0.64, 0.33, 0.03, 0.21, 0.71, 0.08, 0.15, 0.06, 0.79)
SRGB = fixed(0.64, 0.33, 0.03, 0.30, 0.60, 0.10, 0.15, 0.06, 0.79)


def test_an_embedded_profile_is_kept_or_said():
    image = decode_image(long_header(b"DEBM", profile=RGB_PROFILE), "")
    assert image.icc_profile == RGB_PROFILE
    np.testing.assert_array_equal(image.pixels, PIXELS)
    assert decode_image(encode_image(image, "png")[0], "").icc_profile == RGB_PROFILE
    assert "colour profile" in encode_image(image, "bmp")[1][0]


@pytest.mark.parametrize("gamma", [1.0, 2.2])
def test_primaries_and_gamma_are_kept(gamma):
    image = decode_image(long_header(bytes(4), points=ADOBE, gamma=gamma), "")
    assert image.colour.gamma == pytest.approx(1 / gamma, rel=1e-4)
    wanted = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    assert image.colour.chromaticities == pytest.approx(wanted, abs=1e-6)
    assert "converted to sRGB" in encode_image(image, "bmp")[1][0]


@pytest.mark.parametrize(
    "data",
    [
        long_header(bytes(4), points=SRGB, gamma=2.2),
        long_header(bytes(4)),
        long_header(bytes(4), points=ADOBE),
        long_header(b"BGRs", points=ADOBE, gamma=1.0),
        pillow_bytes(PIL.Image.fromarray(PIXELS), "BMP"),
    ],
    ids=["near sRGB", "empty", "without gamma", "sRGB", "short header"],
)
def test_nothing_is_made_up(data):
    image = decode_image(data, "")
    assert (image.colour, image.icc_profile) == (None, None)
