import importlib.util
import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
from failing import fails
from pictures import (
    GRAY_PROFILE,
    MAKER_NOTE,
    RGB_PROFILE,
    WHITE,
    XMP,
    check_exif,
    exif_block,
    noise,
    pillow_bytes,
    smooth,
    tiff_bytes,
)

from mambair_cli.errors import ImageError
from mambair_cli.images import tiff
from mambair_cli.images.io import (
    Image,
    decode_image,
    encode_image,
)


def read(data, **options):
    return decode_image(data, "input", **options)


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


@pytest.mark.parametrize(
    ("samples", "tags", "word"),
    [
        (np.full((3, 4, 3), 70_000, np.int32), {}, "65535"),
        (np.full((3, 4, 1), 70_000, np.int32), {}, "65535"),
        (np.full((3, 4, 1), -1, np.int16), {}, "65535"),
        (np.full((3, 4, 3), np.nan, np.float32), {}, "NaN"),
        (np.full((3, 4, 1), np.inf, np.float32), {}, "infinite"),
        (np.full((3, 4, 1), 1e300, np.float64), {}, "infinite"),
        (noise((3, 4, 5), "uint16"), {}, "5 samples"),
        (
            noise((3, 4, 3), "uint16"),
            {"PLANAR_CONFIGURATION": 2},
            "damaged",
            # but one strip for three planes
        ),
    ],
    ids=[
        "int32",
        "gray int32",
        "int16",
        "nan",
        "inf",
        "float64",
        "5 channels",
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


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_is_read_by_others(monkeypatch, channels, dtype, big, order):
    if big:
        monkeypatch.setattr(tiff, "MAX_CLASSIC", 1000)
    # three strips
    pixels = noise((150, 31) if channels < 3 else (150, 31, 3), dtype)
    alpha = noise((150, 31), dtype, seed=1) if channels in {2, 4} else None
    image = Image(
        pixels,
        alpha,
        RGB_PROFILE if channels > 2 else GRAY_PROFILE,
        exif_block(order=order),
        XMP,
        (300, 300),
    )
    data, notes = encode_image(image, "tiff")
    assert notes == []
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert file.is_bigtiff == big
        np.testing.assert_array_equal(
            page.asarray(), pixels if alpha is None else np.dstack([pixels, alpha])
        )
        assert page.tags[700].value == XMP
        assert page.tags[34675].value == image.icc_profile
        assert page.tags[315].value == "José"
        assert page.tags["ExifTag"].value["MakerNote"] == MAKER_NOTE
        assert page.tags["GPSTag"].value["GPSLatitudeRef"] == "N"
        assert page.get_resolution("inch") == (300, 300)
    if dtype == "uint8" and big and order == ">":
        # Pillow takes this for no TIFF
        return
    check_exif(decode_image(data, "").exif)
    if dtype == "uint8":
        with PIL.Image.open(io.BytesIO(data)) as file:
            assert file.info["dpi"] == (300, 300)
            np.testing.assert_array_equal(
                np.asarray(file), pixels if alpha is None else np.dstack([pixels, alpha])
            )


def written(samples, **options):
    """A file of tifffile's."""
    file = io.BytesIO()
    kind = "rgb" if samples.ndim == 3 else "minisblack"
    tifffile.imwrite(file, samples, **{"photometric": kind, "metadata": None} | options)
    return file.getvalue()


needs_codecs = pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is None, reason="needs imagecodecs"
)


@needs_codecs
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("compression", ["zstd", "lzma", "lerc", "lzw", "packbits"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_compressions(dtype, compression, planes):
    samples = noise((20, 30, 3), dtype)
    stored = samples if planes == "contig" else np.moveaxis(samples, -1, 0)
    data = written(stored, compression=compression, planarconfig=planes)
    np.testing.assert_array_equal(read(data).pixels, samples)


@needs_codecs
@pytest.mark.parametrize("predictor", [2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_predictors(predictor, channels):
    samples = noise((20, 30, channels), "uint16" if predictor == 2 else "float32")
    options = {"extrasamples": ["unassalpha"]} if channels in {2, 4} else {}
    options |= {"photometric": "rgb" if channels > 2 else "minisblack"}
    stored = samples if channels > 1 else samples[..., 0]
    data = written(
        stored, compression="zlib", predictor=predictor, planarconfig="contig", **options
    )
    image = read(data)
    np.testing.assert_array_equal(
        image.pixels, samples[..., :3] if channels > 2 else samples[..., 0]
    )


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_bits_between_8_and_16(bits, deflated):
    samples = noise((20, 30, 3), "uint16") >> (16 - bits)
    row = samples.reshape(20, -1, 1) >> np.arange(bits)[::-1] & 1
    packed = np.packbits(row.reshape(20, -1).astype(np.uint8), axis=1)
    compressed = zlib.compress(packed.tobytes()) if deflated else packed.tobytes()
    tags = {"BITSPERSAMPLE": (bits,) * 3, "COMPRESSION": 8 if deflated else 1}
    tags |= {"STRIPBYTECOUNTS": len(compressed)}
    data = tiff_bytes(samples, **tags)
    data = data[: len(data) - samples.nbytes] + compressed
    wanted = samples.astype(float) / (2**bits - 1) * 65535
    assert np.abs(read(data).pixels - wanted).max() <= 0.51


def test_compression_without_its_package(monkeypatch):
    samples = noise((20, 30, 3), "uint16")
    data = bytearray(tiff_bytes(samples))
    # COMPRESSION: LERC, which OpenCV does not read either
    place = data.index(struct.pack("<HHI", 259, 3, 1))
    struct.pack_into("<H", data, place + 8, 34887)
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", None)
    tifffile.TIFF.DECOMPRESSORS._codecs.pop(34887, None)
    fails(lambda: read(bytes(data)), ImageError, "input", "mambair[codecs]")


def test_kinds_that_cannot_be_read_are_not_called_damaged():
    for samples, tags in (
        (noise((3, 4, 5), "uint16"), {}),
        (noise((3, 4, 3), "uint16"), {"PHOTOMETRIC_INTERPRETATION": 6}),
        (noise((3, 4, 1), "uint16"), {"PHOTOMETRIC_INTERPRETATION": 32844}),
    ):
        line = fails(
            lambda s=samples, t=tags: read(tiff_bytes(s, **t)), ImageError, "cannot be read"
        )
        assert "damaged" not in line


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_orders_and_bigtiff(dtype, order, big):
    samples = noise((6, 5, 3), dtype)
    data = written(samples, byteorder=order, bigtiff=big)
    np.testing.assert_array_equal(read(data).pixels, samples)


@pytest.mark.parametrize("white", [255, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_of_another_white_are_scaled_and_that_is_said(white, channels):
    samples = noise((8, 9, channels), "float32") * white
    image = read(tiff_bytes(samples))
    np.testing.assert_allclose(image.pixels, samples.squeeze() / white, rtol=1e-6)
    assert f"0..{white}" in image.notes[0]
    back = read(encode_image(image, "png")[0])
    np.testing.assert_allclose(back.pixels, samples.squeeze() / white * 65535, atol=0.6)


def test_floats_whose_white_cannot_be_told_are_refused():
    fails(lambda: read(tiff_bytes(noise((8, 9, 3), "float32") * 1e6)), ImageError, "white")


def test_light_beyond_white_is_kept_in_files_of_floats_and_clipped_elsewhere():
    samples = noise((8, 9, 3), "float32")
    samples[0, 0] = 100
    image = read(tiff_bytes(samples))
    np.testing.assert_array_equal(image.pixels, samples)
    assert encode_image(image, "tif")[1] == []
    assert "clipped" in " ".join(encode_image(image, "png")[1])


def test_white_is_zero_of_every_type():
    for dtype in ("uint8", "uint16", "float32"):
        samples = noise((3, 4, 1), dtype)
        image = read(tiff_bytes(samples, PHOTOMETRIC_INTERPRETATION=0))
        np.testing.assert_allclose(image.pixels, WHITE[dtype] - samples[..., 0], rtol=1e-6)
        assert image.pixels.dtype == dtype


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_signed_samples_are_stretched_and_that_is_said(dtype, channels):
    top = np.iinfo(dtype).max
    samples = (noise((6, 5, channels), "float32") * (top + 1)).astype(dtype)
    image = read(tiff_bytes(samples))
    white = WHITE[image.pixels.dtype.name]
    assert white == (255 if dtype == "int8" else 65535)
    assert np.abs(image.pixels - samples.squeeze() / top * white).max() <= 0.51
    assert f"0..{top}" in image.notes[0]
    samples[0, 0] = -1
    fails(lambda: read(tiff_bytes(samples)), ImageError, "65535")


@pytest.mark.parametrize("channels", [1, 3])
def test_unsigned_samples_of_32_bits(channels):
    samples = (noise((6, 5, channels), "float32").astype(float) * 2**32).astype(np.uint32)
    image = read(tiff_bytes(samples))
    np.testing.assert_array_equal(image.pixels, samples.squeeze() >> 16)
    assert "32 bits" in image.notes[0]


@pytest.mark.parametrize("photometric", [8, 9], ids=["CIE", "ICC"])
@pytest.mark.parametrize("bits", [8, 16])
def test_lab_becomes_rgb(photometric, bits):
    lab = np.array([[[50, 0, 0], [100, 0, 0], [53.24, 80.09, 67.2], [0, 0, 0]]])
    # the red of sRGB has these coordinates at D50, nearly
    lab[0, 2] = [54.29, 80.81, 69.89]
    one = 1 if bits == 8 else 256
    stored = np.rint(lab * [2.55 if bits == 8 else 655.35, one, one])
    stored[..., 1:] += 128 * one if photometric == 9 else 0
    stored = (stored % 2**bits).astype(f"u{bits // 8}")
    image = read(tiff_bytes(stored, PHOTOMETRIC_INTERPRETATION=photometric))
    wanted = [[119] * 3, [255] * 3, [255, 0, 0], [0] * 3]
    seen = image.pixels[0] / WHITE[image.pixels.dtype.name] * 255
    np.testing.assert_allclose(seen, wanted, atol=6)
    assert image.notes == ("input: its LAB colours become RGB",)


def raw_file(**tags):
    """A TIFF file as cameras write it: a thumbnail, and elsewhere what counts."""
    return tiff_bytes(noise((8, 8, 3)), **tags)


def sensor_file():
    """A TIFF file of the samples of a sensor, with a preview behind them."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(noise((8, 8), "uint16"), photometric="cfa")
        writer.write(noise((4, 4, 3)), photometric="rgb")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        raw_file(_254=1, _330=8),
        raw_file(_50706=b"\1\4\0\0"),
        b"II*\0\x10\0\0\0CR\2\0" + raw_file()[12:],
        b"IIU\0" + bytes(99),
        b"FUJIFILMCCD-RAW 0201" + bytes(99),
        b"\0\0\0\x18ftypcrx " + bytes(99),
        b"IIRO\x08\0\0\0" + bytes(99),
        b"II\x1a\0\0\0HEAPCCDR" + bytes(99),
        b"IIII" + bytes(99),
        sensor_file(),
    ],
    ids=["NEF", "DNG", "CR2", "RW2", "RAF", "CR3", "ORF", "CRW", "IIQ", "PEF"],
)
def test_camera_raw_is_refused(data):
    fails(lambda: read(data), ImageError, "input", "camera raw: export it as TIFF first")


@pytest.mark.parametrize("compression", ["webp", "lerc", "jpeg2000", "jpegxl"])
def test_eight_bits_in_kinds_that_pillow_does_not_know(compression):
    pixels = smooth((32, 48, 3))
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb", compression=compression)
    seen = read(file.getvalue()).pixels
    assert seen.dtype == np.uint8
    np.testing.assert_allclose(seen.astype(int), pixels, atol=9)


def test_eight_bits_multiplied_by_alpha():
    alpha = np.array([[0, 51, 102, 255]], np.uint8)
    pixels = np.array([[[9] * 3, [51] * 3, [51] * 3, [7] * 3]], np.uint8)
    file = io.BytesIO()
    options = {"photometric": "rgb", "extrasamples": ["assocalpha"], "compression": "lerc"}
    tifffile.imwrite(file, np.dstack([pixels, alpha]), **options)
    image = read(file.getvalue())
    assert image.pixels.dtype == image.alpha.dtype == np.uint8
    assert image.pixels[0, 1:, 0].tolist() == [255, 128, 7]


@pytest.mark.parametrize("first_frame", [False, True])
def test_a_smaller_copy_before_the_picture(first_frame):
    small, pixels = noise((4, 6, 3)), noise((8, 12, 3))
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(small, photometric="rgb", subfiletype=1)
        writer.write(pixels, photometric="rgb")
    image = read(file.getvalue(), first_frame=first_frame)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (image.notes, image.frames) == ((), None)


def test_pages_of_every_size_depth_and_kind():
    pages = [
        noise((4, 6), "uint16"),
        noise((8, 5, 3)),
        noise((3, 3), "float32"),
        noise((4, 4, 3), "float32"),
        noise((7, 2)),
    ]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, page in enumerate(pages):
            photometric = "rgb" if page.ndim == 3 else "minisblack"
            text = f"page {number}"
            writer.write(page, photometric=photometric, description=text, resolution=(99, 99))
    image = read(file.getvalue())
    back = decode_image(encode_image(image, "tiff")[0], "")
    for seen in (image, back):
        for page, wanted in zip((seen, *seen.frames.images), pages, strict=True):
            np.testing.assert_array_equal(page.pixels, wanted)


@pytest.mark.parametrize("compression", [6, 32766, 32809, 34676])
def test_rare_compressions_are_a_kind_and_not_damage(compression):
    file = io.BytesIO()
    PIL.Image.new("L", (8, 8)).save(file, "tiff")
    data = bytearray(file.getvalue())
    # the tag of the compression, its type (short), and how many there are
    place = data.index(struct.pack("<HHI", 259, 3, 1)) + 8
    data[place : place + 2] = struct.pack("<H", compression)
    fails(lambda: decode_image(bytes(data), "input"), ImageError, "of a kind that cannot be read")
