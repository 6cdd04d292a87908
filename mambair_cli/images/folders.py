"""Folders of photographs, and these as 8-bit RGB."""

from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..errors import CallError
from .decode import quiet_libraries
from .io import OUTPUT_SUFFIXES, read_image

Pixels = NDArray[np.uint8]


def list_images(folder: Path) -> list[Path]:
    """The image files under `folder` (recursively), sorted. Raises CallError where there is none."""
    if not folder.is_dir():
        raise CallError(f"{folder} is not a folder; give a folder of images")
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in OUTPUT_SUFFIXES and p.is_file()
    )
    if not files:
        raise CallError(f"{folder} holds no image")
    return files


def read_rgb(path: Path) -> Pixels:
    """H x W x 3 uint8, gray as three equal channels, 16 bits rounded to 8. Raises ImageError."""
    pixels = read_image(path).pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels / 257 + 0.5).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(pixels[:, :, None], 3, 2) if pixels.ndim == 2 else pixels


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as stored, from the file's head where that tells, of all that `read_rgb` reads.

    Raises ImageError.
    """
    try:
        with quiet_libraries(), PIL.Image.open(path) as image:
            return image.height, image.width
    except (
        OSError,
        ValueError,
        SyntaxError,
    ):  # such as TIFF of 16 bits, which Pillow does not know
        height, width = read_rgb(path).shape[:2]
        return height, width
