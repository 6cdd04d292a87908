import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageCms
from PIL import TiffImagePlugin as tiff

from mambair_cli import image_io
from mambair_cli.errors import CallError, ImageError, MambairError, MemoryLimitError
from mambair_cli.image_io import OUTPUT_SUFFIXES, Image, check_writable, read_image, write_image

DATA = Path(__file__).parent / "data"
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]
CMYK_PROFILE = RGB_PROFILE[:16] + b"CMYK" + RGB_PROFILE[20:]
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}


def noise(shape, dtype="uint8", seed=0):
    """Every bit of every sample counts: equality means that nothing was lost."""
    values = np.random.default_rng(seed).random(shape)
    return (values if dtype == "float32" else values * (WHITE[dtype] + 1)).astype(dtype)


def smooth(shape, dtype="uint8"):
    """A picture that lossy formats keep within a few steps."""
    ramp = np.add.outer(np.linspace(0.1, 0.5, shape[0]), np.linspace(0.0, 0.4, shape[1]))
    if len(shape) == 3:
        ramp = ramp[..., None] * np.array([1.0, 0.8, 0.5])
    return (ramp if dtype == "float32" else (ramp * WHITE[dtype]).round()).astype(dtype)


def pillow_bytes(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_bytes(samples, bits, colour_type, *extra):
    """A PNG of one row per row of bytes in samples (H x bytes), with chunks before IDAT."""
    height, width = (
        samples.shape[0],
        samples.shape[1] * 8 // (bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]),
    )
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    )


def tiff_bytes(samples, order="<", **changed):
    """An uncompressed TIFF; changed: tags by their names in Pillow."""
    height, width, channels = samples.shape
    file, tags = io.BytesIO(), tiff.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    values = {
        "IMAGEWIDTH": width,
        "IMAGELENGTH": height,
        "BITSPERSAMPLE": (samples.itemsize * 8,) * channels,
        "COMPRESSION": 1,
        "PHOTOMETRIC_INTERPRETATION": 2 if channels > 2 else 1,
        "SAMPLESPERPIXEL": channels,
        "ROWSPERSTRIP": height,
        "STRIPOFFSETS": 0,
        "STRIPBYTECOUNTS": samples.nbytes,
        "SAMPLEFORMAT": ({"u": 1, "i": 2, "f": 3}[samples.dtype.kind],) * channels,
    }
    for name, value in (values | changed).items():
        tags[274 if name == "ORIENTATION" else getattr(tiff, name)] = value
    tags.save(file)
    return file.getvalue() + samples.astype(samples.dtype.newbyteorder(order)).tobytes()


@pytest.fixture
def read(tmp_path):
    def read_bytes(data, **options):
        path = tmp_path / "input"
        path.write_bytes(data)
        return read_image(path, **options)

    return read_bytes


