"""EXIF blocks and the directories of TIFF files: both are tags with typed values, maybe nested.

Pillow has a reader and a writer, but that writer guesses types, moves what maker notes point at,
and replaces letters beyond ASCII by question marks. Here every value stays the bytes that it was.
"""

import contextlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

# Of what a directory can hold, by TIFF 6 and the Exif specification.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_SIZES = 273, 277, 278, 279
X_RESOLUTION, Y_RESOLUTION, PLANES, RESOLUTION_UNIT, PREDICTOR = 282, 283, 284, 296, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES, EXTRA_SAMPLES, SAMPLE_FORMAT = (
    322,
    323,
    324,
    325,
    338,
    339,
)
ORIENTATION, XMP, IPTC, PHOTOSHOP, ICC_PROFILE = 274, 700, 33723, 34377, 34675
SUBFILE_TYPE, SUB_DIRECTORIES, DNG_VERSION = 254, 330, 50706
PIXEL_WIDTH, PIXEL_HEIGHT = 40962, 40963
EXIF, GPS, INTEROPERABILITY = 34665, 34853, 40965
THUMBNAIL, THUMBNAIL_SIZE = 513, 514

TEXTS = {"Description": 270, "Software": 305, "Author": 315, "Copyright": 33432}
"""The tags for what PNG calls by these keywords."""

