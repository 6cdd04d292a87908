import io
import struct

import numpy as np
import PIL.Image
import pillow_heif
import pytest
from pictures import noise, pillow_bytes, png_bytes, smooth
from PIL import ImageCms

from mambair_cli.images import colour, png
from mambair_cli.images.colour import ColourTags, profile, to_srgb
from mambair_cli.images.io import OUTPUT_SUFFIXES, Image, decode_image, encode_image

HDR10, HLG, P3 = (9, 16), (9, 18), (12, 13)
ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
WITH_CICP = {"png", "avif", "heic", "heif"}


def tagged_file(format, cicp, pixels):
    """A file of pixels that names its colours by CICP."""
    if format == "png":
        samples = pixels.reshape(len(pixels), -1)
        return png_bytes(samples, 8, 2, (b"cICP", bytes([*cicp, 0, 1])))
    picture = PIL.Image.fromarray(pixels)
    if format == "heic":
        file = io.BytesIO()
        options = {"color_primaries": cicp[0], "transfer_characteristics": cicp[1]}
        options |= {"matrix_coefficients": 6, "full_range_flag": 1, "quality": 95}
        pillow_heif.from_pillow(picture).save(file, **options)
        return file.getvalue()
    data = pillow_bytes(picture, "AVIF", quality=95, subsampling="4:4:4")
    place = data.index(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", *cicp) + data[place + 4 :]


def converted(pixels, icc_profile):
    """What lcms makes of pixels with a profile: sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
    srgb = ImageCms.createProfile("sRGB")
    picture = PIL.Image.fromarray(pixels)
    return np.asarray(ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB"))


@pytest.mark.parametrize("cicp", [HDR10, HLG, P3], ids=str)
@pytest.mark.parametrize("format", ["png", "avif", "heic"])
def test_cicp_is_carried_or_converted(format, cicp):
    pixels = smooth((32, 48, 3))
    image = decode_image(tagged_file(format, cicp, pixels), "input")
    assert image.colour.cicp == cicp
    wanted = to_srgb(pixels, ColourTags(cicp))
    assert np.abs(wanted.astype(int) - pixels).max() > 10
    for suffix in (suffix[1:] for suffix in OUTPUT_SUFFIXES):
        data, notes = encode_image(image, suffix, 100 if suffix == "jxl" else None)
        back = decode_image(data, "output")
        if suffix in WITH_CICP:
            assert back.colour.cicp == cicp
            assert back.icc_profile is None
            assert notes == []
            np.testing.assert_allclose(back.pixels.astype(int), pixels, atol=12)
        elif cicp == P3 and suffix not in {"bmp", "ppm", "pgm", "jxl"}:
            assert notes == []
            np.testing.assert_allclose(
                converted(back.pixels, back.icc_profile).astype(int), wanted, atol=16
            )
        else:
            assert "converted to sRGB" in notes[0]
            seen = back.pixels
            if suffix == "jxl":
                # Its reader says what sRGB is by a profile of its own.
                seen = converted(seen, back.icc_profile)
            else:
                assert back.icc_profile is None
            np.testing.assert_allclose(seen.astype(int), wanted, atol=16)


def test_srgb_by_cicp_is_nothing_to_tell():
    image = decode_image(tagged_file("avif", (1, 13), smooth((16, 16, 3))), "")
    assert image.colour is None


def test_unknown_cicp_is_said():
    image = Image(noise((8, 8, 3)), colour=ColourTags((77, 99)))
    _, notes = encode_image(image, "jpg")
    assert "77, 99" in notes[0]
    assert "sRGB" in notes[0]
    assert decode_image(encode_image(image, "png")[0], "").colour.cicp == (77, 99)


@pytest.mark.parametrize(
    ("tags", "chunks"),
    [
        (ColourTags(gamma=1.0), [(b"gAMA", struct.pack(">I", 100000))]),
        (ColourTags(gamma=0.35), [(b"gAMA", struct.pack(">I", 35000))]),
        (
            ColourTags(gamma=0.45455, chromaticities=ADOBE),
            [
                (b"gAMA", struct.pack(">I", 45455)),
                (b"cHRM", struct.pack(">8I", *(round(v * 100000) for v in ADOBE))),
            ],
        ),
    ],
    ids=["linear", "g03", "Adobe RGB"],
)
@pytest.mark.parametrize("gray", [False, True])
def test_gamma_and_primaries_of_png(tags, chunks, gray):
    pixels = smooth((24, 32) if gray else (24, 32, 3))
    data = png_bytes(pixels.reshape(24, -1), 8, 0 if gray else 2, *chunks)
    image = decode_image(data, "input")
    assert image.colour == tags
    written, notes = encode_image(image, "png")
    assert notes == []
    found = dict(png.chunks_of(written))
    assert {kind: found.get(kind) for kind, _ in chunks} == dict(chunks)
    wanted = to_srgb(pixels, tags)
    for suffix in ("jpg", "webp", "tif", "avif", "heic", "bmp", "ppm"):
        written, notes = encode_image(image, suffix)
        back = decode_image(written, "output")
        if suffix in {"bmp", "ppm"}:
            assert "converted to sRGB" in notes[0]
            np.testing.assert_array_equal(back.pixels, wanted)
        elif back.icc_profile:
            assert all("gray" in note for note in notes)
            seen = converted(back.pixels, back.icc_profile)
            # lcms works with tables where it starts from gray
            seen = seen[..., 0] if gray else seen
            assert np.abs(seen.astype(int) - wanted)[wanted > 60].max() < 13
        else:
            assert "profile" in notes[-1]


def test_srgb_chunk_is_written_back():
    image = decode_image(png_bytes(noise((4, 12)), 8, 2, (b"sRGB", b"\1")), "")
    assert dict(png.chunks_of(encode_image(image, "png")[0]))[b"sRGB"] == b"\1"
    assert decode_image(encode_image(image, "jpg")[0], "").icc_profile is None


@pytest.mark.parametrize(
    "tags",
    [ColourTags(P3), ColourTags((9, 1)), ColourTags((11, 4)), ColourTags(gamma=1 / 1.8)],
    ids=str,
)
def test_profiles_and_conversion_agree(tags):
    pixels = noise((64, 64, 3))
    seen = converted(pixels, profile(tags, gray=False))
    assert np.abs(seen.astype(int) - to_srgb(pixels, tags)).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_conversion_keeps_types_and_the_ends(dtype):
    white = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    ends = np.array([[[0, 0, 0], [white] * 3]], dtype)
    for tags in (ColourTags(P3), ColourTags(HDR10), ColourTags(HLG), ColourTags(gamma=1.0)):
        result = to_srgb(ends, tags)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, ends, rtol=1e-4, atol=1e-4)


def test_tone_mapping_keeps_the_dark_and_the_order():
    light = np.array([[0.1, 1, 10, 50, 203, 400, 1000]])
    values = colour._pq_of_light(light).astype(np.float32)
    shown = to_srgb(values, ColourTags(HDR10))[0]
    assert np.all(np.diff(shown) > 0)
    # up to a quarter of the white nothing is bent
    np.testing.assert_allclose(
        colour._to_light(shown[:4], colour._SRGB) * 203, light[0, :4], rtol=1e-3
    )
    assert 0.85 < shown[4] < 0.95
    assert shown[-1] == pytest.approx(1, abs=1e-3)
    # 203 candelas are HLG's 75 percent of a display of 1000 (ITU-R BT.2408)
    assert colour._hlg_to_light(np.full((1, 1, 3), 0.75)) == pytest.approx(203, rel=0.01)
