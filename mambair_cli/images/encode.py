"""From an `Image` to the bytes of a file: who writes what, in whatever of depth and metadata a
format can hold.

Pillow and pillow-heif encode. The writers of PNG, TIFF and PPM are this package's: they take an
image of any size some rows at a time, and no library writes the first two of more than 8 bits with
alpha and all metadata.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import PIL.Image

from ..errors import CallError, ImageError, MemoryLimitError
from . import avif, bmp, heif, jpeg, jxl, metadata, netpbm, png, tiff, webp
from .colour import profile, to_srgb
from .image import Image, each_frame
from .samples import on_white, reduced


def encode(image: Image, format: "Format", quality: int | None, file: BinaryIO) -> list[str]:
    """Write the file that holds image, and return a note for each thing that the format cannot
    hold.

    Alpha that cannot be held is laid on white. PPM and PGM are P5 for gray and P6 for RGB, whatever
    the name; TIFF is deflated, and BigTIFF from 4 GiB of samples on. What has no place of its own
    but one in EXIF goes there.

    Args:
        image: its metadata are written as they are, but for sizes.
        format: see `format_of`.
        quality: 1 (small) to 100 (good), for JPEG and WebP (95 where None), AVIF, HEIC and
            JPEG XL (90). At 100, WebP and JPEG XL lose nothing; WebP neither where None and the
            image did not, or its colours change from pixel to pixel.
        file: empty, at its beginning; must be able to seek.

    PNG, TIFF and PPM take some rows at a time. With the file, the other encoders take at most 2.5
    times the bytes of the pixels (measured at 8 megapixels), those of WebP 5 (10 with alpha), HEIC
    9 and AVIF 12 times.

    Raises CallError (too many pixels a side, quality), ImageError (not encodable),
    MemoryLimitError, and OSError with an errno where the file cannot be written.
    """
    check_side(format, image.pixels.shape[:2])
    if quality is not None and not 1 <= quality <= 100:
        raise CallError(f"the quality must be 1 to 100, not {quality}")
    try:
        notes: list[str] = []
        frames = image.frames
        if frames and frames.kind not in format.holds:
            count = len(frames.images) + 1
            notes.append(
                f"{format.name} holds no {frames.kind}: only the first of {count} is written"
            )
            image = replace(image, frames=None)
        fitted = each_frame(image, lambda frame, _: _fit(frame, format, notes))
        if quality is not None and not format.quality:
            notes.append(f"{format.name} loses nothing: the quality does not count")
        # a WebP file that lost nothing becomes another one
        is_free = quality is None and format is _WEBP
        if is_free and (image.lossless or webp.suffers(fitted)):
            quality = 100
        format.write(fitted, quality or format.quality, file)
        return list(dict.fromkeys(notes))
    except MemoryError as error:
        raise MemoryLimitError("too large for the memory of this computer") from error
    # as many kinds as there are encoders
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise ImageError(f"cannot be encoded as {format.name}: {reason(error)}") from error


def _fit(image: Image, format: "Format", notes: list[str]) -> Image:
    """Fit a frame to what the format can hold, and add what is lost to notes."""
    check_side(format, image.pixels.shape[:2])
    fitted, changes = _fit_colour(metadata.sized(image), format)
    fitted, more = _fit_pixels(fitted, format)
    fitted, lost = metadata.fit(fitted, format.name, format.holds, format.longest)
    notes += [*changes, *more, *lost]
    return fitted


def _fit_colour(image: Image, format: "Format") -> tuple[Image, list[str]]:
    """Keep colour tags, or turn them into a profile, or convert the pixels to sRGB."""
    tags = image.colour
    if tags is None or tags.is_srgb or (image.icc_profile and not tags.cicp):
        return image, []
    if ("CICP" if tags.cicp else "gamma") in format.holds:
        return image, []
    if not tags.is_known and image.icc_profile:
        return replace(image, colour=None), []
    if not tags.is_known:
        note = f"its colour space ({tags}) is unknown: written as if it were sRGB"
        return replace(image, colour=None), [note]
    equivalent = profile(tags, image.pixels.ndim == 2)
    if equivalent and "colour profile" in format.holds:
        return replace(image, colour=None, icc_profile=equivalent), []
    pixels = to_srgb(image.pixels, tags)
    note = f"{format.name} cannot hold its colour space ({tags}): converted to sRGB"
    return replace(image, colour=None, icc_profile=None, pixels=pixels), [note]


def _fit_pixels(image: Image, format: "Format") -> tuple[Image, list[str]]:
    """Fit pixels and alpha to what the format can hold, with a note for each thing that changed."""
    notes, pixels, alpha = [], image.pixels, image.alpha
    if alpha is not None and "alpha" not in format.holds:
        notes.append(f"{format.name} has no transparency: laid on white")
        pixels, alpha = on_white(pixels, alpha), None
    if pixels.itemsize * 8 > format.bits:
        notes.append(
            f"{format.name} holds {format.bits} bits a sample: reduced from {pixels.dtype}"
        )
        # half a step of 8 bits beyond the range is nobody's loss
        if pixels.dtype == np.float32 and not (-0.002 <= pixels.min() <= pixels.max() <= 1.002):
            notes.append(f"{format.name} holds black to white: what lies beyond is clipped")
        dtype = np.dtype(np.uint8 if format.bits == 8 else np.uint16)
        if pixels.dtype != dtype:
            pixels = reduced(pixels, dtype)
            alpha = None if alpha is None else reduced(alpha, dtype)
    gray = "gray" if alpha is None else "gray with alpha"
    if pixels.ndim == 2 and gray not in format.holds:
        notes.append(f"{format.name} has no {gray}: written as RGB")
        pixels = np.dstack([pixels] * 3)
    return replace(image, pixels=pixels, alpha=alpha), notes


@dataclass(frozen=True)
class Format:
    """An output format.

    write: takes an image that the format can hold, a quality, and the file.
    bits: of a sample, at most.
    quality: where none is asked for; 0 where nothing is lost.
    max_side: pixels.
    longest: bytes of EXIF, and of XMP.
    """

    name: str
    write: Callable[[Image, int, BinaryIO], None]
    holds: frozenset[str]
    bits: int = 8
    quality: int = 0
    max_side: int = 2**31 - 1
    longest: int = 2**31 - 1


_COLOUR = frozenset({"alpha", "colour profile", "EXIF", "XMP"})
_JPEG_HOLDS = frozenset(
    {
        "gray",
        "colour profile",
        "EXIF",
        "XMP",
        "resolution",
        "comment",
        "IPTC",
        "long XMP",
        "gain map",
    }
)
_JPEG = Format("JPEG", jpeg.write, _JPEG_HOLDS, quality=95, max_side=65500, longest=65500)
_WEBP = Format("WebP", webp.write, _COLOUR | {"animation"}, quality=95, max_side=16383)
_AVIF_HOLDS = (
    _COLOUR
    | {"CICP", "animation"}
    | ({"gray"} if int(PIL.__version__.split(".")[0]) >= 13 else set())
)
_AVIF = Format("AVIF", avif.write, _AVIF_HOLDS, quality=90, max_side=32768)
_ALL = _COLOUR | {"gray", "gray with alpha"}
_HEIC = Format("HEIC", heif.write, _ALL | {"CICP"}, bits=10, quality=90, max_side=16384)
_TIFF = Format("TIFF", tiff.write, _ALL | {"IPTC", "pages"}, bits=32)
_PNG = Format(
    "PNG", png.write, _ALL | {"resolution", "text", "CICP", "gamma", "animation", "IPTC"}, bits=16
)
_BMP = Format("BMP", bmp.write, frozenset({"gray", "resolution"}))
_NETPBM = Format("PPM", netpbm.write, frozenset({"gray"}), bits=16)
_FORMATS = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _BMP,
    ".ppm": _NETPBM,
    ".pgm": _NETPBM,
    ".avif": _AVIF,
    ".heic": _HEIC,
    ".heif": _HEIC,
}
if jxl.INSTALLED:
    _JXL_HOLDS = frozenset({"gray", "gray with alpha", "alpha", "EXIF", "XMP"})
    _FORMATS[".jxl"] = Format("JPEG XL", jxl.write, _JXL_HOLDS, quality=90)
OUTPUT_SUFFIXES = tuple(_FORMATS)
"""The suffixes that write_image knows, in lower case."""


def format_of(suffix: str) -> Format:
    """Find the output format of a suffix with its dot.

    Raises CallError (unknown, or JPEG XL without its package).
    """
    if suffix.lower() == ".jxl" and not jxl.INSTALLED:
        raise CallError(jxl.NO_JXL)
    format = _FORMATS.get(suffix.lower())
    if format is None:
        raise CallError(f"unknown suffix {suffix!r}; use one of {' '.join(OUTPUT_SUFFIXES)}")
    return format


def check_side(format: Format, size: tuple[int, ...] | None) -> None:
    """Raise CallError where the format cannot hold an image of this (height, width)."""
    if size is not None and max(size) > format.max_side:
        raise CallError(f"{format.name} ends at {format.max_side} pixels a side; use .png")


def reason(error: BaseException) -> str:
    """The message of an error of another library, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