def fails(call, error, *words):
    """The call raises error, with one line that has all words."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    for word in words:
        assert word in message
    return message


# Round trips


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "rgb"])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", "uint8"),
        (".png", "uint16"),
        (".tif", "uint8"),
        (".tiff", "uint16"),
        (".tif", "float32"),
        (".ppm", "uint8"),
        (".pgm", "uint16"),
        (".bmp", "uint8"),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 33)], ids=str)
def test_lossless_round_trip(tmp_path, suffix, dtype, channels, alpha, size):
    path = tmp_path / f"out{suffix}"
    keeps_alpha = suffix in {".png", ".tif", ".tiff"}
    pixels = noise(size if channels == 1 else (*size, 3), dtype)
    mask = noise(size, dtype, seed=1) if alpha else None
    if alpha and not keeps_alpha:
        mask = np.full(size, WHITE[dtype], dtype)  # opaque: laying it on white changes nothing
    profile = (GRAY_PROFILE if channels == 1 else RGB_PROFILE) if keeps_alpha else None
    notes = write_image(path, Image(pixels, mask, profile))
    back = read_image(path)
    assert len(notes) == (alpha and not keeps_alpha)
    if path.suffix in {".tif", ".tiff"} and dtype != "uint8" and channels == 1 and alpha:
        pixels, profile = np.dstack([pixels] * 3), None  # written as RGBA, which other programs can read
    assert back.pixels.dtype == dtype
    assert back.pixels.flags.c_contiguous
    np.testing.assert_array_equal(back.pixels, pixels)
    if alpha and keeps_alpha:
        np.testing.assert_array_equal(back.alpha, mask)
    else:
        assert back.alpha is None
    assert back.icc_profile == profile


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "rgb"])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
def test_lossy_round_trip(tmp_path, suffix, channels, alpha):
    pixels = smooth((48, 64) if channels == 1 else (48, 64, 3))
    mask = np.full((48, 64), 200, np.uint8) if alpha else None
    webp = suffix == ".webp"
    notes = write_image(
        tmp_path / f"out{suffix}", Image(pixels, mask, RGB_PROFILE if channels == 3 else None)
    )
    back = read_image(tmp_path / f"out{suffix}")
    if webp and channels == 1:
        pixels = np.dstack([pixels] * 3)  # WebP has no gray
    if alpha and not webp:
        pixels = pixels * (200 / 255) + 55
    assert len(notes) == (alpha and not webp)
    assert back.pixels.shape == pixels.shape
    assert np.abs(back.pixels - pixels.astype(float)).max() <= 7
    assert back.icc_profile == (RGB_PROFILE if channels == 3 else None)
    if alpha and webp:
        np.testing.assert_array_equal(back.alpha, mask)
    else:
        assert back.alpha is None


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_depth_is_reduced_by_rounding_and_said(tmp_path, suffix, dtype):
    path = tmp_path / f"out{suffix}"
    pixels = smooth((16, 24, 3), dtype)
    notes = write_image(path, Image(pixels))
    back = read_image(path).pixels
    if back.dtype == pixels.dtype:
        assert notes == []
    else:
        assert len(notes) == 1
        assert str(path) in notes[0]
        assert str(back.dtype) in notes[0]
    lossy = 7 if suffix in {".jpg", ".jpeg", ".webp"} else 0.502
    exact = pixels.astype(float) / WHITE[dtype] * WHITE[back.dtype.name]
    assert np.abs(back - exact).max() <= lossy


def test_every_16_bit_value_is_rounded_to_the_nearest_of_8_bits(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_image(tmp_path / "out.bmp", Image(values))
    np.testing.assert_array_equal(read_image(tmp_path / "out.bmp").pixels, np.rint(values / 257))


def test_float_beyond_its_range_is_clipped_for_integers(tmp_path):
    write_image(tmp_path / "out.png", Image(np.array([[-0.5, 0.5, 1.5]], np.float32)))
    assert read_image(tmp_path / "out.png").pixels.tolist() == [[0, 32768, 65535]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_alpha_is_laid_on_white(tmp_path, dtype):
    white = WHITE[dtype]
    pixels = np.zeros((1, 3, 3), dtype)
    alpha = np.array([[0, white * 0.4, white]]).astype(dtype)
    notes = write_image(tmp_path / "out.ppm", Image(pixels, alpha, RGB_PROFILE))
    assert [word for word in ("transparency", "profile") if word in " ".join(notes)] == [
        "transparency",
        "profile",
    ]
    back = read_image(tmp_path / "out.ppm").pixels
    np.testing.assert_allclose(back[0, :, 0] / WHITE[back.dtype.name], [1, 0.6, 0], atol=1e-5)


def test_jpeg_is_written_without_chroma_subsampling(tmp_path):
    write_image(tmp_path / "out.jpg", Image(noise((32, 32, 3))))
    with PIL.Image.open(tmp_path / "out.jpg") as file:
        assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "uint16"), (".tif", "uint8")])
def test_own_writers_satisfy_pillow(tmp_path, suffix, dtype, channels):
    pixels = noise((9, 11, 3) if channels > 2 else (9, 11), dtype)
    alpha = noise((9, 11), dtype) if channels in {2, 4} else None
    write_image(tmp_path / f"out{suffix}", Image(pixels, alpha, RGB_PROFILE))
    with PIL.Image.open(tmp_path / f"out{suffix}") as file:
        assert file.info["icc_profile"] == RGB_PROFILE
        if suffix == ".png":
            file.verify()
        elif channels == 3:
            np.testing.assert_array_equal(np.asarray(file), pixels)


def test_photographs_for_the_documentation_are_plain_rgb():
    for name, size in (("photo", (144, 192, 3)), ("osprey", (128, 96, 3)), ("dragonfly", (120, 160, 3))):
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
def test_modes_of_pillow(read, image, format, pixels, alpha):
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
    pixels, alpha = image_io._samples(sources[mode])
    np.testing.assert_allclose(pixels.reshape(6, -1), [(100,) if mode == "La" else colour] * 6, atol=2)
    if mode in {"PA", "La", "RGBa"}:
        assert (alpha == 128).all()
    else:
        assert alpha is None


def test_palette_with_transparency(read):
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
def test_gray_png_with_a_transparent_value(read, bits, row, key, pixels):
    image = read(png_bytes(np.array([row], np.uint8), bits, 0, (b"tRNS", struct.pack(">H", key))))
    assert image.pixels.tolist() == [pixels]
    white = 65535 if bits == 16 else 255
    hidden = key if bits == 16 else key * 255 // (2**bits - 1)
    assert image.alpha.tolist() == [[0 if pixel == hidden else white for pixel in pixels]]
    assert image.alpha.dtype == image.pixels.dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rgb_png_with_a_transparent_colour(read, dtype):
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
def test_deep_tiff(read, dtype, channels, order):
    samples = noise((6, 5, channels), dtype)
    extra = {"EXTRASAMPLES": 2} if channels == 4 else {}
    image = read(tiff_bytes(samples, order, ICCPROFILE=RGB_PROFILE, **extra))
    np.testing.assert_array_equal(image.pixels, samples[..., :3] if channels > 1 else samples[..., 0])
    assert image.pixels.dtype == dtype
    assert image.icc_profile == (RGB_PROFILE if channels > 1 else None)
    if channels == 4:
        np.testing.assert_array_equal(image.alpha, samples[..., 3])
    else:
        assert image.alpha is None


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_tiff_of_other_fourth_channels(read, dtype):
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


def test_tiff_where_white_is_zero(read):
    for samples in (noise((3, 4, 1)), noise((3, 4, 1), "uint16")):
        image = read(tiff_bytes(samples, PHOTOMETRIC_INTERPRETATION=0))
        np.testing.assert_array_equal(image.pixels, WHITE[samples.dtype.name] - samples[..., 0])


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (noise((3, 4, 3), "uint16"), {"PLANAR_CONFIGURATION": 2}),
        (np.full((3, 4, 3), 70_000, np.int32), {}),
        (np.full((3, 4, 3), 2, np.float32), {}),
        (np.full((3, 4, 3), np.nan, np.float32), {}),
        (np.full((3, 4, 1), -1, np.float32), {}),
        (np.full((3, 4, 1), 70_000, np.int32), {}),
        (np.full((3, 4, 1), -1, np.int16), {}),
        (noise((3, 4, 5), "uint16"), {}),
        (noise((3, 4, 3), "uint16"), {"BITSPERSAMPLE": (12, 12, 12)}),
    ],
    ids=[
        "planar",
        "int32",
        "bright",
        "nan",
        "dark gray",
        "gray int32",
        "gray int16",
        "5 channels",
        "12 bits",
    ],
)
def test_tiff_that_would_be_misread_is_refused(read, samples, tags):
    fails(lambda: read(tiff_bytes(samples, **tags)), ImageError, "input")


def test_gray_of_32_bits_within_the_range_of_16(read):
    samples = noise((3, 4), "uint16")
    image = read(pillow_bytes(PIL.Image.fromarray(samples.astype(np.int32)), "TIFF"))
    np.testing.assert_array_equal(image.pixels, samples)
    assert image.pixels.dtype == np.uint16


@pytest.mark.parametrize("maximum", [300, 4095, 65535])
@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_deep_netpbm_of_any_maximum(read, kind, maximum):
    samples = np.random.default_rng(0).integers(0, maximum + 1, (4, 5, 3 if kind in {b"P3", b"P6"} else 1))
    plain = " ".join(map(str, samples.ravel())).encode()
    raster = plain if kind in {b"P2", b"P3"} else samples.astype(">u2").tobytes()
    image = read(kind + b"\n# a comment\n5 4\n%d\n" % maximum + raster)
    assert image.pixels.dtype == np.uint16
    np.testing.assert_allclose(image.pixels, (samples / maximum * 65535).squeeze(), atol=0.5001)


@pytest.mark.parametrize(
    "profile", [None, b"", CMYK_PROFILE, RGB_PROFILE], ids=["none", "empty", "damaged", "rgb"]
)
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_and_loses_its_profile(read, format, profile):
    inks = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    image = read(pillow_bytes(inks, format, **({"icc_profile": profile} if profile else {})))
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[255, 0, 0]] * 256, atol=3)
    assert profile == RGB_PROFILE or image.icc_profile is None


def press_profile():
    """A working CMYK profile of a press whose inks all print the same gray: each one darkens L* by 25."""
    grid = b"".join(
        bytes([255 - 64 * bin(corner).count("1") + (corner == 15), 128, 128]) for corner in range(16)
    )
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table
    return b"".join(
        [
            struct.pack(
                ">I4xI4s4s4s12x4s28x", 128 + len(tags), 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp"
            ),
            struct.pack(">III48x", 0xF6D6, 0x10000, 0xD32D),
            tags,
        ]
    )


def test_cmyk_with_a_working_profile(read):
    inks = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read(pillow_bytes(inks, "JPEG", icc_profile=press_profile()))
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[119] * 3] * 256, atol=3)  # L* 50
    assert image.icc_profile is None


def test_ycck_jpeg(read):
    cyan_magenta_yellow, black = PIL.Image.new("RGB", (16, 16), (20, 200, 120)), 30
    luma = np.asarray(cyan_magenta_yellow.convert("YCbCr"))[0, 0].astype(int)
    # Pillow inverts what it saves as Adobe does; transform 2 in Adobe's marker then declares YCCK.
    data = bytearray(pillow_bytes(PIL.Image.new("CMYK", (16, 16), (*(255 - luma).tolist(), black)), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2
    expected = PIL.Image.new("CMYK", (1, 1), (20, 200, 120, 30)).convert("RGB").getpixel((0, 0))
    np.testing.assert_allclose(read(bytes(data)).pixels[8, 8], expected, atol=4)


def test_lab_becomes_rgb(read):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    red = ImageCms.profileToProfile(PIL.Image.new("RGB", (4, 4), (200, 40, 30)), srgb, lab, outputMode="LAB")
    image = read(pillow_bytes(red, "TIFF"))
    np.testing.assert_allclose(image.pixels.reshape(-1, 3), [[200, 40, 30]] * 16, atol=4)


def test_profile_of_another_colour_space_is_left_out(read):
    assert read(pillow_bytes(GRAY, "PNG", icc_profile=RGB_PROFILE)).icc_profile is None
    assert read(pillow_bytes(SCENE, "PNG", icc_profile=GRAY_PROFILE)).icc_profile is None
    assert read(pillow_bytes(SCENE, "JPEG", icc_profile=RGB_PROFILE)).icc_profile == RGB_PROFILE


def test_first_frame_of_an_animation(read):
    frames = [SCENE, PIL.Image.new("RGB", SCENE.size)]
    for format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        image = read(pillow_bytes(frames[0], format, save_all=True, append_images=frames[1:], **options))
        np.testing.assert_array_equal(image.pixels, np.asarray(SCENE))
    frames = [PIL.Image.new("L", (3, 2), value) for value in (0, 128, 255)]
    assert not read(pillow_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])).pixels.any()


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF deep"])
def test_orientation(read, format, orientation):
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
        image = read(tiff_bytes(samples, EXTRASAMPLES=2, ORIENTATION=orientation))
        seen = seen.astype(np.uint16) * 257
    else:
        exif = PIL.Image.Exif()
        exif[274] = orientation
        options = {"PNG": {}, "JPEG": {"quality": 100}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}}
        picture = PIL.Image.fromarray(np.dstack([stored, alpha]) if has_alpha else stored)
        image = read(pillow_bytes(picture, format, exif=exif, **options[format]))
    assert image.pixels.shape == seen.shape
    np.testing.assert_allclose(image.pixels, seen, atol=4 if format == "JPEG" else 0)
    if has_alpha:
        np.testing.assert_array_equal(image.alpha, seen[..., 0])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("exif", [b"", b"junk", b"II*\0\xff\xff\0\0", b"MM\0*\0\0\0\x08\0\x09\x01\x12"])
def test_damaged_exif_is_as_none(read, format, exif):
    assert read(pillow_bytes(SCENE, format, exif=b"Exif\0\0" + exif)).pixels.shape == (6, 9, 3)


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
def test_no_image(read, tmp_path, data, word):
    fails(lambda: read(data), ImageError, str(tmp_path / "input"), word)


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


def test_pixel_limit(read, monkeypatch):
    width = 30_000  # more than Pillow accepts: 900 megapixels
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    )
    fails(lambda: read(bomb), ImageError, "30000x30000", str(image_io.MAX_PIXELS))
    samples = noise((6, 9, 3), "uint16")
    for data in (pillow_bytes(SCENE, "PNG"), tiff_bytes(samples)):
        fails(lambda data=data: read(data, max_pixels=53), ImageError, "9x6", "53")
        assert read(data, max_pixels=54).pixels.shape == (6, 9, 3)
    # Pillow's own limit does not count, and is left as it was.
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert read(pillow_bytes(SCENE, "PNG")).pixels.shape == (6, 9, 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10


def encoded_photos():
    with PIL.Image.open(DATA / "osprey.png") as file:
        photo = file.convert("RGB").resize((24, 32))
    deep = np.asarray(photo).astype(np.uint16) * 257
    rows = deep.astype(">u2").reshape(32, -1).view(np.uint8)
    return {
        "png": pillow_bytes(photo, "PNG"),
        "png16": png_bytes(rows, 16, 2),
        "jpeg": pillow_bytes(photo, "JPEG", quality=90),
        "tiff": tiff_bytes(np.asarray(photo)),
        "tiff16": tiff_bytes(deep),
        "tiff packed": image_io._encode_tiff(deep, RGB_PROFILE),
        "tiff8 packed": image_io._encode_tiff(np.asarray(photo), RGB_PROFILE),
        "webp": pillow_bytes(photo, "WEBP"),
        "bmp": pillow_bytes(photo, "BMP"),
        "ppm": pillow_bytes(photo, "PPM"),
        "ppm16": b"P6 24 32 65535\n" + rows.tobytes(),
        "gif": pillow_bytes(photo.quantize(), "GIF"),
    }


PHOTOS = encoded_photos()


@pytest.mark.parametrize("name", PHOTOS)
def test_truncated_files_are_errors(read, name, capfd):
    data = PHOTOS[name]
    assert read(data).pixels.shape == (32, 24, 3)
    for part in (0.01, 0.1, 0.3, 0.5, 0.8, 0.95):
        fails(lambda part=part: read(data[: max(1, int(len(data) * part))]), ImageError, "input")
    if name != "tiff16" or image_io.cv2.__version__ >= "5":  # OpenCV 4 prints
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["png", "png16"])
def test_checksums_of_png_count(read, name):
    data = bytearray(PHOTOS[name])
    for place in (len(data) // 3, len(data) // 2, len(data) - 20):
        data[place] ^= 1
        fails(lambda data=bytes(data): read(data), ImageError, "input")
        data[place] ^= 1
    assert read(bytes(data)).pixels.shape == (32, 24, 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_png_of_whole_chunks_with_too_few_samples(read, bits, monkeypatch):
    compress = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda rows: compress(rows)[:-2000])
    data = png_bytes(noise((32, 24 * 3 * bits // 8)), bits, 2)
    fails(lambda: read(data), ImageError, "input")


@pytest.mark.parametrize("name", PHOTOS)
def test_flipped_bytes_give_an_image_or_an_error(name, tmp_path):
    path = tmp_path / "input"

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4), st.booleans()
    )
    def flip(flips, early):
        data = bytearray(PHOTOS[name])
        for place, bits in flips:
            data[place % (min(200, len(data)) if early else len(data))] ^= bits
        path.write_bytes(data)
        with contextlib.suppress(ImageError):
            read_image(path, max_pixels=100_000)

    flip()


# Writing


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "replaced"])
@pytest.mark.parametrize("place", ["open", "replace", "encode", "interrupt"])
def test_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, existing, place):
    path = tmp_path / "out.png"
    if existing:
        path.write_bytes(existing)

    def refuse(*arguments, **options):
        raise KeyboardInterrupt if place == "interrupt" else OSError(28, "No space left on device")

    class FullDisk(io.FileIO):
        write = refuse

    if place == "open":
        monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    elif place == "encode":
        monkeypatch.setattr(PIL.Image.Image, "save", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    if place == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            write_image(path, Image(noise((4, 4))))
    else:
        fails(lambda: write_image(path, Image(noise((4, 4)))), ImageError, "out.png", "No space left")
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["out.png"] if existing else [])
    if existing:
        assert path.read_bytes() == existing


def test_permissions(tmp_path):
    path = tmp_path / "out.png"
    previous = os.umask(0o027)
    try:
        write_image(path, Image(noise((4, 4))))
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o606)
        write_image(path, Image(noise((5, 5))))
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o606
    assert read_image(path).pixels.shape == (5, 5)


def test_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable(Path("out.png"))
    write_image(Path("out.png"), Image(noise((4, 4))))
    np.testing.assert_array_equal(read_image(Path("out.png")).pixels, noise((4, 4)))


@pytest.mark.parametrize("dangling", [False, True])
def test_link_is_written_through(tmp_path, dangling):
    target, link = tmp_path / "there" / "target.png", tmp_path / "link.png"
    target.parent.mkdir()
    if not dangling:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write_image(link, Image(noise((4, 4))))
    assert link.is_symlink()
    np.testing.assert_array_equal(read_image(target).pixels, noise((4, 4)))


def test_check_writable(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "old.png").write_bytes(b"old")
    for name, error, words in (
        ("out.xyz", CallError, [".xyz", *OUTPUT_SUFFIXES]),
        ("out", CallError, ["''", ".png"]),
        ("folder.png", CallError, ["folder.png", "is a folder"]),
        ("none/out.png", CallError, ["none", "no folder"]),
        ("file/out.png", CallError, ["no folder"]),
        ("null.png", CallError, ["regular"]),
        ("loop.png", ImageError, ["loop.png"]),
        ("x" * 300 + ".png", ImageError, ["File name too long"]),
    ):
        if name == "loop.png":
            with contextlib.suppress(
                ImageError
            ):  # from Python 3.13 on, a loop is replaced like a dangling link
                check_writable(tmp_path / name)
            continue
        fails(lambda name=name: check_writable(tmp_path / name), error, *words)
        fails(lambda name=name: write_image(tmp_path / name, Image(noise((4, 4)))), error, *words)
    before = sorted((entry.name, entry.lstat().st_mtime_ns) for entry in tmp_path.iterdir())
    check_writable(tmp_path / "new.PNG")
    check_writable(tmp_path / "old.png")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "old.png")
    fails(lambda: check_writable(tmp_path / "old.png"), ImageError, "write-protected")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails(lambda: check_writable(tmp_path / "new.png"), ImageError, "permission", str(tmp_path))
    assert sorted((entry.name, entry.lstat().st_mtime_ns) for entry in tmp_path.iterdir()) == before


def test_size_limits_of_formats(tmp_path):
    for suffix, limit in ((".webp", 16383), (".jpg", 65500)):
        path = tmp_path / f"out{suffix}"
        write_image(path, Image(np.zeros((1, limit), np.uint8)))
        check_writable(path, (1, limit))
        fails(lambda path=path, limit=limit: check_writable(path, (limit + 1, 1)), CallError, str(limit))
        large = Image(np.zeros((1, limit + 1), np.uint8))
        fails(lambda path=path, large=large: write_image(path, large), CallError, str(limit))


def test_image_refuses_what_is_none():
    good = noise((4, 5))
    for pixels, alpha in (
        (good.astype(np.float64), None),
        (noise((4, 5, 4)), None),
        (noise(4), None),
        (good, noise((5, 4))),
        (good, noise((4, 5), "uint16")),
    ):
        with pytest.raises(ValueError, match="pixels"):
            Image(pixels, alpha)
    assert issubclass(ImageError, MambairError)
