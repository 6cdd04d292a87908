import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
from failing import fails
from pictures import (
    CMYK_PROFILE,
    GRAY_PROFILE,
    RGB_PROFILE,
    WHITE,
    XMP,
    exif_block,
    exif_facts,
    noise,
    pillow_bytes,
    png_bytes,
    smooth,
    tiff_bytes,
)
from PIL import ImageCms

from mambair_cli.errors import CallError, ImageError, MemoryLimitError
from mambair_cli.images import decode as image_decode
from mambair_cli.images import io as image_io
from mambair_cli.images.io import Image, decode_image, encode_image, read_image, write_image

DATA = Path(__file__).parents[1] / "data"


def read(data, **options):
    return decode_image(data, "input", **options)


def test_photographs_for_the_documentation_are_plain_rgb():
    for name, size in (
        ("photo", (144, 192, 3)),
        ("osprey", (128, 96, 3)),
        ("dragonfly", (120, 160, 3)),
    ):
        image = read_image(DATA / f"{name}.png")
        assert image.pixels.shape == size
        assert image.pixels.dtype == np.uint8
        assert image.alpha is None
        assert (DATA / f"{name}.png").stat().st_size < 60_000


# Reading what others wrote

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
    pixels, alpha = image_decode._from_pillow(sources[mode])
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
    ("bits", "row", "key", "pixels"),
    [
        (1, [0b01101100], 1, [0, 255, 255, 0, 255, 255, 0, 0]),
        (1, [0b01101100], 0, [0, 255, 255, 0, 255, 255, 0, 0]),
        (2, [0b00011011], 1, [0, 85, 170, 255]),
        (4, [0x1F, 0xA1], 0xA, [17, 255, 170, 17]),
        (8, [3, 4, 5], 4, [3, 4, 5]),
        (16, [1, 0, 1, 1, 1, 0], 257, [256, 257, 256]),
    ],
)
def test_gray_png_with_a_transparent_value(bits, row, key, pixels):
    image = read(png_bytes(np.array([row], np.uint8), bits, 0, (b"tRNS", struct.pack(">H", key))))
    assert image.pixels.tolist() == [pixels]
    white = 65535 if bits == 16 else 255
    hidden = key if bits == 16 else key * 255 // (2**bits - 1)
    assert image.alpha.tolist() == [[0 if pixel == hidden else white for pixel in pixels]]
    assert image.alpha.dtype == image.pixels.dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rgb_png_with_a_transparent_colour(dtype):
    samples = noise((4, 5, 3), dtype)
    key = tuple(int(value) for value in samples[2, 3])
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(4, -1).view(np.uint8)
    image = read(png_bytes(rows, samples.itemsize * 8, 2, (b"tRNS", struct.pack(">3H", *key))))
    expected = np.full((4, 5), WHITE[dtype])
    expected[2, 3] = 0
    np.testing.assert_array_equal(image.pixels, samples)
    np.testing.assert_array_equal(image.alpha, expected)


