import hashlib
import io
import struct

import numpy as np
import PIL.Image
import pytest
from pictures import XMP, exif_block, noise, pillow_bytes, smooth
from PIL.MpoImagePlugin import MpoImageFile

from mambair_cli.images import jpeg
from mambair_cli.images.image import NO_GAIN_MAP
from mambair_cli.images.io import Image, decode_image, encode_image

PICTURE = PIL.Image.fromarray(smooth((24, 32, 3)))
IPTC = b"\x1c\x02\x78\0\x07Caption" + b"\x1c\x02\x74\0\x0b(c) Someone"
PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
    b' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">%s</rdf:RDF></x:xmpmeta>'
)
GAIN_MAP = PACKET % (
    b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    b' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
    b' xmlns:Item="http://ns.google.com/photos/1.0/container/item/"'
    b' xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg"><Container:Directory>'
    b'<rdf:Seq><rdf:li><Container:Item Item:Semantic="Primary"/></rdf:li><rdf:li>'
    b'<Container:Item Item:Semantic="GainMap" Item:Length="99"/></rdf:li></rdf:Seq>'
    b"</Container:Directory></rdf:Description>"
)
VIDEO = PACKET % (
    b'<rdf:Description xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"'
    b' GCamera:MicroVideo="1" GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="99"'
    b' GCamera:Kept="yes"><GCamera:MotionPhotoVersion>1</GCamera:MotionPhotoVersion>'
    b"</rdf:Description>"
)


def with_segments(data, *segments):
    parts = [struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments]
    return b"".join([data[:2], *parts, data[2:]])


def resource(kind, content):
    head = b"8BIM" + struct.pack(">HH", kind, 0)
    return head + struct.pack(">I", len(content)) + content + bytes(len(content) % 2)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_iptc_is_kept(suffix):
    resources = b"Photoshop 3.0\0" + resource(1005, bytes(16)) + resource(0x404, IPTC)
    image = decode_image(with_segments(pillow_bytes(PICTURE, "JPEG"), (0xED, resources)), "")
    assert image.iptc == IPTC
    data, notes = encode_image(image, suffix)
    assert notes == []
    assert decode_image(data, "").iptc == IPTC
    with PIL.Image.open(io.BytesIO(data)) as file:
        assert (
            file.info["photoshop"][0x404] == IPTC if suffix == "jpg" else file.tag_v2[33723] == IPTC
        )


def test_iptc_that_cannot_be_kept_is_said():
    assert "IPTC" in encode_image(Image(noise((4, 4)), iptc=IPTC), "webp")[1][-1]


def long_packet():
    """XMP of a hundred kilobytes."""
    return PACKET % (b"<rdf:Description><dc:list>%s</dc:list></rdf:Description>" % (b"x" * 100_000))


def extended(packet, part=65400):
    """Segments of a short packet, and of a long one that it points at."""
    guid = hashlib.md5(packet).hexdigest().upper().encode()
    short = PACKET % (
        b'<rdf:Description xmlns:xmpNote="http://ns.adobe.com/xmp/note/" dc:title="Short"'
        b' xmpNote:HasExtendedXMP="%s"/>' % guid
    )
    segments = [(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + short)]
    for start in range(0, len(packet), part):
        head = guid + struct.pack(">II", len(packet), start)
        body = b"http://ns.adobe.com/xmp/extension/\0" + head + packet[start : start + part]
        segments.append((0xE1, body))
    return segments


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_extended_xmp_is_kept(suffix):
    data = with_segments(pillow_bytes(PICTURE, "JPEG"), *extended(long_packet()))
    image = decode_image(data, "")
    assert image.notes == ()
    written, notes = encode_image(image, suffix)
    assert notes == []
    back = decode_image(written, "").xmp
    for word in (b'dc:title="Short"', b"x" * 100_000):
        assert word in back
    assert b"HasExtendedXMP" not in back
    if suffix == "jpg":
        assert b"HasExtendedXMP" in written
        bodies = [body for kind, body in jpeg.segments(written) if kind == 0xE1]
        parts = [body for body in bodies if body.startswith(b"http://ns.adobe.com/xmp/ext")]
        assert (
            hashlib.md5(b"".join(body[75:] for body in parts)).hexdigest().upper().encode()
            in (parts[0][35:67])
        )


def test_extended_xmp_that_is_incomplete_is_said():
    data = with_segments(pillow_bytes(PICTURE, "JPEG"), *extended(long_packet())[:2])
    image = decode_image(data, "input")
    assert image.notes == ("input: its extended XMP is incomplete: left out",)
    assert b"HasExtendedXMP" not in image.xmp
    assert b"Short" in image.xmp


def test_gain_map_is_left_out_and_no_longer_claimed():
    """An Ultra HDR file: a second JPEG behind the first, of which XMP tells."""
    first = pillow_bytes(PICTURE, "JPEG", xmp=GAIN_MAP)
    image = decode_image(first + pillow_bytes(PICTURE.convert("L"), "JPEG"), "input")
    assert len(image.notes) == 1
    assert "gain map" in image.notes[0]
    assert b'dc:format="image/jpeg"' in image.xmp
    for word in (b"hdrgm", b"Container", b"GainMap"):
        assert word not in image.xmp
    assert b"hdrgm" not in encode_image(image, "jpg")[0]


