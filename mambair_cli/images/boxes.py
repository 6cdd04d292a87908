"""What the boxes of AVIF and HEIC files (ISO/IEC 14496-12 and 23008-12) tell of the picture shown.

A file holds several pictures: tiles, alpha, a gain map, and an HDR picture made of two others. Each
has its own colours.
"""

import struct
from collections.abc import Iterator

from .colour import ColourTags


def boxes_of(data: bytes, place: int = 0, end: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kinds and bodies of the boxes that follow each other; a damaged one ends them."""
    end = len(data) if end is None else end
    while place + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if size == 1 and place + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, place + 8)
            head = 16
        # 0: to the end of the file
        size = size or end - place
        if size < head or place + size > end:
            return
        yield kind, data[place + head : place + size]
        place += size


def describe(data: bytes) -> tuple[ColourTags | None, bool]:
    """Return the colour tags of the picture shown, None where there are none or a profile goes
    first, and whether there is a gain map for HDR.
    """
    try:
        meta = next((dict(_inner(body)) for kind, body in boxes_of(data) if kind == b"meta"), {})
        kinds = dict(_items(meta.get(b"iinf", b"")))
        tones = {item for item, kind in kinds.items() if kind == b"tmap"}
        tags = _tags(_colours(meta, tones)) if b"iprp" in meta else _tags(_of_tracks(data))
    except (struct.error, IndexError):
        return None, False
    return tags, bool(tones)


def _inner(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes in one that begins with a version and flags."""
    return boxes_of(body, 4)


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and kind of each item."""
    for _, entry in boxes_of(body, 8 if body[:1] > b"\0" else 6):
        wide = entry[:1] > b"\2"
        (item,) = struct.unpack_from(">I" if wide else ">H", entry, 4)
        place = 10 if wide else 8
        yield item, entry[place : place + 4]


def _colours(meta: dict[bytes, bytes], tones: set[int]) -> list[bytes]:
    """Return the bodies of the colr boxes of the picture shown; of its tiles where it has none."""
    body = meta[b"pitm"] if b"pitm" in meta else bytes(6)
    (shown,) = struct.unpack_from(">I" if body[:1] > b"\0" else ">H", body, 4)
    properties = list(boxes_of(meta[b"iprp"]))
    known = [box for kind, body in properties if kind == b"ipco" for box in boxes_of(body)]
    found: dict[int, list[bytes]] = {}
    for kind, body in properties:
        if kind == b"ipma":
            for item, number in _associations(body):
                if 0 < number <= len(known) and known[number - 1][0] == b"colr":
                    found.setdefault(item, []).append(known[number - 1][1])
    others = (colours for item, colours in found.items() if item not in tones)
    return found.get(shown) or next(others, [])


def _associations(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield items and the numbers, from 1, of their properties."""
    item_format = ">IB" if body[:1] > b"\0" else ">HB"
    wide = body[3] & 1
    (count,) = struct.unpack_from(">I", body, 4)
    place = 8
    for _ in range(count):
        item, length = struct.unpack_from(item_format, body, place)
        place += struct.calcsize(item_format)
        for _ in range(length):
            # the highest bit: whether a reader must know it
            number = struct.unpack_from(">H" if wide else ">B", body, place)[0]
            yield item, number & (0x7FFF if wide else 0x7F)
            place += 2 if wide else 1


def _of_tracks(data: bytes) -> list[bytes]:
    """Return the bodies of the colr boxes of an animation that has no single picture."""
    place = data.find(b"colrnclx")
    return [data[place + 4 : place + 15]] if place >= 0 else []


def _tags(colours: list[bytes]) -> ColourTags | None:
    # a profile goes before the numbers
    if any(body[:4] in (b"prof", b"rICC") for body in colours):
        return None
    for body in colours:
        if body[:4] == b"nclx":
            return ColourTags.of_numbers(*struct.unpack_from(">HH", body, 4))
    return None
