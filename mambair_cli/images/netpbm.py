"""PPM and PGM files of up to 16 bits, of any maximum."""

import math
import re
from typing import Any, BinaryIO

import numpy as np

from .image import WHITE, Image
from .samples import bands, stretched


def read_deep(data: bytes, size: tuple[int, int], tile: Any) -> np.ndarray:
    """Read the samples of a PPM or PGM file of more than 8 bits.

    tile: where Pillow, which is slow to read them, finds them.
    """
    codec, _, offset, (_, maximum) = tile
    shape = (size[1], size[0], 3) if data[1:2] in b"36" else (size[1], size[0])
    if codec == "ppm_plain":
        values = re.sub(rb"#[^\r\n]*", b"", data[offset:]).split()
        samples = np.array(values[: math.prod(shape)], np.uint32)
    else:
        samples = np.frombuffer(data, ">u2", math.prod(shape), offset)
    return stretched(samples.reshape(shape), maximum)


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write P5 for gray and P6 for RGB, some rows at a time."""
    height, width = image.pixels.shape[:2]
    kind = 5 if image.pixels.ndim == 2 else 6
    file.write(b"P%d %d %d %d\n" % (kind, width, height, WHITE[image.pixels.dtype]))
    for rows in bands(image):
        file.write(rows.astype(rows.dtype.newbyteorder(">"), copy=False).data)
