"""WebP files."""

import struct
from typing import Any, BinaryIO

from . import pillow
from .image import Image


def describe(data: bytes) -> dict[str, Any]:
    """Tell, as a field of `Image`, whether a WebP file was compressed without loss."""
    place = 12
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        if kind in (b"VP8L", b"VP8 "):
            return {"lossless": kind == b"VP8L"}
        # the first frame of an animation lies behind its 16 bytes of header
        place += 24 if kind == b"ANMF" else 8 + size + size % 2
    return {}


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a WebP file, at quality 100 without loss."""
    pillow.write(image, quality, file, "WEBP", exact=True, lossless=quality == 100)