@pytest.mark.parametrize("order", ["<", ">"], ids=["II", "MM"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_tiff(dtype, channels, order):
    samples = noise((6, 5, channels), dtype)
    extra = {"EXTRASAMPLES": 2} if channels == 4 else {}
    image = read(tiff_bytes(samples, order, ICCPROFILE=RGB_PROFILE, **extra))
    np.testing.assert_array_equal(
        image.pixels, samples[..., :3] if channels > 1 else samples[..., 0]
    )
    assert image.pixels.dtype == dtype
    assert image.icc_profile == (RGB_PROFILE if channels > 1 else None)
    if channels == 4:
        np.testing.assert_array_equal(image.alpha, samples[..., 3])
    else:
        assert image.alpha is None


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_tiff_of_other_fourth_channels(dtype):
    alpha = noise((6, 5), dtype, seed=1)
    alpha[0] = 0
    straight = noise((6, 5, 3), dtype)
    premultiplied = (straight * (alpha / WHITE[dtype])[..., None]).astype(dtype)
    image = read(tiff_bytes(np.dstack([premultiplied, alpha]), EXTRASAMPLES=1))
    np.testing.assert_array_equal(image.alpha, alpha)
    seen = alpha > WHITE[dtype] * 0.1
    step = WHITE[dtype] / 65535 * 11
    assert np.abs(image.pixels[seen].astype(float) - straight[seen]).max() < step
    assert not image.pixels[0].any()
    assert read(tiff_bytes(np.dstack([straight, alpha]), EXTRASAMPLES=0)).alpha is None


def test_tiff_where_white_is_zero():
    for samples in (noise((3, 4, 1)), noise((3, 4, 1), "uint16")):
        image = read(tiff_bytes(samples, PHOTOMETRIC_INTERPRETATION=0))
        np.testing.assert_array_equal(image.pixels, WHITE[samples.dtype.name] - samples[..., 0])


def test_samples_that_are_reduced_are_said():
    inks = np.full((4, 5, 4), [0, 65535, 65535, 0], np.uint16)  # red
    image = read(tiff_bytes(inks, PHOTOMETRIC_INTERPRETATION=5))
    np.testing.assert_array_equal(image.pixels, np.full((4, 5, 3), [255, 0, 0]))
    assert image.notes == (
        "input: its samples of 16 bits are reduced to 8",
        "input: its CMYK colours become RGB",
    )
    deep = noise((32, 32, 3), "uint16")
    for suffix, options in ((".jp2", []), (".avif", [cv2.IMWRITE_AVIF_DEPTH, 10])):
        if not cv2.haveImageWriter("a" + suffix):  # as in older versions of OpenCV
            continue
        image = read(cv2.imencode(suffix, deep // (64 if options else 1), options)[1].tobytes())
        assert image.notes == (
            f"input: its samples of {10 if options else 16} bits are reduced to 8",
        )


@pytest.mark.parametrize(
    ("samples", "tags", "word"),
    [
        (np.full((3, 4, 3), 70_000, np.int32), {}, "65535"),
        (np.full((3, 4, 1), 70_000, np.int32), {}, "65535"),
        (np.full((3, 4, 1), -1, np.int16), {}, "65535"),
        (np.full((3, 4, 3), np.nan, np.float32), {}, "not a number"),
        (np.full((3, 4, 1), np.inf, np.float32), {}, "infinite"),
        (np.full((3, 4, 1), 1e300, np.float64), {}, "infinite"),
        (noise((3, 4, 5), "uint16"), {}, "5 samples"),
        (noise((3, 4, 3), "uint16"), {"BITSPERSAMPLE": (12, 12, 12)}, "12"),
        (noise((3, 4, 2), "float32"), {"EXTRASAMPLES": 2, "PREDICTOR": 3}, "predictor"),
        (
            noise((3, 4, 3), "uint16"),
            {"PLANAR_CONFIGURATION": 2},
            "damaged",
        ),  # but one strip for three planes
    ],
    ids=[
        "int32",
        "gray int32",
        "int16",
        "nan",
        "inf",
        "float64",
        "5 channels",
        "12 bits",
        "predictor",
        "planes",
    ],
)
def test_tiff_that_would_be_misread_is_refused(samples, tags, word):
    fails(lambda: read(tiff_bytes(samples, **tags)), ImageError, "input", word)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_floats_beyond_0_and_1_are_kept(channels):
    samples = noise((6, 5, channels), "float32") * 8 - 3
    image = read(tiff_bytes(samples, **({"EXTRASAMPLES": 2} if channels in {2, 4} else {})))
    colours = samples[..., :3] if channels > 2 else samples[..., 0]
    np.testing.assert_array_equal(image.pixels, colours)
    back = read(encode_image(image, "tiff")[0])
    np.testing.assert_array_equal(back.pixels, colours)
    if channels in {2, 4}:
        np.testing.assert_array_equal(back.alpha, samples[..., -1])


LZW = [cv2.IMWRITE_TIFF_COMPRESSION, 5]


@pytest.mark.parametrize(
    "options", ["tiles", "zip", "zip of tiles", "planes", "planes of tiles", "big"]
)
@pytest.mark.parametrize("dtype", ["uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_tiff_of_other_programs(channels, dtype, options):
    integers = dtype == "uint16"
    samples = noise((37, 41, channels), "uint16" if integers else "float32").astype(dtype)
    given = {
        "tiles": {"tile": (16, 32)},
        "zip": {"compression": "zlib", "predictor": 2 if integers else None, "rowsperstrip": 5},
        "zip of tiles": {
            "compression": "zlib",
            "predictor": 2 if integers else None,
            "tile": (16, 16),
        },
        "planes": {"planarconfig": "separate"},
        "planes of tiles": {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib"},
        "big": {"bigtiff": True, "byteorder": ">"},
    }[options]
    stored = samples if channels > 1 else samples[..., 0]
    if "planarconfig" in given:
        if channels == 1:
            return
        stored = np.moveaxis(samples, -1, 0)
    elif channels > 1:
        given["planarconfig"] = "contig"
    if channels in {2, 4}:
        given["extrasamples"] = ["unassalpha"]
    file = io.BytesIO()
    tifffile.imwrite(
        file, stored, photometric="rgb" if channels > 2 else "minisblack", metadata=None, **given
    )
    image = read(file.getvalue())
    assert image.pixels.dtype == ("uint16" if integers else "float32")
    samples = samples.astype(image.pixels.dtype)
    np.testing.assert_array_equal(
        image.pixels, samples[..., :3] if channels > 2 else samples[..., 0]
    )
    if channels in {2, 4}:
        np.testing.assert_array_equal(image.alpha, samples[..., -1])
    else:
        assert image.alpha is None


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_tiff_with_lzw(channels, dtype):
    samples = noise((20, 30, channels), dtype)
    swapped = samples[..., [2, 1, 0, 3][:channels]] if channels > 1 else samples
    image = read(cv2.imencode(".tif", np.ascontiguousarray(swapped), LZW)[1].tobytes())
    np.testing.assert_array_equal(
        image.pixels, samples[..., :3] if channels > 1 else samples[..., 0]
    )


def test_gray_with_alpha_of_16_bits_in_every_orientation():
    samples = noise((4, 6, 2), "uint16")
    for orientation, seen in ((3, samples[::-1, ::-1]), (6, np.rot90(samples, -1)), (1, samples)):
        image = read(tiff_bytes(samples, EXTRASAMPLES=2, _274=orientation))
        np.testing.assert_array_equal(np.dstack([image.pixels, image.alpha]), seen)


def test_gray_of_32_bits_within_the_range_of_16():
    samples = noise((3, 4), "uint16")
    image = read(pillow_bytes(PIL.Image.fromarray(samples.astype(np.int32)), "TIFF"))
    np.testing.assert_array_equal(image.pixels, samples)
    assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize("maximum", [300, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_deep_netpbm_of_any_maximum(kind, maximum):
    samples = np.random.default_rng(0).integers(
        0, maximum + 1, (4, 5, 3 if kind in {b"P3", b"P6"} else 1)
    )
    plain = " ".join(map(str, samples.ravel())).encode().replace(b" ", b" # a comment 9\n", 3)
    raster = plain if kind in {b"P2", b"P3"} else samples.astype(">u2").tobytes()
    image = read(kind + b"\n# a comment\n5 4\n%d\n" % maximum + raster)
    assert image.pixels.dtype == np.uint16
    np.testing.assert_allclose(image.pixels, (samples / maximum * 65535).squeeze(), atol=0.5001)


@pytest.mark.parametrize(
    "profile", [None, b"", CMYK_PROFILE, RGB_PROFILE], ids=["none", "empty", "damaged", "rgb"]
)
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_and_loses_its_profile(format, profile):
    inks = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    image = read(pillow_bytes(inks, format, **({"icc_profile": profile} if profile else {})))
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[255, 0, 0]] * 256, atol=3)
    assert profile == RGB_PROFILE or image.icc_profile is None
    assert image.notes == ("input: its CMYK colours become RGB",)


def press_profile():
    """A working CMYK profile of a press whose inks all print the same gray: each one darkens L* by 25."""
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
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[119] * 3] * 256, atol=3)  # L* 50
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


def test_profile_of_another_colour_space_is_left_out():
    assert read(pillow_bytes(GRAY, "PNG", icc_profile=RGB_PROFILE)).icc_profile is None
    assert read(pillow_bytes(SCENE, "PNG", icc_profile=GRAY_PROFILE)).icc_profile is None
    assert read(pillow_bytes(SCENE, "JPEG", icc_profile=RGB_PROFILE)).icc_profile == RGB_PROFILE


@pytest.mark.parametrize(
    "format", ["PNG", "WEBP", "TIFF", "GIF", "AVIF", "MPO", "TIFF deep", "HEIF"]
)
def test_first_frame_of_several_is_read_and_that_is_said(format):
    frames = [PIL.Image.new("RGB", (32, 24), (value, value, value)) for value in (40, 128, 255)]
    if format == "TIFF deep":
        data = io.BytesIO()
        tifffile.imwrite(
            data,
            np.stack([np.full((24, 32, 3), v * 257, np.uint16) for v in (40, 255)]),
            photometric="rgb",
        )
        data = data.getvalue()
    else:
        data = pillow_bytes(frames[0], format, save_all=True, append_images=frames[1:])
    image = read(data)
    assert np.abs(image.pixels / WHITE[image.pixels.dtype.name] * 255 - 40).max() <= 3
    assert image.notes == ("input: holds several frames or pages: only the first is read",)


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF deep"])
def test_orientation(format, orientation):
    # The first row and column of the stored pixels lie, on the seen image, where the EXIF standard says.
    seen = smooth((16, 24, 3))
    stored = {
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen, 1),
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(seen, -1),
    }.get(orientation, seen)
    stored = np.ascontiguousarray(stored)
    alpha = np.ascontiguousarray(stored[..., 0])
    has_alpha = format not in {"JPEG", "TIFF"}
    if format == "TIFF deep":
        samples = np.dstack([stored, alpha]).astype(np.uint16) * 257
        image = read(tiff_bytes(samples, EXTRASAMPLES=2, _274=orientation))
        seen = seen.astype(np.uint16) * 257
    else:
        exif = PIL.Image.Exif()
        exif[274] = orientation
        options = {
            "PNG": {},
            "JPEG": {"quality": 100},
            "WEBP": {"lossless": True, "exact": True},
            "TIFF": {},
        }
        picture = PIL.Image.fromarray(np.dstack([stored, alpha]) if has_alpha else stored)
        image = read(pillow_bytes(picture, format, exif=exif, **options[format]))
    assert image.pixels.shape == seen.shape
    np.testing.assert_allclose(image.pixels, seen, atol=4 if format == "JPEG" else 0)
    if has_alpha:
        np.testing.assert_array_equal(image.alpha, seen[..., 0])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"", b"junk", b"II*\0\xff\xff\0\0", b"MM\0*\0\0\0\x08\0\x09\x01\x12"]
)
def test_damaged_exif_is_as_none(format, exif):
    image = read(pillow_bytes(SCENE, format, exif=b"Exif\0\0" + exif))
    assert image.pixels.shape == (6, 9, 3)
    assert image.exif is None
    assert len(image.notes) == (exif != b"")


def test_exif_as_imagemagick_writes_it_into_png():
    block = exif_block(orientation=6)
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text(
        "Raw profile type exif",
        "\n".join(["", "exif", str(len(block) + 6), (b"Exif\0\0" + block).hex()]),
    )
    image = read(pillow_bytes(SCENE, "PNG", pnginfo=text))
    assert image.pixels.shape == (9, 6, 3)
    assert exif_facts(image.exif) == exif_facts(exif_block(thumbnail=False))
    assert image.text == {}


@pytest.mark.parametrize(
    "xmp", [b'<a tiff:Orientation="6"/>', b"<tiff:Orientation>6</tiff:Orientation>"]
)
def test_orientation_of_xmp_counts_and_is_reset(xmp):
    image = read(pillow_bytes(SCENE, "JPEG", xmp=xmp))
    assert image.pixels.shape == (9, 6, 3)
    assert image.xmp == xmp.replace(b"6", b"1")


@pytest.mark.parametrize(
    ("dpi", "seen"),
    [((300, 150), (300, 150)), ((0.5, 72), None), (None, None), ((72, 72.5), (72, 72.5))],
)
def test_resolution(dpi, seen):
    found = read(pillow_bytes(SCENE, "PNG", **({"dpi": dpi} if dpi else {}))).dpi
    assert found == (pytest.approx(seen, rel=1e-3) if seen else None)


def test_resolution_is_that_of_the_upright_image():
    exif = PIL.Image.Exif()
    exif[274] = 6
    assert read(pillow_bytes(SCENE, "JPEG", dpi=(300, 150), exif=exif)).dpi == (150, 300)


def test_resolution_that_pillow_makes_up_is_none():
    exif = PIL.Image.Exif()
    exif[271] = "Camera"
    data = pillow_bytes(SCENE, "JPEG", exif=exif)
    with PIL.Image.open(io.BytesIO(data)) as file:
        assert file.info["dpi"] == (72, 72)
    assert read(data).dpi is None


def test_long_texts_and_profiles_of_png(monkeypatch):
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Comment", "long " * 400_000, zip=True)  # Pillow alone ends at a megabyte
    data = pillow_bytes(SCENE, "PNG", pnginfo=text, icc_profile=RGB_PROFILE + bytes(3_000_000))
    image = read(data)
    assert len(image.text["Comment"]) == 2_000_000
    assert len(image.icc_profile) == len(RGB_PROFILE) + 3_000_000
    monkeypatch.setattr(image_decode, "MAX_TEXT", 1_000_000)
    fails(lambda: read(data), ImageError, "large")


# Bad input


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"II*\0", ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"P6 0 0 255\n", ""),
    ],
)
def test_no_image(data, word):
    fails(lambda: read(data), ImageError, "input", word)


