"""PBM, PGM, PPM, PAM and PFM files, of any depth; and a writer of PGM and PPM."""

import math
import re
from typing import BinaryIO

import numpy as np

from ..errors import ImageError
from .image import WHITE, Image, Stored
from .samples import UINT8, UINT16, bands, check_pixels, in_range, stretched

_WORD = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\S+)")


def knows(data: bytes) -> bool:
    """Tell whether `read` reads a file that begins so."""
    return re.match(rb"P[1-7Ff]\s", data) is not None


def read(data: bytes, max_pixels: int) -> Stored:
    """Read a file of any of the kinds; floats stay as they are.

    Raises ValueError (damaged), ImageError (too large, NaN, more than four channels).
    """
    kind = data[1:2]
    if kind == b"7":
        width, height, depth, maximum, place = _pam_header(data)
    elif kind in b"Ff":
        return _read_pfm(data, max_pixels)
    else:
        numbers, place = _words(data, 2, 2 if kind in b"14" else 3)
        width, height = int(numbers[0]), int(numbers[1])
        maximum = 1 if kind in b"14" else int(numbers[2])
        depth = 3 if kind in b"36" else 1
    check_pixels((width, height), max_pixels)
    if not 0 < maximum < 65536:
        raise ValueError(f"a maximum of {maximum}")
    count = width * height * depth
    # in PBM, 1 is black
    if kind == b"1":
        # plain digits need no space between them
        digits = re.sub(rb"#[^\r\n]*|\s", b"", data[place:])[:count]
        samples = (np.frombuffer(digits, np.uint8) == ord("0")).astype(np.uint16)
    elif kind == b"4":
        row = -(-width // 8)
        packed = np.frombuffer(data, np.uint8, height * row, place + 1).reshape(height, row)
        samples = 1 - np.unpackbits(packed, axis=1)[:, :width].astype(np.uint16)
    elif kind in b"23":
        words = re.sub(rb"#[^\r\n]*", b"", data[place:]).split()[:count]
        samples = np.array(words, np.uint32)
    else:
        samples = np.frombuffer(data, ">u2" if maximum > 255 else np.uint8, count, place + 1)
    if samples.size != count:
        raise ValueError("the file is truncated")
    dtype = UINT8 if maximum < 256 else UINT16
    samples = stretched(samples.reshape(height, width, depth), maximum, dtype)
    colours = 3 if depth > 2 else 1
    pixels = samples[..., :3] if colours == 3 else samples[..., 0]
    alpha = np.ascontiguousarray(samples[..., -1]) if depth > colours else None
    return Stored("PPM", np.ascontiguousarray(pixels), alpha)


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write P5 for gray and P6 for RGB, some rows at a time."""
    height, width = image.pixels.shape[:2]
    kind = 5 if image.pixels.ndim == 2 else 6
    file.write(b"P%d %d %d %d\n" % (kind, width, height, WHITE[image.pixels.dtype]))
    for rows in bands(image):
        file.write(rows.astype(rows.dtype.newbyteorder(">"), copy=False).data)


def _words(data: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    """Read words of a header, between which there may be comments; and the place behind them."""
    words = []
    for _ in range(count):
        found = _WORD.match(data, place)
        if not found:
            raise ValueError("the file is truncated")
        words.append(found[1])
        place = found.end()
    return words, place


def _pam_header(data: bytes) -> tuple[int, int, int, int, int]:
    """Return width, height, depth, maximum, and the place of the white space before the samples."""
    end = re.search(rb"^ENDHDR[ \t\r]*$", data, re.MULTILINE)
    if not end:
        raise ValueError("the file is truncated")
    lines = [line.split() for line in data[: end.start()].split(b"\n")]
    facts = {line[0]: line[1] for line in lines if len(line) == 2}
    width, height, depth, maximum = (
        int(facts[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
    )
    if not 1 <= depth <= 4:
        raise ImageError(
            f"PAM of {depth} channels is of a kind that cannot be read; save it with 1 to 4"
        )
    return width, height, depth, maximum, end.end()


def _read_pfm(data: bytes, max_pixels: int) -> Stored:
    """Read 32-bit floats, whose rows are stored from the bottom up."""
    words, place = _words(data, 2, 3)
    width, height, scale = int(words[0]), int(words[1]), float(words[2])
    check_pixels((width, height), max_pixels)
    shape = (height, width, 3) if data[1:2] == b"F" else (height, width)
    kind = "<f4" if scale < 0 else ">f4"
    samples = np.frombuffer(data, kind, math.prod(shape), place + 1).reshape(shape)[::-1]
    return Stored("PFM", in_range(np.ascontiguousarray(samples, np.float32)), None)
