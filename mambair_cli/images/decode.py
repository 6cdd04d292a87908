"""From the bytes of an image file to an `Image`: who reads what.

Pillow opens all files but deep TIFF, and so finds the damaged ones. What it would cut to 8 bits
goes to others.
"""

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from ..errors import ImageError
from . import exif, heif, metadata, netpbm, pillow, png, tiff
from .image import Image
from .samples import Samples, alpha_of_key, upright


def decode(data: bytes, max_pixels: int) -> Image:
    """Read the first frame, upright, and all that the file tells of it.

    Raises ImageError (over max_pixels, not readable) and, for damaged files, nearly anything.
    """
    with pillow.quiet_libraries():
        return _decode(data, max_pixels)


def _decode(data: bytes, max_pixels: int) -> Image:
    tags = exif.parse(data) if exif.is_tiff(data) else None
    tables: Mapping[int, list[int]] = {}
    mode = ""
    if tags:
        tiff.check_strips(data, tags)
    if tags and tiff.is_deep(tags):
        _check_pixels((*tags.numbers(exif.WIDTH), *tags.numbers(exif.HEIGHT)), max_pixels)
        pixels, alpha = tiff.read_deep(data, tags)
        format, several, turn = "TIFF", tags.next > 0, 1
    else:
        PIL.Image.init()
        # EPS would run Ghostscript
        safe = [name for name in PIL.Image.ID if name != "EPS"]
        with PIL.Image.open(io.BytesIO(data), formats=safe) as file:
            _check_pixels(file.size, max_pixels)
            format, info = file.format or "", file.info
            # the layers of a PSD file are no frames
            several = getattr(file, "is_animated", False) and format != "PSD"
            pixels, alpha = _samples(data, file)
            turn, mode = pillow.orientation(file), file.mode
            tables = getattr(file, "quantization", None) or {}
    if tags:
        info = tiff.info_of(tags)
    notes = []
    if several:
        notes.append("holds several frames or pages: only the first is read")
    if tags and tags.damaged:
        notes.append("some of its tags are damaged: left out")
    if pixels.dtype == np.uint8 and (bits := _bits(format, data, tags)) > 8:
        notes.append(f"its samples of {bits} bits are reduced to 8")
    if mode in {"CMYK", "LAB"}:
        notes.append(f"its {mode} colours become RGB")
    described = metadata.from_info(format, info, turn)
    luma = tuple(tables[min(tables)]) if tables else ()
    profile, space = info.get("icc_profile"), b"GRAY" if pixels.ndim == 2 else b"RGB "
    return Image(
        upright(pixels, turn),
        None if alpha is None else upright(alpha, turn),
        profile if profile and profile[16:20] == space else None,
        quantization=luma if len(luma) == 64 and min(luma) > 0 else None,
        **described | {"notes": (*notes, *described["notes"])},
    )


def _samples(data: bytes, file: Any) -> Samples:
    """Load and return what Pillow has opened, or have it read by others."""
    if file.format == "PPM" and file.tile[0][0] != "raw" and file.tile[0][3][1] > 255:
        return netpbm.read_deep(data, file.size, file.tile[0]), None
    file.load()
    if file.format == "PNG" and file.mode in {"RGB", "RGBA"} and data[24] == 16:
        pixels, alpha = png.read_deep(data)
    elif file.format == "HEIF":
        pixels, alpha = heif.read(data, file)
    else:
        pixels, alpha = pillow.read(file)
    key = file.info.get("transparency")
    if alpha is None and key is not None:
        alpha = alpha_of_key(pixels, key, data[24] if file.format == "PNG" else 8)
    return pixels, alpha


def _check_pixels(size: tuple[int, ...], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} pixels are more than max_pixels, {max_pixels}, which guards against"
            " files that fill the memory; raise it to read this one"
        )


def _bits(format: str, data: bytes, tags: exif.Block | None) -> int:
    """Count the bits of a stored sample, for the formats of which Pillow cuts some to 8."""
    if tags:
        return max(tags.numbers(exif.BITS), default=8)
    if format == "AVIF" and (found := re.search(rb"av1C..(.)", data, re.DOTALL)):
        return {0x40: 10, 0x60: 12}.get(found[1][0] & 0x60, 8)
    if format == "JPEG2000" and (found := re.search(rb"\xff\x4f\xff\x51.{38}(.)", data, re.DOTALL)):
        return (found[1][0] & 0x7F) + 1
    return 8
