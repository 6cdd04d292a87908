import struct

import pytest

from mambair_cli.images import boxes

PQ, P3, SRGB = (9, 16), (12, 13), (1, 13)


def box(kind, body, wide=False):
    if wide:
        return struct.pack(">I4sQ", 1, kind, len(body) + 16) + body
    return struct.pack(">I4s", len(body) + 8, kind) + body


def nclx(numbers):
    return box(b"colr", b"nclx" + struct.pack(">HHHB", *numbers, 6, 0x80))


def heif(colours, of_items, shown=1, kinds=(b"av01", b"tmap", b"av01"), version=0):
    """The head of a file of several pictures: properties, and which of them each picture has."""
    number = ">I" if version else ">H"
    full = bytes([version, 0, 0, version])
    entry = bytes([2 + version, 0, 0, 0])
    names = b"".join(
        box(b"infe", entry + struct.pack(number, item) + b"\0\0" + kind + b"\0")
        for item, kind in enumerate(kinds, 1)
    )
    count = struct.pack(number, len(kinds))
    pairs = b"".join(
        struct.pack(number, item) + bytes([len(held)])
        + b"".join(struct.pack(">H", 0x8000 | n) if version else bytes([0x80 | n]) for n in held)
        for item, held in of_items.items()
    )  # fmt: skip
    properties = box(b"ipco", box(b"ispe", bytes(12)) + b"".join(colours))
    properties += box(b"ipma", full + struct.pack(">I", len(of_items)) + pairs)
    meta = box(b"pitm", full + struct.pack(number, shown))
    meta += box(b"iinf", full + count + names) + box(b"iprp", properties, wide=version == 1)
    return box(b"ftyp", b"avif" + bytes(8)) + box(b"meta", bytes(4) + meta) + bytes(20)


@pytest.mark.parametrize("version", [0, 1])
def test_the_colours_are_those_of_the_picture_shown(version):
    """An SDR picture whose gain map makes a second, of HDR, that is described first."""
    held = {1: (1, 3), 2: (1, 2), 3: (1,)}
    tags, has_gain_map = boxes.describe(heif([nclx(PQ), nclx(P3)], held, version=version))
    assert tags.cicp == P3
    assert has_gain_map
    tags, _ = boxes.describe(heif([nclx(PQ), nclx(SRGB)], held, version=version))
    assert tags is None


def test_a_profile_goes_first():
    profile = box(b"colr", b"prof" + bytes(128))
    assert boxes.describe(heif([nclx(P3), profile], {1: (2, 3)}))[0] is None
    assert boxes.describe(heif([nclx(P3), profile], {1: (2,), 3: (3,)}))[0].cicp == P3


def test_a_picture_of_tiles_has_their_colours():
    kinds = (b"grid", b"av01", b"tmap")
    held = {1: (1,), 3: (3,), 2: (2,)}
    assert boxes.describe(heif([nclx(P3), nclx(PQ)], held, kinds=kinds))[0].cicp == P3


def test_an_animation_without_a_picture():
    data = box(b"ftyp", b"avis" + bytes(8)) + box(b"moov", bytes(9) + nclx(PQ))
    assert boxes.describe(data) == (boxes.ColourTags(PQ), False)


def test_what_is_damaged_tells_nothing():
    whole = heif([nclx(PQ)], {1: (2, 9)})
    assert boxes.describe(whole)[0].cicp == PQ
    for end in range(len(whole) - 20):
        assert boxes.describe(whole[:end])[0] in (None, boxes.ColourTags(PQ))
    assert boxes.describe(b"") == (None, False)
