import importlib.util

import numpy as np
import pytest
from failing import fails
from pictures import RGB_PROFILE, XMP, check_exif, exif_block, noise, smooth

from mambair_cli.errors import CallError, ImageError
from mambair_cli.images import jxl
from mambair_cli.images.io import Image, decode_image, encode_image

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("pillow_jxl") is None, reason="needs pillow-jxl-plugin"
)


@needs_package
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_there_and_back(channels):
    pixels = smooth((24, 32, 3) if channels > 2 else (24, 32))
    alpha = noise((24, 32)) if channels in {2, 4} else None
    image = Image(pixels, alpha, exif=exif_block())
    data, notes = encode_image(image, "jxl")
    assert notes == []
    back = decode_image(data, "")
    assert np.abs(back.pixels.astype(int) - pixels).max() < 8
    check_exif(back.exif)
    back = decode_image(encode_image(image, "jxl", 100)[0], "")
    np.testing.assert_array_equal(back.pixels, pixels)
    if alpha is not None:
        np.testing.assert_array_equal(back.alpha, alpha)


@needs_package
def test_what_it_cannot_hold_is_said():
    deep = Image(smooth((24, 32, 3), "uint16"), icc_profile=RGB_PROFILE)
    notes = encode_image(deep, "jxl")[1]
    assert "8 bits" in notes[0]
    assert "colour profile" in notes[1]


@pytest.mark.parametrize("data", [b"\xff\x0a" + bytes(99), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)])
def test_without_its_package(monkeypatch, data):
    monkeypatch.setattr(jxl, "INSTALLED", False)
    words = "JPEG XL", "pip install 'mambair[jxl]'"
    fails(lambda: decode_image(data, "a.jxl"), ImageError, "a.jxl", *words)
    fails(lambda: encode_image(Image(noise((4, 4))), "jxl"), CallError, *words)


@needs_package
def test_xmp_is_read_or_said():
    data, notes = encode_image(Image(smooth((16, 24, 3)), xmp=XMP), "jxl")
    assert notes == []
    assert decode_image(data, "").xmp == XMP
    packed = data.replace(b"xml " + XMP, b"brob" + b"xml " + XMP[4:])
    info = {}
    assert (jxl.describe(packed, info), info) == (["its XMP is compressed: left out"], {})
