"""WebP files."""

import struct
from typing import Any, BinaryIO

import cv2
import numpy as np

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


CHROMA_LOST = 8.0
"""Steps of 255 that chroma may be off by, in the root mean square; photographs lose 1 to 5."""


def suffers(image: Image) -> bool:
    """Tell whether the loss of every second row and column of chroma would spoil a picture."""
    pixels = image.pixels
    if pixels.ndim == 2 or pixels.dtype != np.uint8 or image.frames:
        return False
    height, width = pixels.shape[:2]
    chroma = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)[..., 1:]
    half = ((width + 1) // 2, (height + 1) // 2)
    stored = cv2.resize(chroma, half, interpolation=cv2.INTER_AREA)
    seen = cv2.resize(stored, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.norm(seen, chroma) > CHROMA_LOST * chroma.size**0.5


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a WebP file, at quality 100 without loss."""
    pillow.write(image, quality, file, "WEBP", exact=True, lossless=quality == 100)
