import io

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
        (noise((3, 4, 3), "uint16"), {"BITSPERSAMPLE": (12, 12, 12)}, "12"),
        (noise((3, 4, 2), "float32"), {"EXTRASAMPLES": 2, "PREDICTOR": 3}, "predictor"),
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
