"""AVIF files."""

import io
import re
import struct
from typing import Any, BinaryIO

from . import boxes, exif, pillow
from .image import NO_GAIN_MAP, Image


def describe(data: bytes) -> tuple[list[str], dict[str, Any]]:
    """Return notes of what is not read, and the colour tags as a field of `Image`."""
    tags, has_gain_map = boxes.describe(data)
    return [NO_GAIN_MAP] if has_gain_map else [], {"colour": tags}


def depth(data: bytes) -> int:
    """Return the bits of its samples."""
    found = re.search(rb"av1C..(.)", data, re.DOTALL)
    return {0x40: 10, 0x60: 12}.get(found[1][0] & 0x60, 8) if found else 8


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write an AVIF file with the whole of its chroma."""
    options: dict[str, Any] = {"subsampling": "4:4:4"} if image.pixels.ndim == 3 else {}
    # Pillow would write its own instead of a block that has an orientation
    if image.exif:
        block = exif.parse(image.exif)
        block.entries.pop(exif.ORIENTATION, None)
        options["exif"] = exif.joined(block.order, block.entries) if block.entries else None
    # a profile would go before the numbers
    if image.colour and image.colour.cicp:
        options["icc_profile"] = None
    encoded = io.BytesIO()
    pillow.write(image, quality, encoded, "AVIF", **options)
    data = encoded.getvalue()
    # Pillow always says sRGB
    if image.colour and image.colour.cicp:
        tags = b"colrnclx" + struct.pack(">HH", *image.colour.cicp)
        data = re.sub(rb"colrnclx.{4}", lambda _: tags, data, count=1, flags=re.DOTALL)
    file.write(data)