def test_missing_input_and_folder(tmp_path):
    fails(lambda: read_image(tmp_path / "none.png"), CallError, "none.png", "no such file")
    fails(lambda: read_image(tmp_path), CallError, str(tmp_path), "folder")
    (tmp_path / "file").touch()
    fails(lambda: read_image(tmp_path / "file" / "x.png"), CallError, "x.png", "no such file")


@pytest.mark.parametrize(
    ("raised", "error", "word"),
    [
        (PermissionError(13, "Permission denied"), ImageError, "Permission denied"),
        (OSError(5, "a\nb"), ImageError, "a b"),
    ],
)
def test_input_that_cannot_be_read(monkeypatch, raised, error, word):
    def refuse(path):
        raise raised

    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails(lambda: read_image(DATA / "photo.png"), error, "photo.png", word)


def test_too_little_memory(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", refuse)
    fails(lambda: read_image(DATA / "photo.png"), MemoryLimitError, "photo.png")
    monkeypatch.setattr(zlib, "compress", refuse)
    fails(lambda: write_image(tmp_path / "x.tif", Image(noise((2, 2)))), MemoryLimitError, "x.tif")


def test_pixel_limit(monkeypatch):
    width = 30_000  # more than Pillow accepts: 900 megapixels
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    )
    fails(lambda: read(bomb), ImageError, "30000x30000", str(image_io.MAX_PIXELS), "--max-pixels")
    samples = noise((6, 9, 3), "uint16")
    for data in (pillow_bytes(SCENE, "PNG"), tiff_bytes(samples)):
        fails(lambda data=data: read(data, max_pixels=53), ImageError, "9x6", "53")
        assert read(data, max_pixels=54).pixels.shape == (6, 9, 3)
    # Pillow's own limit does not count, and is left as it was.
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert read(pillow_bytes(SCENE, "PNG")).pixels.shape == (6, 9, 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10


def encoded_photos():
    """A small photograph with metadata in every format that is read, most by other programs than ours."""
    with PIL.Image.open(DATA / "osprey.png") as file:
        photo = file.convert("RGB").resize((24, 32))
    deep = np.asarray(photo).astype(np.uint16) * 257
    rows = deep.astype(">u2").reshape(32, -1).view(np.uint8)
    image = Image(
        deep, deep[..., 0], RGB_PROFILE, exif_block(), XMP, (300.0, 300.0), {"Comment": "Étude"}
    )
    files = {
        "png16": png_bytes(rows, 16, 2),
        "tiff": tiff_bytes(np.asarray(photo)),
        "tiff16": tiff_bytes(deep),
        "tiff lzw": pillow_bytes(photo, "TIFF", compression="tiff_lzw"),
        "tiff float": tiff_bytes(deep.astype(np.float32) / 65535),
        "tiff gray16 with alpha": encode_image(Image(deep[..., 0], deep[..., 1]), "tiff")[0],
        "jpeg progressive": pillow_bytes(photo, "JPEG", quality=90, progressive=True),
        "jpeg cmyk": pillow_bytes(photo.convert("CMYK"), "JPEG"),
        "webp lossless": pillow_bytes(photo, "WEBP", lossless=True),
        "ppm16": b"P6 24 32 65535\n" + rows.tobytes(),
        "ppm plain": b"P3 24 32 255\n" + " ".join(map(str, np.asarray(photo).ravel())).encode(),
        "gif": pillow_bytes(photo.quantize(), "GIF"),
        "apng": pillow_bytes(photo, "PNG", save_all=True, append_images=[photo.rotate(180)]),
        "png palette": pillow_bytes(photo.quantize(), "PNG", transparency=3),
        "heic gray": encode_image(Image(np.asarray(photo.convert("L"))), "heic")[0],
        "jpeg2000": pillow_bytes(photo, "JPEG2000"),
        "tga": pillow_bytes(photo, "TGA"),
        "pcx": pillow_bytes(photo, "PCX"),
    }
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "ppm", "avif", "heic"):
        files[suffix] = encode_image(image, suffix)[0]
    return files


