import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import tifffile
from failing import fails
from pictures import (
    GRAY_PROFILE,
    MAKER_NOTE,
    RGB_PROFILE,
    TEXTS,
    THUMBNAIL,
    WHITE,
    XMP,
    check_exif,
    exif_block,
    exif_facts,
    noise,
    pillow_bytes,
    smooth,
)

from mambair_cli.errors import CallError
from mambair_cli.images import encode as image_encode
from mambair_cli.images.io import (
    OUTPUT_SUFFIXES,
    Image,
    decode_image,
    encode_image,
    read_image,
    write_image,
)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (130, 3)], ids=str)
def test_odd_sizes_and_every_bit(suffix, dtype, channels, size):
    pixels = noise(size if channels < 3 else (*size, 3), dtype)
    alpha = noise(size, dtype, seed=1) if channels in {2, 4} else None
    back = decode_image(encode_image(Image(pixels, alpha), suffix[1:])[0], "")
    if (suffix, dtype) == (".png", "float32"):
        pixels = np.rint(pixels * 65535)
        alpha = None if alpha is None else np.rint(alpha * 65535)
    np.testing.assert_array_equal(back.pixels, pixels)
    if alpha is not None:
        np.testing.assert_array_equal(back.alpha, alpha)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", WHITE)
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_is_read_by_others(monkeypatch, channels, dtype, big, order):
    if big:
        monkeypatch.setattr(image_encode, "MAX_TIFF", 1000)
    pixels = noise((150, 31) if channels < 3 else (150, 31, 3), dtype)  # three strips
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
        return  # Pillow takes this for no TIFF
    check_exif(decode_image(data, "").exif)
    if dtype == "uint8":
        with PIL.Image.open(io.BytesIO(data)) as file:
            assert file.info["dpi"] == (300, 300)
            np.testing.assert_array_equal(
                np.asarray(file), pixels if alpha is None else np.dstack([pixels, alpha])
            )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_png_satisfies_pillow(channels):
    pixels = noise((150, 11, 3) if channels > 2 else (150, 11), "uint16")
    alpha = noise((150, 11), "uint16") if channels in {2, 4} else None
    data, _ = encode_image(
        Image(pixels, alpha, RGB_PROFILE, exif_block(), XMP, (300, 200), TEXTS), "png"
    )
    with PIL.Image.open(io.BytesIO(data)) as file:
        assert file.info["icc_profile"] == RGB_PROFILE
        assert file.info["dpi"] == pytest.approx((300, 200), rel=1e-4)
        assert file.text == TEXTS | {"XML:com.adobe.xmp": XMP.decode()}
        assert exif_facts(file.info["exif"]) == exif_facts(exif_block())
    with PIL.Image.open(io.BytesIO(data)) as file:
        file.verify()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "HEIF"])
def test_exif_of_cameras(format, orientation, order):
    """The picture is turned, EXIF says so, its thumbnail is gone, and the maker note has not moved."""
    block = exif_block(orientation, order)
    data = pillow_bytes(PIL.Image.new("RGB", (64, 48)), format, exif=b"Exif\0\0" + block)
    assert data.count(THUMBNAIL) == 1
    image = decode_image(data, "")
    assert image.pixels.shape == ((64, 48, 3) if orientation == 6 else (48, 64, 3))
    check_exif(image.exif)
    assert image.exif.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    assert image.dpi == (300, 300)
    written, notes = encode_image(image, {"HEIF": "heic"}.get(format, format))
    assert notes == []
    assert THUMBNAIL not in written
    assert image.exif in written
    assert decode_image(written, "").pixels.shape == image.pixels.shape


def test_resolution_goes_into_exif_where_there_is_no_other_place():
    image = Image(noise((32, 32, 3)), dpi=(300, 150.5))
    for suffix in ("webp", "avif", "heic", "tif"):
        data, notes = encode_image(image, suffix)
        assert notes == []
        assert decode_image(data, "").dpi == (300, 150.5)
        data, _ = encode_image(replace(image, exif=exif_block()), suffix)
        assert decode_image(data, "").dpi == (300, 150.5)
    assert "resolution" in encode_image(image, "ppm")[1][0]


def test_what_is_too_long_for_jpeg_is_left_out():
    long = Image(
        noise((8, 8, 3)),
        None,
        None,
        exif_block(thumbnail=False),
        b"x" * 70_000,
        text={"Comment": "y" * 70_000},
    )
    data, notes = encode_image(long, "jpg")
    assert "XMP" in notes[0]
    assert "Comment" in notes[0]
    image = decode_image(data, "")
    assert (image.xmp, image.text) == (None, {})
    check_exif(image.exif)
    assert decode_image(encode_image(long, "png")[0], "").xmp == long.xmp


def test_texts_with_a_tag_of_their_own_go_into_exif():
    texts = {
        "Description": "Brücke",
        "Author": "Ōe",
        "Copyright": "©",
        "Software": "GIMP",
        "Title": "a\nb",
    }
    for suffix in ("jpg", "webp", "tif", "avif", "heic"):
        data, notes = encode_image(Image(noise((32, 32, 3)), text=texts), suffix)
        assert notes == [notes[0]]
        assert "'a" not in notes[0]
        assert "'Title'" in notes[0]
        image = decode_image(data, "")
        main = exif_facts(image.exif)["main"]
        assert [main[tag].encode("latin-1").decode() for tag in (270, 315, 33432, 305)] == [
            *texts.values()
        ][:4]


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_depth_is_reduced_by_rounding_and_said(tmp_path, suffix, dtype):
    path = tmp_path / f"out{suffix}"
    pixels = smooth((16, 24, 3), dtype)
    notes = write_image(path, Image(pixels))
    back = read_image(path).pixels
    if back.dtype == pixels.dtype and suffix not in {".heic", ".heif"}:
        assert notes == []
    else:
        assert len(notes) == 1
        assert str(path) in notes[0]
        assert dtype in notes[0]
    lossy = (
        WHITE[back.dtype.name] * 0.03
        if suffix in {".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif"}
        else 0.502
    )
    exact = pixels.astype(float) / WHITE[dtype] * WHITE[back.dtype.name]
    assert np.abs(back - exact).max() <= lossy


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


def test_jpeg_is_written_without_chroma_subsampling():
    with PIL.Image.open(io.BytesIO(encode_image(Image(noise((32, 32, 3))), "jpg")[0])) as file:
        assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif", "heic"])
def test_quality(tmp_path, suffix):
    image = Image(noise((64, 64, 3)))
    sizes = [len(encode_image(image, suffix, quality)[0]) for quality in (1, 50, None, 100)]
    assert sizes == sorted(set(sizes))
    write_image(tmp_path / f"out.{suffix}", image, quality=1)
    assert (tmp_path / f"out.{suffix}").stat().st_size == sizes[0]


def test_quality_that_makes_no_sense(tmp_path):
    image = Image(noise((4, 4)))
    for quality in (0, 101, -1):
        fails(
            lambda quality=quality: encode_image(image, "jpg", quality),
            CallError,
            "1 to 100",
            str(quality),
        )
    fails(lambda: write_image(tmp_path / "a.jpg", image, quality=0), CallError, "a.jpg", "1 to 100")
    assert "quality" in encode_image(image, "png", 50)[1][0]