def test_gain_map_by_its_standard_and_as_mpo():
    second = PIL.Image.fromarray(noise((12, 16)))
    mpo = pillow_bytes(PICTURE, "MPO", save_all=True, append_images=[second])
    image = decode_image(
        with_segments(mpo, (0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(8))), ""
    )
    assert len(image.notes) == 1
    assert "gain map" in image.notes[0]


def test_motion_photo_is_left_out_and_no_longer_claimed():
    data = pillow_bytes(PICTURE, "JPEG", xmp=VIDEO) + b"\0\0\0\x18ftypmp42" + bytes(99)
    image = decode_image(data, "input")
    assert len(image.notes) == 1
    assert "video" in image.notes[0]
    assert b"MicroVideo" not in image.xmp
    assert b"MotionPhoto" not in image.xmp
    assert b'GCamera:Kept="yes"' in image.xmp
    assert b"xmlns:GCamera" in image.xmp


def test_chroma_is_whole():
    with PIL.Image.open(io.BytesIO(encode_image(Image(noise((32, 32, 3))), "jpg")[0])) as file:
        assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3


def test_all_segments_of_a_file_in_their_order():
    image = Image(smooth((24, 32, 3)), None, None, exif_block(), GAIN_MAP, iptc=IPTC)
    data = encode_image(image, "jpg")[0]
    kinds = [kind for kind, _ in jpeg.segments(data)]
    assert kinds[: kinds.index(0xDB)] == [0xE0, 0xE1, 0xE1, 0xED]
    np.testing.assert_allclose(decode_image(data, "").pixels.astype(int), image.pixels, atol=9)


MAP = smooth((12, 16))
ADOBE_MAP = PACKET % (
    b'<rdf:Description xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"'
    b' hdrgm:GainMapMax="3.5"/>'
)
APPLE_MAP = PACKET % b'<rdf:Description HDRGainMap:HDRGainMapVersion="65536"/>'
STANDARD = b"urn:iso:std:iso:ts:21496:-1\0"


def map_file(kind):
    """A gain map as Adobe, Apple and ISO have it."""
    data = pillow_bytes(PIL.Image.fromarray(MAP), "JPEG", quality=95)
    if kind == "ISO":
        return with_segments(data, (0xE2, STANDARD + bytes(60)))
    packet = ADOBE_MAP if kind == "Adobe" else APPLE_MAP
    return with_segments(data, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet))


@pytest.mark.parametrize("kind", ["Adobe", "Apple", "ISO"])
@pytest.mark.parametrize("packet", [XMP, long_packet(), None], ids=["short", "long", "none"])
def test_gain_map_is_carried(kind, packet):
    first = pillow_bytes(PICTURE, "JPEG")
    stored = map_file(kind)
    # an MP4 file may follow
    image = decode_image(first + bytes(9) + stored + b"\0\0\0\x18ftypmp42\xff\xd9", "input")
    assert image.gain_map == stored
    assert image.notes == ()
    larger = Image(smooth((48, 64, 3)), xmp=packet, gain_map=stored)
    data, notes = encode_image(larger, "jpg")
    assert notes == []
    assert data.endswith(stored)
    # Pillow.open passes over the index where XMP tells of a gain map
    with MpoImageFile(io.BytesIO(data)) as file:
        assert (file.n_frames, file.size) == (2, (64, 48))
        xmp = file.info.get("xmp") or b""
        file.seek(1)
        np.testing.assert_allclose(np.asarray(file).astype(int), MAP, atol=3)
    assert (b'Item:Length="%d"' % len(stored) in xmp) == (kind == "Adobe")
    heads = [body for marker, body in jpeg.segments(data) if marker == 0xE2]
    assert (STANDARD + bytes(4) in heads) == (kind == "ISO")
    back = decode_image(data, "")
    assert (back.gain_map, back.notes) == (stored, ())
    assert (b"x" * 100_000 in (back.xmp or b"")) == (packet == long_packet())
    notes = encode_image(larger, "png")[1]
    assert notes == ["PNG has no place for the gain map for HDR: the result is its SDR picture"]


def test_gain_map_is_turned_like_the_picture():
    exif = b"Exif\0\0" + exif_block(6)
    data = pillow_bytes(PICTURE, "JPEG", exif=exif) + map_file("Adobe")
    image = decode_image(data, "")
    assert image.pixels.shape == (32, 24, 3)
    with PIL.Image.open(io.BytesIO(image.gain_map)) as file:
        np.testing.assert_allclose(np.asarray(file).astype(int), np.rot90(MAP, -1), atol=4)
        assert b"GainMapMax" in file.info["xmp"]


@pytest.mark.parametrize("length", [40, 400, -3])
def test_a_damaged_gain_map_is_left_out_and_said(length):
    data = pillow_bytes(PICTURE, "JPEG", xmp=GAIN_MAP) + map_file("Adobe")[:length]
    image = decode_image(data, "input")
    assert image.gain_map is None
    assert image.notes == (f"input: {NO_GAIN_MAP}",)


def test_a_damaged_profile_is_said():
    data = with_segments(pillow_bytes(PICTURE, "JPEG"), (0xE2, b"ICC_PROFILE\0\1\3" + bytes(200)))
    image = decode_image(data, "input")
    assert image.icc_profile is None
    assert image.notes == ("input: its colour profile is damaged: left out",)