_NESTED: Mapping[int, tuple[int, ...]] = {0: (EXIF, GPS), EXIF: (INTEROPERABILITY,)}
_BASELINE = {*range(269, 273), ORIENTATION, 282, 283, 285, 296, 297, 305, 306, 315, 316, 318, 319}
_FORMATS = {
    1: "B",
    2: "s",
    3: "H",
    4: "I",
    5: "II",
    6: "b",
    7: "s",
    8: "h",
    9: "i",
    10: "ii",
    11: "f",
    12: "d",
}
_FORMATS |= {13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {kind: struct.calcsize("=" + format) for kind, format in _FORMATS.items()}
_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 2, 3, 4, 5, 7, 16


class Entry(NamedTuple):
    """A type of TIFF and a value of it: bytes in the order of the block, or a directory.

    place: of the entry in the block that it was read from.
    """

    kind: int
    value: "bytes | Entries"
    place: int = 0


Entries = dict[int, Entry]


@dataclass(frozen=True)
class Block:
    """What was read.

    order: "<" or ">".
    next: the place of the next directory, 0 where there is none.
    damaged: values, or whole directories, were left out.
    """

    order: str
    entries: Entries
    next: int = 0
    next_place: int = 0
    damaged: bool = False

    def numbers(self, tag: int) -> tuple[int, ...]:
        """Return the integers of a tag; empty where it is missing or of another type."""
        kind, value, _ = self.entries.get(tag, Entry(0, b""))
        if not isinstance(value, bytes) or _FORMATS.get(kind, "s") not in "BHIQbhiq":
            return ()
        return struct.unpack(f"{self.order}{len(value) // _SIZES[kind]}{_FORMATS[kind]}", value)

    def data(self, tag: int) -> bytes | None:
        """Return the value of a tag as it is stored."""
        value = self.entries.get(tag, Entry(0, b"")).value
        return value or None if isinstance(value, bytes) else None


def is_tiff(data: bytes) -> bool:
    """Tell whether data begin as a TIFF file does, or an EXIF block without its prefix."""
    return data[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def start(data: bytes) -> tuple[str, bool]:
    """Return the byte order, "<" or ">", of EXIF or TIFF, and whether it is BigTIFF."""
    return "<" if data[:1] == b"I" else ">", b"+" in data[2:4]


def first_directory(data: bytes) -> int:
    """Return the place of the first directory. Raises ValueError."""
    order, big = start(data)
    try:
        return int(struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0])
    except struct.error:
        raise ValueError("its directory is damaged") from None


def parse(data: bytes, place: int | None = None) -> Block:
    """Read the first directory of EXIF or TIFF, and those in it. Raises ValueError."""
    if not is_tiff(data):
        raise ValueError("neither EXIF nor TIFF")
    order, big = start(data)
    try:
        place = first_directory(data) if place is None else place
        return _directory(data, order, big, place, 0)
    except (struct.error, OverflowError):
        raise ValueError("its directory is damaged") from None


def _directory(data: bytes, order: str, big: bool, start: int, parent: int) -> Block:
    number = "Q" if big else "I"
    inline, count_format = (8, "Q") if big else (4, "H")
    (count,) = struct.unpack_from(order + count_format, data, start)
    start += struct.calcsize(count_format)
    end = start + count * (4 + 2 * inline)
    # first, so that a false count fails at once
    (following,) = struct.unpack_from(order + number, data, end)
    entries: Entries = {}
    # values that overlap could take more memory than the file
    damaged, budget = False, len(data)
    for place in range(start, end, 4 + 2 * inline):
        tag, kind, length = struct.unpack_from(order + "HH" + number, data, place)
        # as some cameras write what they do not know
        if not length:
            continue
        size = _SIZES.get(kind, 0) * length
        at = place + 4 + inline
        if size > inline:
            (at,) = struct.unpack_from(order + number, data, at)
        budget -= size
        if not size or at + size > len(data) or budget < 0:
            damaged = True
        elif tag in _NESTED.get(parent, ()):
            try:
                (at,) = struct.unpack_from(order + _FORMATS[kind], data, at)
                below = _directory(data, order, big, at, tag)
            except (struct.error, OverflowError, ValueError, TypeError):
                damaged = True
            else:
                damaged |= below.damaged
                entries[tag] = Entry(kind, below.entries, place)
        else:
            entries[tag] = Entry(kind, data[at : at + size], place)
    return Block(order, entries, following, end, damaged)


def build(order: str, entries: Entries, start: int = 8, big: bool = False) -> bytes:
    """Build the directory of entries, and its values, for the place start of a file.

    big: of BigTIFF.
    """
    number, inline, count_format = ("Q", 8, "Q") if big else ("I", 4, "H")
    head = [struct.pack(order + count_format, len(entries))]
    tail: list[bytes] = []
    end = start + len(head[0]) + len(entries) * (4 + 2 * inline) + inline
    for tag, (kind, value, _) in sorted(entries.items()):
        if isinstance(value, dict):
            kind, length, stored = _LONG8 if big else _LONG, 1, build(order, value, end, big)
        else:
            length, stored = len(value) // _SIZES[kind], value
        head.append(struct.pack(order + "HH" + number, tag, kind, length))
        if len(stored) <= inline:
            head.append(stored.ljust(inline, b"\0"))
        else:
            head.append(struct.pack(order + number, end))
            tail.append(stored + b"\0" * (len(stored) % 2))
            end += len(tail[-1])
    return b"".join([*head, bytes(inline), *tail])


def header(order: str, place: int = 8, big: bool = False) -> bytes:
    """Build the first bytes of a TIFF file or EXIF block whose directory is at place."""
    mark = b"II" if order == "<" else b"MM"
    return mark + (
        struct.pack(order + "HHHQ", 43, 8, 0, place)
        if big
        else struct.pack(order + "HI", 42, place)
    )


def joined(order: str, entries: Entries) -> bytes:
    """Build the EXIF block of entries."""
    return header(order) + build(order, entries)


def integers(order: str, *values: int) -> Entry:
    """Make an entry of integers >= 0, of the smallest type of 16 bits or more that holds all."""
    kind = _SHORT if max(values) < 2**16 else _LONG if max(values) < 2**32 else _LONG8
    return Entry(kind, struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values))


def text(value: str) -> Entry:
    """Make an entry of letters."""
    return Entry(_ASCII, value.encode() + b"\0")


def raw(value: bytes) -> Entry:
    """Make an entry of bytes."""
    return Entry(_UNDEFINED, value)


