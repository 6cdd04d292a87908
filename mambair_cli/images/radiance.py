"""Radiance files (.hdr): light as floats."""

import re

import numpy as np

from .colour import ColourTags
from .image import Stored
from .samples import check_pixels, in_range, opencv


def knows(data: bytes) -> bool:
    """Tell whether `read` reads a file that begins so."""
    return data.startswith((b"#?RADIANCE", b"#?RGBE"))


def read(data: bytes, max_pixels: int) -> Stored:
    """Read RGB as float32, which is light, not brightness. Raises ImageError, ValueError."""
    size = re.search(rb"\n[-+]Y (\d+) [-+]X (\d+)\n", data)
    if not size:
        raise ValueError("its size is missing")
    check_pixels((int(size[2]), int(size[1])), max_pixels)
    samples = np.ascontiguousarray(opencv(data)[..., ::-1])
    fields = {"colour": ColourTags(gamma=1.0)}
    return Stored("HDR", in_range(samples), None, fields=fields)