PHOTOS = encoded_photos()


@pytest.mark.parametrize("name", PHOTOS)
def test_truncated_files_are_errors_or_have_all_pixels(name, capfd):
    data = PHOTOS[name]
    whole = read(data)
    assert whole.pixels.shape[:2] == (32, 24)
    for part in (0.01, 0.1, 0.3, 0.5, 0.8, 0.95):
        cut = data[: max(1, int(len(data) * part))]
        try:
            image = read(cut)
        except ImageError:
            continue
        assert image.notes  # of what is missing, which is neither pixels nor alpha
        np.testing.assert_array_equal(image.pixels, whole.pixels)
    if name != "tiff16" or cv2.__version__ >= "5":  # OpenCV 4 prints
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["png", "png16"])
def test_checksums_of_png_count(name):
    data = bytearray(PHOTOS[name])
    for place in (len(data) // 3, len(data) // 2, len(data) - 20):
        data[place] ^= 1
        fails(lambda data=bytes(data): read(data), ImageError, "input")
        data[place] ^= 1
    assert read(bytes(data)).pixels.shape == (32, 24, 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_png_of_whole_chunks_with_too_few_samples(bits, monkeypatch):
    compress = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda rows: compress(rows)[:-2000])
    data = png_bytes(noise((32, 24 * 3 * bits // 8)), bits, 2)
    fails(lambda: read(data), ImageError, "input")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.long)])
def test_mutated_files(count):
    """They give an image or a MambairError, within 10 seconds and 2 GB."""
    script = Path(__file__).parents[1] / "fuzz_images.py"
    run = subprocess.run(
        [sys.executable, script, str(count)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-200:] + run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["name"] for row in rows] == list(PHOTOS)
    assert max(row["slowest"] for row in rows) < 10
    assert max(row["peak"] for row in rows) < 2 * 2**30
    assert min(sum(row.get(word, 0) for row in rows) for word in ("read", "ImageError")) > 5 * len(
        rows
    )
