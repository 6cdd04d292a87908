import io
from dataclasses import replace

import PIL.Image
import pytest
from pictures import (
    GRAY_PROFILE,
    MAKER_NOTE,
    RGB_PROFILE,
    THUMBNAIL,
    check_exif,
    exif_block,
    exif_facts,
    noise,
    pillow_bytes,
    smooth,
)

from mambair_cli.images.io import (
    Image,
    decode_image,
    encode_image,
)

SCENE = PIL.Image.fromarray(smooth((6, 9, 3)))


GRAY = SCENE.convert("L")


def read(data, **options):
    return decode_image(data, "input", **options)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"", b"junk", b"II*\0\xff\xff\0\0", b"MM\0*\0\0\0\x08\0\x09\x01\x12"]
)
def test_damaged_exif_is_as_none(format, exif):
    image = read(pillow_bytes(SCENE, format, exif=b"Exif\0\0" + exif))
    assert image.pixels.shape == (6, 9, 3)
    assert image.exif is None
    assert len(image.notes) == (exif != b"")


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


def test_profile_of_another_colour_space_is_left_out():
    assert read(pillow_bytes(GRAY, "PNG", icc_profile=RGB_PROFILE)).icc_profile is None
    assert read(pillow_bytes(SCENE, "PNG", icc_profile=GRAY_PROFILE)).icc_profile is None
    assert read(pillow_bytes(SCENE, "JPEG", icc_profile=RGB_PROFILE)).icc_profile == RGB_PROFILE


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG", "HEIF"])
def test_exif_of_cameras(format, orientation, order):
    """The picture is turned, EXIF says so, its thumbnail is gone, the maker note has not moved."""
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
