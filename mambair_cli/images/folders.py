"""Folders of photographs, read as 8-bit RGB."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CallError
from . import jxl
from .io import OUTPUT_SUFFIXES, read_image
from .pillow import opened, quiet_libraries
from .samples import to_uint8

Pixels = NDArray[np.uint8]


def list_images(folder: Path) -> list[Path]:
    """List the image files under `folder`, recursively, sorted. Raises CallError where there is
    none.
    """
    if not folder.is_dir():
        raise CallError(f"{folder} is not a folder; give a folder of images")
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in OUTPUT_SUFFIXES and p.is_file()
    )
    if not files:
        raise CallError(f"{folder} holds no image")
    return files


def read_rgb(path: Path) -> Pixels:
    """Read an image as H x W x 3 uint8: gray as three equal channels, other depths rounded. Raises
    ImageError.
    """
    pixels = read_image(path, first_frame=True).pixels
    if pixels.dtype != np.uint8:
        pixels = to_uint8(pixels)
    return np.repeat(pixels[:, :, None], 3, 2) if pixels.ndim == 2 else pixels


def image_size(path: Path) -> tuple[int, int]:
    """Tell (height, width) as stored, from the file's head where that suffices.

    Raises ImageError.
    """
    size = stored_size(path)
    if size is None:
        height, width = read_rgb(path).shape[:2]
        size = height, width
    return size


def stored_size(path: Path) -> tuple[int, int] | None:
    """Tell (height, width) as the file's head has them; None if it does not tell."""
    if not path.is_file():
        return None
    try:
        with quiet_libraries(), path.open("rb") as file:
            head = file.read(2**16)
            if jxl.knows(head):
                width, height = jxl.size(head)
                return height, width
            file.seek(0)
            with opened(file) as image:
                return image.height, image.width
    # such as TIFF of 16 bits, which Pillow does not know; damaged files raise nearly anything
    except Exception:
        return None
