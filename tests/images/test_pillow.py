import io
import struct

import numpy as np
import PIL.Image
import pytest
from pictures import (
    CMYK_PROFILE,
    RGB_PROFILE,
    noise,
    pillow_bytes,
    smooth,
)
from PIL import ImageCms

from mambair_cli.images import pillow
from mambair_cli.images.io import (
    Image,
    decode_image,
    encode_image,
)


def read(data, **options):
    return decode_image(data, "input", **options)


SCENE = PIL.Image.fromarray(smooth((6, 9, 3)))


GRAY = SCENE.convert("L")


MASK = PIL.Image.fromarray(noise((6, 9)))


def with_alpha(image, mode):
    image = image.convert(mode)
    image.putalpha(MASK)
    return image


@pytest.mark.parametrize(
    ("image", "format", "pixels", "alpha"),
    [
        (SCENE, "PNG", SCENE, None),
        (GRAY, "PNG", GRAY, None),
        (GRAY.convert("1"), "PNG", GRAY.convert("1").convert("L"), None),
        (GRAY.convert("1"), "TIFF", GRAY.convert("1").convert("L"), None),
        (SCENE.quantize(16), "PNG", SCENE.quantize(16).convert("RGB"), None),
        (SCENE.quantize(16), "GIF", SCENE.quantize(16).convert("RGB"), None),
        (SCENE.quantize(16), "BMP", SCENE.quantize(16).convert("RGB"), None),
        (with_alpha(SCENE, "RGBA"), "PNG", SCENE, MASK),
        (with_alpha(GRAY, "LA"), "PNG", GRAY, MASK),
        (with_alpha(SCENE, "RGBA"), "TIFF", SCENE, MASK),
        (with_alpha(SCENE, "RGBA"), "TGA", SCENE, MASK),
        (SCENE.convert("HSV").convert("RGB"), "PPM", SCENE.convert("HSV").convert("RGB"), None),
        (GRAY, "PCX", GRAY, None),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mode", ""),
)
def test_modes_of_pillow(image, format, pixels, alpha):
    back = read(pillow_bytes(image, format))
    np.testing.assert_array_equal(back.pixels, np.asarray(pixels))
    assert back.pixels.dtype == np.uint8
    if alpha is None:
        assert back.alpha is None
    else:
        np.testing.assert_array_equal(back.alpha, np.asarray(alpha))


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa", "RGBX", "HSV", "YCbCr"])
def test_modes_that_few_formats_hold(mode):
    colour = (200, 120, 40)
    palette = PIL.Image.new("RGB", (3, 2), colour).quantize(2)
    palette.putalpha(128)
    sources = {
        "PA": palette,
        "La": PIL.Image.new("LA", (3, 2), (100, 128)).convert("La"),
        "RGBa": PIL.Image.new("RGBA", (3, 2), (*colour, 128)).convert("RGBa"),
        "RGBX": PIL.Image.new("RGBX", (3, 2), (*colour, 9)),
        "HSV": PIL.Image.new("RGB", (3, 2), colour).convert("HSV"),
        "YCbCr": PIL.Image.new("RGB", (3, 2), colour).convert("YCbCr"),
    }
    assert sources[mode].mode == mode
    pixels, alpha = pillow.read(sources[mode])
    np.testing.assert_allclose(
        pixels.reshape(6, -1), [(100,) if mode == "La" else colour] * 6, atol=2
    )
    if mode in {"PA", "La", "RGBa"}:
        assert (alpha == 128).all()
    else:
        assert alpha is None


def test_palette_with_transparency():
    palette = SCENE.quantize(4)
    one = read(pillow_bytes(palette, "PNG", transparency=2))
    np.testing.assert_array_equal(one.alpha, np.where(np.asarray(palette) == 2, 0, 255))
    np.testing.assert_array_equal(one.pixels, np.asarray(palette.convert("RGB")))
    many = read(pillow_bytes(palette, "PNG", transparency=bytes([10, 20, 30, 40])))
    np.testing.assert_array_equal(many.alpha, (np.asarray(palette) + 1) * 10)


@pytest.mark.parametrize(
    "profile", [None, b"", CMYK_PROFILE, RGB_PROFILE], ids=["none", "empty", "damaged", "rgb"]
)
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_and_loses_its_profile(format, profile):
    # red
    inks = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read(pillow_bytes(inks, format, **({"icc_profile": profile} if profile else {})))
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[255, 0, 0]] * 256, atol=3)
    assert profile == RGB_PROFILE or image.icc_profile is None
    assert image.notes == ("input: its CMYK colours become RGB",)


def press_profile():
    """A working CMYK profile of a press whose inks all print the same gray: each one darkens L* by
    25.
    """
    grid = b"".join(
        bytes([255 - 64 * bin(corner).count("1") + (corner == 15), 128, 128])
        for corner in range(16)
    )
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    return b"".join(
        [
            struct.pack(
                ">I4xI4s4s4s12x4s28x",
                128 + len(tags),
                0x02400000,
                b"prtr",
                b"CMYK",
                b"Lab ",
                b"acsp",
            ),
            struct.pack(">III48x", 0xF6D6, 0x10000, 0xD32D),
            tags,
        ]
    )


def test_cmyk_with_a_working_profile():
    inks = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read(pillow_bytes(inks, "JPEG", icc_profile=press_profile()))
    # L* 50
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[119] * 3] * 256, atol=3)
    assert image.icc_profile is None


def test_ycck_jpeg():
    cyan_magenta_yellow, black = PIL.Image.new("RGB", (16, 16), (20, 200, 120)), 30
    luma = np.asarray(cyan_magenta_yellow.convert("YCbCr"))[0, 0].astype(int)
    # Pillow inverts what it saves as Adobe does; transform 2 in Adobe's marker then declares YCCK.
    data = bytearray(
        pillow_bytes(PIL.Image.new("CMYK", (16, 16), (*(255 - luma).tolist(), black)), "JPEG")
    )
    data[data.index(b"Adobe") + 11] = 2
    expected = PIL.Image.new("CMYK", (1, 1), (20, 200, 120, 30)).convert("RGB").getpixel((0, 0))
    np.testing.assert_allclose(read(bytes(data)).pixels[8, 8], expected, atol=4)


def test_lab_becomes_rgb():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    red = ImageCms.profileToProfile(
        PIL.Image.new("RGB", (4, 4), (200, 40, 30)), srgb, lab, outputMode="LAB"
    )
    image = read(pillow_bytes(red, "TIFF"))
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[200, 40, 30]] * 16, atol=4)
    assert image.notes == ("input: its LAB colours become RGB",)


def test_jpeg_is_written_without_chroma_subsampling():
    with PIL.Image.open(io.BytesIO(encode_image(Image(noise((32, 32, 3))), "jpg")[0])) as file:
        assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3
