"""Reads and writes photographs, and keeps what a file holds: depth, gray, alpha, colour profile, EXIF, texts.

Pillow reads, and so finds damaged files, and writes 8 bits. The samples that it would cut come from `samples`.
The writers of deeper PNG and of TIFF are here, as no library writes these with alpha and all metadata.
"""

import contextlib
import io
import itertools
import os
import re
import secrets
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from PIL import PngImagePlugin

from . import exif
from .errors import CallError, ImageError, MambairError, MemoryLimitError
from .image_decode import ROWS, WHITE, decode, in_bands, join_png, pillow_heif, png_chunks

MAX_PIXELS = 512 * 2**20
"""The largest image that is read unless the caller says otherwise: a guard against decompression bombs."""

MAX_TIFF = 2**32 - 2**27
"""The most bytes of samples that leave room for the rest of a TIFF file; more of them make a BigTIFF."""

_NO_HEIC = "HEIC needs one more package: pip install mambair[heif]"


@dataclass(frozen=True, eq=False)
class Image:
    """A photograph as it is seen: EXIF orientation is applied.

    pixels: H x W (gray) or H x W x 3 (RGB); uint8 in 0..255, uint16 in 0..65535, or float32, where black is 0
        and white is 1, and which may go beyond both.
    alpha: H x W, of the type and range of pixels, not premultiplied; None where the file has none.
    icc_profile: the colour space of pixels; None where the file has none, or one that does not fit pixels.
    exif: well-formed EXIF from its byte order mark on, without a thumbnail, and of orientation 1.
    xmp: Adobe's metadata, an XML packet.
    dpi: pixels an inch across and down, 1..65535.
    text: texts by the keywords of PNG, such as Description or Comment.
    notes: what of the file was not read, one line each.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype not in WHITE or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
            raise ValueError(f"no pixels of an image: {self.pixels.dtype} {shape}")
        alpha = self.alpha
        if alpha is not None and (alpha.dtype, alpha.shape) != (self.pixels.dtype, shape[:2]):
            raise ValueError(f"alpha does not fit the pixels: {alpha.dtype} {alpha.shape}")


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read an image file, as decode_image does.

    Raises CallError (no such file, or a folder), and ImageError (not permitted) and others as decode_image.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CallError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise CallError(f"{path}: is a folder; name an image file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {_reason(error)}") from error
    return decode_image(data, str(path), max_pixels=max_pixels)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The first frame of an image file of any kind that Pillow knows, upright, at its full depth.

    Gray stays gray; palette, CMYK, YCbCr, LAB and the like become RGB; 1-bit becomes 8-bit gray. Gray and
    colours deeper than 8 bits are kept in PNG, TIFF, PPM and HEIC; AVIF, JPEG 2000 and CMYK give 8 bits. HEIC
    needs pillow-heif. name stands for the file in notes and errors.

    Raises ImageError (no image, damaged, over max_pixels, samples out of range) and MemoryLimitError.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty; fetch or export it again")
    try:
        image = Image(**decode(data, max_pixels))
    except PIL.UnidentifiedImageError:
        if pillow_heif is None and re.match(rb"....ftyp(hei|hev|mif1|msf1)", data, re.DOTALL):
            raise ImageError(f"{name}: {_NO_HEIC}") from None
        raise ImageError(f"{name}: not an image that can be read; convert it to PNG or JPEG") from None
    except MemoryError as error:
        raise MemoryLimitError(f"{name}: too large for the memory of this computer") from error
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise ImageError(f"{name}: damaged: {_reason(error)}; fetch or export it again") from error
    return replace(image, notes=tuple(f"{name}: {note}" for note in image.notes))


def check_writable(path: Path, size: tuple[int, int] | None = None) -> None:
    """Say before long work whether write_image could write to path; creates and alters nothing.

    size is the (height, width) to be written, where it is known: some formats have limits.
    Raises CallError (unknown suffix, HEIC without pillow-heif, no such folder, path is a folder, size over the
    limit) and ImageError (not permitted).
    """
    try:
        _check_side(_format(path.suffix), size)
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
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ImageError(f"{path}: cannot be written: {_reason(error)}") from error


def write_image(path: Path, image: Image, *, quality: int | None = None) -> list[str]:
    """Write image in the format of the suffix, as encode_image does; return its notes, each beginning with path.

    A new file gets the usual permissions; an existing one is replaced in one step, keeps its mode, and is
    untouched where anything fails. Links are written through.

    Raises as check_writable and encode_image do, and ImageError (disk full).
    """
    check_writable(path, image.pixels.shape[:2])
    try:
        data, notes = encode_image(image, path.suffix[1:], quality)
    except MambairError as error:
        raise type(error)(f"{path}: {error}") from error
    _replace(path, data)
    return [f"{path}: {note}" for note in notes]


def encode_image(image: Image, format_name: str, quality: int | None = None) -> tuple[bytes, list[str]]:
    """The file that holds image, and a note for each thing that the format cannot hold.

    Alpha that cannot be held is laid on white. PPM and PGM are P5 for gray and P6 for RGB, whatever the name;
    TIFF is deflated, and BigTIFF beyond 4 GiB. What has no place of its own but one in EXIF goes there.

    Args:
        image: its metadata are written as they are.
        format_name: a suffix without its dot, such as "png"; see OUTPUT_SUFFIXES.
        quality: 1 (small) to 100 (good), for JPEG and WebP (95 where None), AVIF and HEIC (90).

    With the file, the encoders take at most 2.5 times the bytes of the pixels (measured at 8 megapixels), those
    of WebP 5 (10 with alpha), HEIC 9 and AVIF 12 times.

    Raises CallError (unknown format, HEIC without pillow-heif, too many pixels a side, quality), ImageError
    (not encodable) and MemoryLimitError.
    """
    format = _format("." + format_name)
    _check_side(format, image.pixels.shape[:2])
    if quality is not None and not 1 <= quality <= 100:
        raise CallError(f"the quality must be 1 to 100, not {quality}")
    try:
        fitted, notes = _fit_pixels(image, format)
        fitted, more = _fit_metadata(fitted, format)
        if quality is not None and not format.quality:
            more.append(f"{format.name} loses nothing: the quality does not count")
        return format.encode(fitted, quality or format.quality), notes + more
    except MemoryError as error:
        raise MemoryLimitError("too large for the memory of this computer") from error
    except Exception as error:  # as many kinds as there are encoders
        raise ImageError(f"cannot be encoded as {format.name}: {_reason(error)}") from error


def _replace(path: Path, data: bytes) -> None:
    """Put data in the place of path, or leave path as it is."""
    target = path.resolve()
    temporary = target.with_name(f".mambair-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# Writing


def _fit_pixels(image: Image, format: "_Format") -> tuple[Image, list[str]]:
    """The image with pixels and alpha that the format can hold, and a note for each thing that changed."""
    notes, pixels, alpha = [], image.pixels, image.alpha
    if alpha is not None and "alpha" not in format.holds:
        notes.append(f"{format.name} has no transparency: laid on white")
        pixels, alpha = _on_white(pixels, alpha), None
    if pixels.itemsize * 8 > format.bits:
        notes.append(f"{format.name} holds {format.bits} bits a sample: reduced from {pixels.dtype}")
        dtype = np.dtype(np.uint8 if format.bits == 8 else np.uint16)
        if pixels.dtype != dtype:
            pixels, alpha = _reduced(pixels, dtype), None if alpha is None else _reduced(alpha, dtype)
    gray = "gray" if alpha is None else "gray with alpha"
    if pixels.ndim == 2 and gray not in format.holds:
        notes.append(f"{format.name} has no {gray}: written as RGB")
        pixels = np.dstack([pixels] * 3)
    return replace(image, pixels=pixels, alpha=alpha), notes


def _fit_metadata(image: Image, format: "_Format") -> tuple[Image, list[str]]:
    """The image with the metadata that the format can hold, and a note of what is left out."""
    block, dpi, text, holds = image.exif, image.dpi, dict(image.text), format.holds
    if "EXIF" in holds:  # where there is a place also for what few formats hold elsewhere
        old = exif.parse(block) if block else exif.Block("<", {})
        new: exif.Entries = {}
        if "text" not in holds:
            for keyword in text.keys() & exif.TEXTS.keys():
                if exif.TEXTS[keyword] not in old.entries:
                    new[exif.TEXTS[keyword]] = exif.text(text.pop(keyword))
        if dpi and "resolution" not in holds:
            if not np.allclose(dpi, exif.resolution(old) or 0, rtol=1e-4):
                new |= exif.of_resolution(old.order, dpi)
            dpi = None
        if new:
            block = exif.joined(old.order, old.entries | new)
    fits = {
        "colour profile": not (image.pixels.ndim == 3 and (image.icc_profile or b"")[16:20] == b"GRAY"),
        "EXIF": len(block or b"") <= format.longest,
        "XMP": len(image.xmp or b"") <= format.longest,
        "comment": len(text.get("Comment", "").encode()) <= format.longest,
    }
    kept = {what for what in holds if fits.get(what, True)}
    values: dict[str, Any] = {"colour profile": image.icc_profile, "EXIF": block, "XMP": image.xmp, "resolution": dpi}
    lost = [what for what, value in values.items() if value and what not in kept]
    if "text" not in kept:
        comment = {"Comment": text.pop("Comment")} if "comment" in kept and "Comment" in text else {}
        lost += [f"text {keyword!r}" for keyword in text]
        text = comment
    notes = [f"{format.name} has no place for all metadata: left out {', '.join(lost)}"] if lost else []
    profile, block, xmp, dpi = (value if what in kept else None for what, value in values.items())
    return Image(image.pixels, image.alpha, profile, block, xmp, dpi, text), notes


def _on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay pixels with alpha on a white ground."""
    white = WHITE[pixels.dtype]

    def lay(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        share = (alpha if pixels.ndim == 2 else alpha[..., None]).clip(0, white) / np.float32(white)
        laid = pixels * share + np.float32(white) * (1 - share)
        return laid if white == 1 else np.rint(laid)

    return in_bands(lay, pixels.dtype, pixels, alpha)


def _reduced(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round samples to the nearest of a narrower type of integers; floats are cut off outside 0..1."""
    white = WHITE[samples.dtype]
    scale = np.float32(WHITE[dtype] / white)
    return in_bands(lambda samples: np.rint(samples.clip(0, white) * scale), dtype, samples)


def _samples(image: Image) -> np.ndarray:
    """H x W, or H x W x C with alpha last."""
    return image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])


def _encode_pillow(image: Image, quality: int, name: str, **options: Any) -> bytes:
    options = {"icc_profile": image.icc_profile, "exif": image.exif, "xmp": image.xmp, "dpi": image.dpi} | options
    given = {key: value for key, value in options.items() if value is not None}
    file = io.BytesIO()
    PIL.Image.fromarray(_samples(image)).save(file, name, quality=quality, **given)
    return file.getvalue()


def _encode_jpeg(image: Image, quality: int) -> bytes:
    block = b"Exif\0\0" + image.exif if image.exif else None
    comment = image.text["Comment"].encode() if image.text else None
    return _encode_pillow(image, quality, "JPEG", exif=block, comment=comment, subsampling=0)


def _encode_bmp(image: Image, quality: int) -> bytes:
    return _encode_pillow(replace(image, dpi=image.dpi or (0, 0)), quality, "BMP")  # else Pillow makes up 96


def _encode_avif(image: Image, quality: int) -> bytes:
    options: dict[str, Any] = {"subsampling": "4:4:4"} if image.pixels.ndim == 3 else {}
    if image.exif:  # Pillow would write its own instead of a block that has an orientation
        block = exif.parse(image.exif)
        block.entries.pop(exif.ORIENTATION, None)
        options["exif"] = exif.joined(block.order, block.entries) if block.entries else None
    return _encode_pillow(image, quality, "AVIF", **options)


def _encode_heic(image: Image, quality: int) -> bytes:
    samples = _samples(image)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples[0, 0].size] + ";16" * (samples.itemsize == 2)
    metadata = {"icc_profile": image.icc_profile, "exif": image.exif, "xmp": image.xmp}
    given = {key: value for key, value in metadata.items() if value is not None}
    file = io.BytesIO()
    pillow_heif.encode(mode, samples.shape[1::-1], samples.tobytes(), file, quality=quality, **given)
    return file.getvalue()


def _encode_png(image: Image, quality: int) -> bytes:
    texts = PngImagePlugin.PngInfo()
    for keyword, text in image.text.items():
        texts.add_text(keyword, text)
    if image.xmp:
        texts.add_itxt("XML:com.adobe.xmp", image.xmp)
    if image.pixels.dtype == np.uint8:
        return _encode_pillow(image, quality, "PNG", pnginfo=texts)
    # Pillow writes all but the samples, which it would cut.
    frame = _encode_pillow(replace(image, pixels=np.zeros((1, 1), np.uint8), alpha=None), quality, "PNG", pnginfo=texts)
    samples = _samples(image)
    height, width = samples.shape[:2]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[samples[0, 0].size]
    chunks = []
    for kind, body in png_chunks(frame):
        if kind == b"IHDR":
            chunks.append((kind, struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)))
        elif kind == b"IDAT":
            chunks += [(kind, part) for part in _deflated_rows(samples)]
        else:
            chunks.append((kind, body))
    return join_png(chunks)


def _deflated_rows(samples: np.ndarray) -> Iterator[bytes]:
    """The bodies of IDAT chunks."""
    packer = zlib.compressobj()
    above = np.zeros((1, samples[0].size * 2), np.uint8)
    for top in range(0, len(samples), ROWS):
        rows = samples[top : top + ROWS].astype(">u2").reshape(-1, above.size // 2).view(np.uint8)
        filtered = np.full((len(rows), 1 + rows.shape[1]), 2, np.uint8)  # filter 2: the difference to the row above
        filtered[:, 1:] = np.diff(rows, axis=0, prepend=above)
        above = rows[-1:]
        if part := packer.compress(filtered.data):
            yield part
    yield packer.flush()


def _encode_tiff(image: Image, quality: int) -> bytes:
    old = exif.parse(image.exif) if image.exif else exif.Block("<", {})
    samples, order = _samples(image), old.order
    height, width = samples.shape[:2]
    channels, floating = samples[0, 0].size, samples.dtype == np.float32
    strips = []
    for top in range(0, height, ROWS):
        rows = samples[top : top + ROWS]
        if not floating:  # predictor 2: each sample is the difference to its left neighbour
            rows = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1]))
        strips.append(zlib.compress(rows.astype(order + samples.dtype.str[1:]).data))
    big = sum(map(len, strips)) > MAX_TIFF
    sizes = [len(strip) for strip in strips]
    start = len(exif.header(order, 0, big))
    offsets = list(itertools.accumulate(sizes, initial=start))
    tags = {
        exif.WIDTH: [width],
        exif.HEIGHT: [height],
        exif.BITS: [samples.itemsize * 8] * channels,
        exif.COMPRESSION: [8],
        exif.PHOTOMETRIC: [2 if channels > 2 else 1],
        exif.STRIP_OFFSETS: offsets[:-1],
        exif.SAMPLES: [channels],
        exif.ROWS_PER_STRIP: [ROWS],
        exif.STRIP_SIZES: sizes,
        exif.PREDICTOR: [1 if floating else 2],
        exif.SAMPLE_FORMAT: [3 if floating else 1] * channels,
    }
    if image.alpha is not None:
        tags[exif.EXTRA_SAMPLES] = [2]  # alpha, not premultiplied
    entries = exif.descriptive(old.entries) | {tag: exif.integers(order, *found) for tag, found in tags.items()}
    for tag, value in ((exif.XMP, image.xmp), (exif.ICC_PROFILE, image.icc_profile)):
        if value:
            entries[tag] = exif.raw(value)
    padding = bytes(offsets[-1] % 2)
    place = offsets[-1] + len(padding)
    return b"".join([exif.header(order, place, big), *strips, padding, exif.build(order, entries, place, big)])


def _encode_netpbm(image: Image, quality: int) -> bytes:
    height, width = image.pixels.shape[:2]
    header = b"P%d %d %d %d\n" % (5 if image.pixels.ndim == 2 else 6, width, height, WHITE[image.pixels.dtype])
    return b"".join([header, np.ascontiguousarray(image.pixels, image.pixels.dtype.newbyteorder(">")).data])


@dataclass(frozen=True)
class _Format:
    """An output format: encode takes an image that it can hold, and a quality."""

    name: str
    encode: Callable[[Image, int], bytes]
    holds: frozenset[str]
    bits: int = 8  # of a sample, at most
    quality: int = 0  # where none is asked for; 0 where nothing is lost
    max_side: int = 2**31 - 1
    longest: int = 2**31 - 1  # bytes of EXIF and XMP


_COLOUR = frozenset({"alpha", "colour profile", "EXIF", "XMP"})
_JPEG_HOLDS = frozenset({"gray", "colour profile", "EXIF", "XMP", "resolution", "comment"})
_JPEG = _Format("JPEG", _encode_jpeg, _JPEG_HOLDS, quality=95, max_side=65500, longest=65500)
_WEBP = _Format("WebP", partial(_encode_pillow, name="WEBP", exact=True), _COLOUR, quality=95, max_side=16383)
_AVIF_HOLDS = _COLOUR | ({"gray"} if int(PIL.__version__.split(".")[0]) >= 13 else set())
_AVIF = _Format("AVIF", _encode_avif, _AVIF_HOLDS, quality=90, max_side=32768)
_HEIC = _Format("HEIC", _encode_heic, _COLOUR | {"gray", "gray with alpha"}, 10, quality=90, max_side=16384)
_TIFF = _Format("TIFF", _encode_tiff, _COLOUR | {"gray", "gray with alpha"}, 32)
_PNG = _Format("PNG", _encode_png, _COLOUR | {"gray", "gray with alpha", "resolution", "text"}, 16)
_BMP = _Format("BMP", _encode_bmp, frozenset({"gray", "resolution"}))
_NETPBM = _Format("PPM", _encode_netpbm, frozenset({"gray"}), 16)
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
OUTPUT_SUFFIXES = tuple(_FORMATS)
"""The suffixes that write_image knows, in lower case."""


def _format(suffix: str) -> _Format:
    format = _FORMATS.get(suffix.lower())
    if format is None:
        raise CallError(f"unknown suffix {suffix!r}; use one of {' '.join(OUTPUT_SUFFIXES)}")
    if format is _HEIC and pillow_heif is None:
        raise CallError(_NO_HEIC)
    return format


def _check_side(format: _Format, size: tuple[int, ...] | None) -> None:
    if size is not None and max(size) > format.max_side:
        raise CallError(f"{format.name} ends at {format.max_side} pixels a side; use .png")


def _reason(error: BaseException) -> str:
    """The message of an error of another library, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
