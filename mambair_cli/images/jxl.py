"""JPEG XL files, where the package for them is installed."""

import importlib.util
import re
from typing import Any, BinaryIO

from . import boxes, pillow
from .image import Image

INSTALLED = importlib.util.find_spec("pillow_jxl") is not None
if INSTALLED:
    # it adds itself to Pillow
    import pillow_jxl  # noqa: F401

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


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a JPEG XL file of 8 bits, at quality 100 without loss."""
    pillow.write(image, quality, file, "JXL", lossless=quality == 100)
