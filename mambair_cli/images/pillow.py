"""The formats that Pillow reads and writes well, and how to keep it quiet."""

import contextlib
import io
import logging
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import cv2
import numpy as np
import PIL.Image
from PIL import ImageCms, PngImagePlugin

from ..errors import ImageError
from ..system.stderr import muted
from . import exif
from .image import Image
from .samples import Samples, in_range, interleaved

MAX_TEXT = 16 * 2**20
"""The most bytes of one text, or colour profile, of a PNG file."""

_DAMAGED = (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error)
"""What Pillow's reader of EXIF and XMP raises."""

ICONS = {"ICNS", "ICO", "CUR"}
"""Formats of Pillow that hold files of other formats."""

LARGEST_ICON = 2**24
"""Pixels of the largest picture in an icon; macOS has up to 2**20."""

_LIBRARIES = threading.Lock()
# OpenCV 5 and 4
_OPENCV_LOG: Any = getattr(cv2.utils, "logging", cv2)
# else what Pillow logs goes to stderr
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the warnings of Pillow and OpenCV, and limits of Pillow; all are global, hence the
    lock.
    """
    with _LIBRARIES, warnings.catch_warnings(), muted():
        warnings.simplefilter("ignore")
        pixels, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        text, PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_CHUNK, MAX_TEXT
        level = _OPENCV_LOG.getLogLevel()
        _OPENCV_LOG.setLogLevel(0)
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = pixels, text
            _OPENCV_LOG.setLogLevel(level)


@contextlib.contextmanager
def opened(file: BinaryIO) -> Iterator[PIL.Image.Image]:
    """Open a file by Pillow, within `quiet_libraries`; nothing is decoded but some icons.

    Raises ImageError for a picture within the file that is larger than `limit` says, LARGEST_ICON
    for ICONS, and what Pillow raises.
    """
    PIL.Image.init()
    # EPS would run Ghostscript
    safe = [name for name in PIL.Image.ID if name != "EPS"]
    head = file.read(4)
    file.seek(0)
    if head == b"icns" or re.match(rb"\0\0[\1\2]\0", head):
        limit(LARGEST_ICON)
    try:
        with PIL.Image.open(file, formats=safe) as picture:
            yield picture
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(
            f"a picture in it is too large ({error}); it would fill the memory"
        ) from None


def limit(max_pixels: int) -> None:
    """Have Pillow refuse larger pictures within a file, until `quiet_libraries` ends."""
    # it refuses from twice as many on
    PIL.Image.MAX_IMAGE_PIXELS = max(1, max_pixels // 2)


def read(file: PIL.Image.Image) -> Samples:
    """Return the samples of a loaded Pillow image of any mode. Raises ImageError (out of range)."""
    mode = file.mode
    if mode == "F" or mode.startswith("I"):
        return in_range(np.asarray(file)), None
    if mode in {"1", "L"}:
        return np.asarray(_converted(file, "L")), None
    if mode in {"LA", "La"}:
        samples = np.asarray(_converted(file, "LA"))
        return samples[..., 0], samples[..., 1]
    if mode in {"RGBA", "RGBa", "PA"} or (mode == "P" and file.has_transparency_data):
        samples = np.asarray(_converted(file, "RGBA"))
        return samples[..., :3], samples[..., 3]
    return np.asarray(_to_rgb(file)), None


def read_frame(file: PIL.Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the RGB pixels and the alpha of a loaded frame, 8 bits each."""
    samples = np.array(_converted(file, "RGBA"))
    return np.ascontiguousarray(samples[..., :3]), np.ascontiguousarray(samples[..., 3])


def _converted(file: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    # convert would copy
    return file if file.mode == mode else file.convert(mode)


def _to_rgb(file: PIL.Image.Image) -> PIL.Image.Image:
    profile: bytes = file.info.get("icc_profile") or b""
    if file.mode == "LAB" or (file.mode == "CMYK" and profile[16:20] == b"CMYK"):
        is_lab = file.mode == "LAB"
        # a damaged profile counts as none
        with contextlib.suppress(ImageCms.PyCMSError):
            source: Any = ImageCms.createProfile("LAB") if is_lab else io.BytesIO(profile)
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(file, source, srgb, outputMode="RGB")
            # it is None only with inPlace
            assert converted is not None
            return converted
    return _converted(file, "RGB")


def orientation(file: PIL.Image.Image) -> Any:
    """Return the EXIF or XMP orientation that is still to be applied to a loaded image."""
    try:
        return file.getexif().get(exif.ORIENTATION)
    # a damaged EXIF or XMP block says nothing about the pixels
    except _DAMAGED:
        return None


def write(image: Image, quality: int, file: BinaryIO, name: str, **options: Any) -> None:
    """Write a file in the format that Pillow knows by this name."""
    options = {
        "icc_profile": image.icc_profile,
        "exif": image.exif,
        "xmp": image.xmp,
        "dpi": image.dpi,
    } | options
    if image.frames:
        others = [PIL.Image.fromarray(interleaved(frame)) for frame in image.frames.images]
        options |= {"save_all": True, "append_images": others, "loop": image.frames.plays}
        options["duration"] = [round(duration) for duration in image.frames.durations]
    given = {key: value for key, value in options.items() if value is not None}
    # Pillow would not tell why a file cannot be written
    encoded = io.BytesIO()
    PIL.Image.fromarray(interleaved(image)).save(encoded, name, quality=quality, **given)
    file.write(encoded.getbuffer())
