"""JPEG XL files, where the package for them is installed."""

import importlib.util
import re
import struct
from typing import Any, BinaryIO

from . import boxes, pillow
from .image import Image

INSTALLED = importlib.util.find_spec("pillow_jxl") is not None
if INSTALLED:
    # it adds itself to Pillow
    import pillow_jxl  # noqa: F401

# Of the header: widths to heights, and bits of a side.
_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_LENGTHS = (9, 13, 18, 30)

NO_JXL = "JPEG XL needs one more package: pip install 'mambair[jxl]'"


def knows(data: bytes) -> bool:
    """Tell whether data begin as a JPEG XL file does, bare or in boxes."""
    return re.match(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", data) is not None


def describe(data: bytes, info: dict[Any, Any]) -> list[str]:
    """Add XMP to what Pillow calls info; return notes of what is not read."""
    for kind, body in boxes.boxes_of(data):
        if kind == b"xml ":
            info.setdefault("xmp", body)
        # packed by Brotli
        elif kind == b"brob" and body[:4] == b"xml ":
            return ["its XMP is compressed: left out"]
    return []


def size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as the head of a JPEG XL file tells them (ISO 18181-1, D.2).

    Raises ValueError.
    """
    start = 0
    if data[:2] != b"\xff\x0a":
        # in boxes: the whole, or the first part of it after a number
        start, kind = 0, b""
        while kind not in (b"jxlc", b"jxlp"):
            length, kind = _box(data, start)
            head, start = start, start + length
        start = data.find(b"\xff\x0a", head, head + 32)
        if start < 0:
            raise ValueError("the file is damaged")
    bits = _Bits(int.from_bytes(data[start + 2 : start + 16].ljust(14, b"\0"), "little"))
    small = bits.take(1)
    height = _side(bits, small)
    ratio = bits.take(3)
    over, under = _RATIOS[ratio]
    width = height * over // under if ratio else _side(bits, small)
    return width, height


def _box(data: bytes, place: int) -> tuple[int, bytes]:
    """Return the length of a box, and its kind."""
    try:
        length, kind = struct.unpack_from(">I4s", data, place)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
    except struct.error:
        raise ValueError("the file is truncated") from None
    # 0: to the end of the file
    length = length or len(data) - place
    if length < 8:
        raise ValueError("the file is damaged")
    return length, kind


class _Bits:
    """Bits from the lowest one on."""

    def __init__(self, value: int):
        self.value = value

    def take(self, count: int) -> int:
        """Take the next bits off."""
        taken = self.value & ((1 << count) - 1)
        self.value >>= count
        return taken


def _side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (1 + bits.take(5))
    return 1 + bits.take(_LENGTHS[bits.take(2)])


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a JPEG XL file of 8 bits, at quality 100 without loss."""
    pillow.write(image, quality, file, "JXL", lossless=quality == 100)
