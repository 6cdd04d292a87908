"""Reads and writes photographs with all that a file holds: depth, gray, alpha, profile, EXIF,
texts.
"""

import io
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import PIL

from ..errors import CallError, ImageError, MambairError, MemoryLimitError
from ..system.files import read_file, read_stream, replacing
from ..system.memory import free_memory
from .decode import decode
from .encode import OUTPUT_SUFFIXES, check_side, encode, format_of, reason
from .image import Image

__all__ = [
    "INPUT_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "OUTPUT_SUFFIXES",
    "Image",
    "check_writable",
    "decode_image",
    "encode_image",
    "read_image",
    "receive_image",
    "write_image",
]

INPUT_SUFFIXES = frozenset(
    {
        *OUTPUT_SUFFIXES,
        *(".apng", ".avifs", ".bw", ".cur", ".dds", ".dib", ".fits", ".gif", ".hdr", ".heics"),
        *(".heifs", ".hif", ".icns", ".ico", ".j2c", ".j2k", ".jfif", ".jif", ".jp2", ".jpc"),
        *(".jpe", ".jpf", ".jpx", ".jxl", ".mpo", ".msp", ".pam", ".pbm", ".pcx", ".pfm", ".pic"),
        *(".pnm", ".psd", ".qoi", ".ras", ".rgb", ".rgba", ".rgbe", ".sgi", ".tga", ".xbm"),
    }
)
"""How names of files end that are images, in lower case; a file may be one without."""

MAX_PIXELS = 512 * 2**20
"""The largest image that is read unless the caller says otherwise: a guard against decompression
bombs.
"""

_UNKNOWN = re.compile(
    "unsupported|not (?:supported|implemented)|unknown (?:raw|PCX) mode", re.IGNORECASE
)
"""What decoders say of files that are whole."""


MAX_BYTES = 16 * MAX_PIXELS
"""The longest file that is read unless the caller says otherwise: four floats a pixel."""


def most_bytes(max_bytes: int) -> int:
    """How long a file may be: as long as was asked for, and no longer than memory allows."""
    return min(max_bytes, free_memory() // 2)


def read_image(
    path: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    first_frame: bool = False,
) -> Image:
    """Read an image file, as decode_image does.

    Raises CallError (no such file, or a folder), and ImageError (not permitted, a device, a pipe
    that nobody writes to, longer than max_bytes) and others as decode_image.
    """
    try:
        data = read_file(path, most_bytes(max_bytes))
    except (FileNotFoundError, NotADirectoryError):
        raise CallError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise CallError(f"{path}: is a folder; name an image file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {reason(error)}") from error
    return decode_image(data, str(path), max_pixels=max_pixels, first_frame=first_frame)


def receive_image(
    stream: TextIO | None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    first_frame: bool = False,
) -> Image:
    """Read an image from stdin, as decode_image does.

    Raises ImageError (closed, longer than max_bytes) and others as decode_image.
    """
    if stream is None or stream.closed:
        raise ImageError("stdin: is closed; name a file, or pipe an image into it")
    try:
        data = read_stream(stream.buffer, most_bytes(max_bytes))
    except OSError as error:
        raise ImageError(f"stdin: cannot be read: {reason(error)}") from error
    return decode_image(data, "stdin", max_pixels=max_pixels, first_frame=first_frame)


def decode_image(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, first_frame: bool = False
) -> Image:
    """Read an image file, upright, at its full depth, with all frames of animations and all pages.

    Gray stays gray; palette, CMYK, YCbCr, LAB and the like become RGB; 1-bit becomes 8-bit gray.
    Gray and colours deeper than 8 bits are kept in PNG, TIFF, PPM and HEIC; AVIF, JPEG 2000 and
    CMYK give 8 bits. JPEG XL needs pillow-jxl-plugin. name stands for the file in notes and errors.

    Raises ImageError (no image, damaged, over max_pixels, samples out of range) and
    MemoryLimitError.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty; fetch or export it again")
    try:
        image = decode(data, max_pixels, first_frame)
    except PIL.UnidentifiedImageError:
        raise ImageError(
            f"{name}: not an image that can be read; convert it to PNG or JPEG"
        ) from None
    except MemoryError as error:
        raise MemoryLimitError(f"{name}: too large for the memory of this computer") from error
    except (ImageError, MemoryLimitError) as error:
        raise type(error)(f"{name}: {error}") from None
    except NotImplementedError as error:
        raise _unknown_kind(name, error) from error
    # damaged files make the decoders raise nearly anything
    except Exception as error:
        if isinstance(error, (OSError, ValueError)) and _UNKNOWN.search(str(error)):
            raise _unknown_kind(name, error) from error
        raise ImageError(f"{name}: damaged: {reason(error)}; fetch or export it again") from error
    return replace(image, notes=tuple(f"{name}: {note}" for note in image.notes))


def _unknown_kind(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name}: of a kind that cannot be read: {reason(error)}; convert it to PNG or TIFF"
    )


def check_writable(path: Path, size: tuple[int, int] | None = None) -> None:
    """Say before long work whether write_image could write to path; creates and alters nothing.

    size is the (height, width) to be written, where it is known: some formats have limits.
    Raises CallError (unknown suffix, no such folder, path is a folder,
    size over the limit) and ImageError (not permitted).
    """
    try:
        check_side(format_of(path.suffix), size)
        target = path.resolve()
        if target.is_dir():
            raise CallError("is a folder; name an image file")
        if target.exists() and not target.is_file():
            raise CallError("is not a regular file; name another output")
        if not target.parent.is_dir():
            raise CallError(f"there is no folder {target.parent}; create it first")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise ImageError(f"no permission to write into {target.parent}; name another folder")
        if target.exists() and not os.access(target, os.W_OK):
            raise ImageError("is write-protected; name another output")
    except (CallError, ImageError) as error:
        raise type(error)(f"{path}: {error}") from None
    # RuntimeError: a loop of links, before Python 3.13
    except (OSError, RuntimeError) as error:
        raise ImageError(f"{path}: cannot be written: {reason(error)}") from error


def write_image(path: Path, image: Image, *, quality: int | None = None) -> list[str]:
    """Write image in the format of the suffix, as encode_image does; return its notes, each
    beginning with path.

    A new file gets the usual permissions; an existing one is replaced in one step, keeps its mode,
    and is untouched where anything fails. Links are written through.

    Raises as check_writable and encode_image do, and ImageError (disk full).
    """
    check_writable(path, image.pixels.shape[:2])
    try:
        with replacing(path.resolve()) as file:
            notes = encode(image, format_of(path.suffix), quality, file)
    except MambairError as error:
        raise type(error)(f"{path}: {error}") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {reason(error)}") from error
    return [f"{path}: {note}" for note in notes]


def encode_image(
    image: Image, format_name: str, quality: int | None = None
) -> tuple[bytes, list[str]]:
    """Write the file that holds image into memory; return it and the notes of `encode`.

    format_name is a suffix without its dot, such as "png". Raises CallError where it is unknown,
    too.
    """
    file = io.BytesIO()
    notes = encode(image, format_of("." + format_name), quality, file)
    return file.getvalue(), notes
