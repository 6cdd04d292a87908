import numpy as np
import pytest
from pictures import RGB_PROFILE, check_exif, exif_block, smooth

from mambair_cli.images import avif
from mambair_cli.images.colour import ColourTags
from mambair_cli.images.image import NO_GAIN_MAP
from mambair_cli.images.io import Image, decode_image, encode_image


@pytest.mark.parametrize(("bits", "seen"), [(0x00, 8), (0x40, 10), (0x60, 12)])
def test_depth_is_read_from_the_head(bits, seen):
    assert avif.depth(b"ftypavif....av1C\x81\x00" + bytes([bits]) + bytes(9)) == seen


def test_exif_with_an_orientation_and_whole_chroma():
    pixels = smooth((32, 48, 3))
    data, notes = encode_image(Image(pixels, exif=exif_block()), "avif")
    assert notes == []
    assert avif.depth(data) == 8
    image = decode_image(data, "")
    check_exif(image.exif)
    np.testing.assert_allclose(image.pixels.astype(int), pixels, atol=9)


def test_gain_map_is_said(monkeypatch):
    data = encode_image(Image(smooth((32, 48, 3))), "avif")[0]
    # the one item is called what makes HDR of two others
    assert avif.describe(data.replace(b"av01", b"tmap", 1))[0] == [NO_GAIN_MAP]
    assert avif.describe(data)[0] == []


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_numbers_replace_a_profile_that_would_go_first(suffix):
    image = Image(smooth((32, 48, 3)), icc_profile=RGB_PROFILE, colour=ColourTags((9, 16)))
    back = decode_image(encode_image(image, suffix)[0], "")
    assert (back.colour, back.icc_profile) == (ColourTags((9, 16)), None)
