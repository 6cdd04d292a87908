"""Radiance files (.hdr): light as floats."""

import re

import numpy as np

from ..errors import ImageError
from .colour import ColourTags
from .image import Stored
from .samples import check_pixels, in_range, opencv


def knows(data: bytes) -> bool:
    """Tell whether `read` reads a file that begins so."""
    return data.startswith((b"#?RADIANCE", b"#?RGBE"))


def read(data: bytes, max_pixels: int) -> Stored:
    """Read RGB as float32, which is light, not brightness.

    Raises ImageError, ValueError.
    """
    # in the line after the first empty one; a comment may look like it
    end = max(0, data.find(b"\n\n"))
    found = re.compile(rb"\n\n([-+][XY]) (\d{1,9}) ([-+][XY]) (\d{1,9})\n").match(data, end)
    if not found or found[1][1:] == found[3][1:]:
        raise ValueError("its size is missing")
    outer, inner, rows, columns = found[1], found[3], int(found[2]), int(found[4])
    check_pixels((columns, rows) if outer[1:] == b"Y" else (rows, columns), max_pixels)
    head = data[: found.start()]
    if b"32-bit_rle_xyze" in head:
        raise ImageError("Radiance of XYZ is of a kind that cannot be read; save it as RGB")
    body = np.frombuffer(data, np.uint8, offset=found.end())
    quads = body[: len(body) // 4 * 4].reshape(-1, 4)
    # Newer run lengths begin each line with two twos.
    if (
        len(quads) < rows * columns
        and not (quads[:1, :2] == 2).all()
        and (quads[:, :3] == 1).all(1).any()
    ):
        raise ImageError(
            "Radiance with old run lengths is of a kind that cannot be read; save it anew"
        )
    # OpenCV knows only the usual order of rows and columns
    usual = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (rows, columns)
    samples = opencv(usual + data[found.end() :])[..., ::-1]
    # rows go down and columns to the right, unless they begin at the other end
    samples = samples[:: 1 if outer in (b"-Y", b"+X") else -1]
    samples = samples[:, :: 1 if inner in (b"-Y", b"+X") else -1]
    if outer[1:] == b"X":
        samples = samples.swapaxes(0, 1)
    points = re.search(rb"\nPRIMARIES=((?:\s*[\d.]+){8})", head)
    chromaticities = None
    if points:
        *colours, x, y = map(float, points[1].split())
        chromaticities = (x, y, *colours)
    fields = {"colour": ColourTags(gamma=1.0, chromaticities=chromaticities)}
    return Stored("HDR", in_range(np.ascontiguousarray(samples)), None, fields=fields)