def resolution(block: Block) -> tuple[float, float] | None:
    """Return pixels an inch across and down, 1..65535; None where they make no sense."""
    stored = (block.numbers(RESOLUTION_UNIT) or (2,))[0]
    # of no unit, a centimetre, an inch
    unit = {1: math.nan, 3: 2.54}.get(stored, 1.0)
    found = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        kind, value, _ = block.entries.get(tag, Entry(0, b""))
        if kind != _RATIONAL or not isinstance(value, bytes):
            return None
        over, under = struct.unpack_from(block.order + "II", value)
        found.append(over / under * unit if under else math.nan)
    return (found[0], found[1]) if all(1 <= value <= 65535 for value in found) else None


def of_resolution(order: str, dpi: tuple[float, float]) -> Entries:
    """Make the entries for a resolution of 1..65535 pixels an inch across and down."""
    fractions = [Fraction(value).limit_denominator(65536).as_integer_ratio() for value in dpi]
    across, down = (
        Entry(_RATIONAL, struct.pack(order + "II", *fraction)) for fraction in fractions
    )
    return {X_RESOLUTION: across, Y_RESOLUTION: down, RESOLUTION_UNIT: integers(order, 2)}


def descriptive(entries: Entries) -> Entries:
    """Keep the entries of a TIFF file that tell of the photograph, not of how it is stored."""
    hidden = (ICC_PROFILE, PHOTOSHOP, IPTC)
    return {
        tag: entry
        for tag, entry in entries.items()
        if tag in _BASELINE or (tag > 1000 and tag not in hidden)
    }


def sized(data: bytes, width: int, height: int) -> bytes:
    """Set the width and height of the picture where an EXIF block tells them; all else stays."""
    block, result = parse(data), bytearray(data)
    inner = block.entries.get(EXIF, Entry(0, b"")).value
    directories = [(block.entries, WIDTH, HEIGHT)]
    if isinstance(inner, dict):
        directories.append((inner, PIXEL_WIDTH, PIXEL_HEIGHT))
    for entries, *tags in directories:
        for tag, value in zip(tags, (width, height), strict=True):
            if tag in entries:
                struct.pack_into(
                    block.order + "HHII", result, entries[tag].place, tag, _LONG, 1, value
                )
    return bytes(result)


def cleaned(data: bytes) -> tuple[bytes, bool]:
    """Make an EXIF block well-formed, upright and free of a thumbnail; tell whether it was damaged.

    What is whole stays where it is, as the notes of camera makers hold offsets into the block.
    Raises ValueError where nothing can be read.
    """
    block = parse(data)
    entries = dict(block.entries)
    if ORIENTATION in entries:
        entries[ORIENTATION] = integers(block.order, 1)._replace(place=entries[ORIENTATION].place)
    if not block.damaged and b"+" not in data[2:4]:
        with contextlib.suppress(ValueError):
            patched = _patched(data, block)
            # unless what is called a thumbnail lies over the rest
            if parse(patched).entries == entries:
                return patched, False
    return joined(block.order, entries), block.damaged


def _patched(data: bytes, block: Block) -> bytes:
    result, order = bytearray(data), block.order
    if ORIENTATION in block.entries:
        place = block.entries[ORIENTATION].place
        struct.pack_into(order + "HHIHH", result, place, ORIENTATION, _SHORT, 1, 1, 0)
    if not block.next:
        return bytes(result)
    struct.pack_into(order + "I", result, block.next_place, 0)
    try:
        second = _directory(data, order, False, block.next, 0)
    except struct.error:
        return bytes(result)
    # parts that overlap could take hours
    budget = 2 * len(result)
    for offsets, sizes in ((THUMBNAIL, THUMBNAIL_SIZE), (STRIP_OFFSETS, STRIP_SIZES)):
        for start, size in zip(second.numbers(offsets), second.numbers(sizes), strict=False):
            budget -= size
            if budget < 0:
                raise ValueError("its thumbnail is damaged")
            result[start : start + size] = bytes(size) if start + size < len(result) else b""
    return bytes(result)
