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
    # in the line after the first empty one; a comment may look like it
    size = re.match(rb"\n\n[-+]Y (\d{1,9}) [-+]X (\d{1,9})\n", data[max(0, data.find(b"\n\n")) :])
    if not size:
        raise ValueError("its size is missing")
    check_pixels((int(size[2]), int(size[1])), max_pixels)
    samples = np.ascontiguousarray(opencv(data)[..., ::-1])
    fields = {"colour": ColourTags(gamma=1.0)}
    return Stored("HDR", in_range(samples), None, fields=fields)
