import io
import struct
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
from pictures import (
    CMYK_PROFILE,
    GRAY_PROFILE,
    MAKER_NOTE,
    RGB_PROFILE,
    THUMBNAIL,
    XMP,
    check_exif,
    exif_block,
    exif_facts,
    noise,
    pillow_bytes,
    png_bytes,
    smooth,
)

from mambair_cli.images import exif
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


def camera_block(order):
    """EXIF with sizes: ImageWidth and ImageLength, PixelXDimension and PixelYDimension."""
    width, height = (exif.integers(order, side) for side in (32, 24))
    inner = {40962: width, 40963: height, 36867: exif.text("2024:05:06 07:08:09")}
    entries = {256: width, 257: height, 34665: exif.Entry(4, inner), 271: exif.text("X")}
    return exif.joined(order, entries)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_in_exif_are_those_of_the_result(order, orientation):
    block = exif.parse(camera_block(order))
    block.entries[274] = exif.integers(order, orientation)
    stored = b"Exif\0\0" + exif.joined(order, block.entries)
    data = pillow_bytes(PIL.Image.fromarray(smooth((24, 32, 3))), "JPEG", exif=stored)
    image = decode_image(data, "")
    large = replace(image, pixels=np.repeat(np.repeat(image.pixels, 2, 0), 2, 1))
    height, width = (48, 64) if orientation == 1 else (64, 48)
    for suffix in ("jpg", "png", "webp", "tif"):
        facts = exif_facts(decode_image(encode_image(large, suffix)[0], "").exif)
        seen = [facts["exif"][tag] for tag in (40962, 40963)]
        if suffix != "tif":
            seen += [facts["main"][tag] for tag in (256, 257)]
        assert set(zip(seen[::2], seen[1::2], strict=True)) == {(width, height)}
        assert facts["main"][271] == "X"


XMP_SIZES = (
    b'<rdf:Description tiff:ImageWidth="32" tiff:ImageLength="24" GPano:FullPanoWidthPixels="64"'
    b' GPano:FullPanoHeightPixels="32" GPano:CroppedAreaImageWidthPixels="32"'
    b' GPano:CroppedAreaImageHeightPixels="24" GPano:CroppedAreaLeftPixels="16"'
    b' GPano:PoseHeadingDegrees="90"><exif:PixelXDimension>32</exif:PixelXDimension>'
    b"<GPano:CroppedAreaTopPixels>4</GPano:CroppedAreaTopPixels></rdf:Description>"
)


def test_sizes_in_xmp_are_those_of_the_result():
    data = pillow_bytes(PIL.Image.fromarray(smooth((24, 32, 3))), "JPEG", xmp=XMP_SIZES)
    image = decode_image(data, "")
    large = replace(image, pixels=np.repeat(np.repeat(image.pixels, 2, 0), 3, 1))
    xmp = decode_image(encode_image(large, "png")[0], "").xmp
    assert xmp == (
        b'<rdf:Description tiff:ImageWidth="96" tiff:ImageLength="48" GPano:FullPanoWidthPixels="192"'
        b' GPano:FullPanoHeightPixels="64" GPano:CroppedAreaImageWidthPixels="96"'
        b' GPano:CroppedAreaImageHeightPixels="48" GPano:CroppedAreaLeftPixels="48"'
        b' GPano:PoseHeadingDegrees="90"><exif:PixelXDimension>96</exif:PixelXDimension>'
        b"<GPano:CroppedAreaTopPixels>8</GPano:CroppedAreaTopPixels></rdf:Description>"
    )


def test_metadata_of_jpeg_2000():
    block = exif_block()
    data = pillow_bytes(SCENE, "JPEG2000")
    boxes = b"".join(
        struct.pack(">I", 24 + len(content)) + b"uuid" + mark + content
        for mark, content in (
            (b"JpgTiffExif->JP2", block),
            (bytes.fromhex("be7acfcb97a942e89c71999491e3afac"), XMP),
        )
    )
    place = data.index(b"jp2c") - 4
    image = decode_image(data[:place] + boxes + data[place:], "")
    check_exif(image.exif)
    assert image.xmp == XMP


def test_metadata_of_psd():
    def resource(kind, content):
        head = b"8BIM" + struct.pack(">HHI", kind, 0, len(content))
        return head + content + bytes(len(content) % 2)

    dpi = struct.pack(">IHHIHH", 300 << 16, 1, 1, 300 << 16, 1, 1)
    resources = resource(1005, dpi) + resource(1058, exif_block()) + resource(1060, XMP)
    resources += resource(0x404, b"\x1c\x02\x78\0\1A")
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 6, 9, 8, 3)
    parts = [head, bytes(4), struct.pack(">I", len(resources)), resources, bytes(4), bytes(2)]
    samples = np.asarray(SCENE).transpose(2, 0, 1).tobytes()
    image = decode_image(b"".join([*parts, samples]), "")
    np.testing.assert_array_equal(image.pixels, np.asarray(SCENE))
    check_exif(image.exif)
    assert image.xmp == XMP
    assert image.iptc == b"\x1c\x02\x78\0\1A"
    assert image.dpi == (300, 300)


def test_xmp_of_gif():
    data = pillow_bytes(SCENE.quantize(), "GIF")
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    block = b"\x21\xff\x0bXMP DataXMP" + XMP + trailer
    place = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    assert decode_image(data[:place] + block + data[place:], "").xmp == XMP


def test_what_is_lost_of_a_file_is_said():
    deep = PIL.Image.fromarray(noise((6, 9)))
    data = bytearray(pillow_bytes(deep, "SGI", bpc=2))
    assert "16 bits" in decode_image(bytes(data), "").notes[0]
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Comment", "one")
    text.add_text("Comment", "two")
    image = decode_image(pillow_bytes(SCENE, "PNG", pnginfo=text), "")
    assert "'Comment'" in image.notes[0]
    rows = np.asarray(SCENE).reshape(6, -1)
    shape = (b"pHYs", struct.pack(">IIB", 2, 1, 0))
    assert "pHYs" in decode_image(png_bytes(rows, 8, 2, shape), "").notes[0]
    wrong = decode_image(pillow_bytes(SCENE, "JPEG", icc_profile=CMYK_PROFILE), "")
    assert "profile" in wrong.notes[0]


def test_the_profile_of_a_gif_file_is_kept():
    data = pillow_bytes(PIL.Image.fromarray(noise((4, 6, 3))), "GIF")
    # no longer than 255 bytes each, behind the global palette
    parts = [RGB_PROFILE[start : start + 255] for start in range(0, len(RGB_PROFILE), 255)]
    stored = b"".join(bytes([len(part)]) + part for part in parts)
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    extension = b"\x21\xff\x0bICCRGBG1012" + stored + b"\0"
    image = decode_image(data[:place] + extension + data[place:], "")
    assert image.icc_profile == RGB_PROFILE
    assert image.notes == ()
