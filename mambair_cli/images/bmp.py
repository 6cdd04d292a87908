"""BMP files: the colours that their longer headers name, which Pillow passes over; and a writer."""

import struct
from dataclasses import replace
from typing import Any, BinaryIO

from . import pillow
from .colour import PRIMARIES, ColourTags
from .image import Image

_HEAD = 14
"""Bytes of the file's head; the picture's follows."""


def describe(data: bytes, info: dict[Any, Any]) -> dict[str, Any]:
    """Add a profile to what Pillow calls info; return colour tags as a field of `Image`."""
    (size,) = struct.unpack_from("<I", data, _HEAD)
    # BITMAPV4HEADER
    if size < 108:
        return {}
    kind = data[_HEAD + 56 : _HEAD + 60]
    if kind == b"DEBM" and size >= 124:
        place, length = struct.unpack_from("<II", data, _HEAD + 112)
        info["icc_profile"] = data[_HEAD + place : _HEAD + place + length]
    if kind != bytes(4):
        return {}
    points = struct.unpack_from("<9I", data, _HEAD + 60)
    gamma = struct.unpack_from("<I", data, _HEAD + 96)[0] / 65536
    sums = [sum(points[start : start + 3]) for start in (0, 3, 6)]
    if not (all(sums) and all(points[1::3]) and gamma):
        return {}
    shares = [value / sums[number // 3] for number, value in enumerate(points) if number % 3 < 2]
    tags = ColourTags(gamma=1 / gamma, chromaticities=(*PRIMARIES[1][:2], *shares))
    return {} if tags.is_srgb else {"colour": tags}


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a BMP file."""
    # without a resolution Pillow makes up 96
    pillow.write(replace(image, dpi=image.dpi or (0, 0)), quality, file, "BMP")
