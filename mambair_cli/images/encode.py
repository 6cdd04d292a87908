"""From a photograph to the bytes of a file, in whatever of its depth and metadata the format can hold.

Pillow and pillow-heif encode. The writers of PNG, TIFF and PPM are here: they take an image of any size some rows at a
time, and no library writes the first two of more than 8 bits with alpha and all metadata.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL import PngImagePlugin

from ..errors import CallError, ImageError, MemoryLimitError
from ..system import scratch
from . import decode as image_decode
from . import exif
from .decode import PNG_SIGNATURE, png_chunk, png_chunks
from .image import WHITE, Image, band_rows, in_bands

MAX_TIFF = 2**32 - 2**27
"""The most bytes of samples that leave room for the rest of a TIFF file; more of them make a BigTIFF."""

NO_HEIC = "HEIC needs one more package: pip install 'mambair[heif]'"


def encode(image: Image, format: "Format", quality: int | None, file: BinaryIO) -> list[str]:
    """Write the file that holds image, and return a note for each thing that the format cannot hold.

    Alpha that cannot be held is laid on white. PPM and PGM are P5 for gray and P6 for RGB, whatever the name; TIFF
    is deflated, and BigTIFF from 4 GiB of samples on. What has no place of its own but one in EXIF goes there.

    Args:
        image: its metadata are written as they are.
        format: see `format_of`.
        quality: 1 (small) to 100 (good), for JPEG and WebP (95 where None), AVIF and HEIC (90).
        file: empty, at its beginning; must be able to seek.

    PNG, TIFF and PPM take some rows at a time. With the file, the other encoders take at most 2.5 times the bytes of
    the pixels (measured at 8 megapixels), those of WebP 5 (10 with alpha), HEIC 9 and AVIF 12 times.

    Raises CallError (too many pixels a side, quality), ImageError (not encodable), MemoryLimitError, and OSError
    with an errno where the file cannot be written.
    """
    check_side(format, image.pixels.shape[:2])
    if quality is not None and not 1 <= quality <= 100:
        raise CallError(f"the quality must be 1 to 100, not {quality}")
    try:
        fitted, notes = _fit_pixels(image, format)
        fitted, more = _fit_metadata(fitted, format)
        if quality is not None and not format.quality:
            more.append(f"{format.name} loses nothing: the quality does not count")
        format.write(fitted, quality or format.quality, file)
        return notes + more
    except MemoryError as error:
        raise MemoryLimitError("too large for the memory of this computer") from error
    except Exception as error:  # as many kinds as there are encoders
        if isinstance(error, OSError) and error.errno:
            raise
        raise ImageError(f"cannot be encoded as {format.name}: {reason(error)}") from error


def _fit_pixels(image: Image, format: "Format") -> tuple[Image, list[str]]:
    """The image with pixels and alpha that the format can hold, and a note for each thing that changed."""
    notes, pixels, alpha = [], image.pixels, image.alpha
    if alpha is not None and "alpha" not in format.holds:
        notes.append(f"{format.name} has no transparency: laid on white")
        pixels, alpha = _on_white(pixels, alpha), None
    if pixels.itemsize * 8 > format.bits:
        notes.append(
            f"{format.name} holds {format.bits} bits a sample: reduced from {pixels.dtype}"
        )
        dtype = np.dtype(np.uint8 if format.bits == 8 else np.uint16)
        if pixels.dtype != dtype:
            pixels, alpha = (
                _reduced(pixels, dtype),
                None if alpha is None else _reduced(alpha, dtype),
            )
    gray = "gray" if alpha is None else "gray with alpha"
    if pixels.ndim == 2 and gray not in format.holds:
        notes.append(f"{format.name} has no {gray}: written as RGB")
        pixels = np.dstack([pixels] * 3)
    return replace(image, pixels=pixels, alpha=alpha), notes


def _fit_metadata(image: Image, format: "Format") -> tuple[Image, list[str]]:
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
        "colour profile": not (
            image.pixels.ndim == 3 and (image.icc_profile or b"")[16:20] == b"GRAY"
        ),
        "EXIF": len(block or b"") <= format.longest,
        "XMP": len(image.xmp or b"") <= format.longest,
        "comment": len(text.get("Comment", "").encode()) <= format.longest,
    }
    kept = {what for what in holds if fits.get(what, True)}
    values: dict[str, Any] = {
        "colour profile": image.icc_profile,
        "EXIF": block,
        "XMP": image.xmp,
        "resolution": dpi,
    }
    lost = [what for what, value in values.items() if value and what not in kept]
    if "text" not in kept:
        comment = (
            {"Comment": text.pop("Comment")} if "comment" in kept and "Comment" in text else {}
        )
        lost += [f"text {keyword!r}" for keyword in text]
        text = comment
    notes = (
        [f"{format.name} has no place for all metadata: left out {', '.join(lost)}"] if lost else []
    )
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


def _channels(image: Image) -> int:
    return (3 if image.pixels.ndim == 3 else 1) + (image.alpha is not None)


def _bands(image: Image) -> Iterator[np.ndarray]:
    """The samples of some rows after the other, each h x W x C."""
    planes = [plane for plane in (image.pixels, image.alpha) if plane is not None]
    step = band_rows(image.pixels)
    for top in range(0, len(image.pixels), step):
        yield np.dstack([plane[top : top + step] for plane in planes])
        scratch.release(*planes)


def _write_pillow(image: Image, quality: int, file: BinaryIO, name: str, **options: Any) -> None:
    options = {
        "icc_profile": image.icc_profile,
        "exif": image.exif,
        "xmp": image.xmp,
        "dpi": image.dpi,
    } | options
    given = {key: value for key, value in options.items() if value is not None}
    encoded = io.BytesIO()  # Pillow would not tell why a file cannot be written
    PIL.Image.fromarray(_samples(image)).save(encoded, name, quality=quality, **given)
    file.write(encoded.getbuffer())


def _write_jpeg(image: Image, quality: int, file: BinaryIO) -> None:
    block = b"Exif\0\0" + image.exif if image.exif else None
    comment = image.text["Comment"].encode() if image.text else None
    _write_pillow(image, quality, file, "JPEG", exif=block, comment=comment, subsampling=0)


def _write_bmp(image: Image, quality: int, file: BinaryIO) -> None:
    _write_pillow(
        replace(image, dpi=image.dpi or (0, 0)), quality, file, "BMP"
    )  # else Pillow makes up 96


def _write_avif(image: Image, quality: int, file: BinaryIO) -> None:
    options: dict[str, Any] = {"subsampling": "4:4:4"} if image.pixels.ndim == 3 else {}
    if image.exif:  # Pillow would write its own instead of a block that has an orientation
        block = exif.parse(image.exif)
        block.entries.pop(exif.ORIENTATION, None)
        options["exif"] = exif.joined(block.order, block.entries) if block.entries else None
    _write_pillow(image, quality, file, "AVIF", **options)


def _write_heic(image: Image, quality: int, file: BinaryIO) -> None:
    samples = _samples(image)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[samples[0, 0].size] + ";16" * (
        samples.itemsize == 2
    )
    metadata = {"icc_profile": image.icc_profile, "exif": image.exif, "xmp": image.xmp}
    given = {key: value for key, value in metadata.items() if value is not None}
    encoded = io.BytesIO()
    image_decode.pillow_heif.encode(
        mode, samples.shape[1::-1], samples.tobytes(), encoded, quality=quality, **given
    )
    file.write(encoded.getbuffer())


def _write_png(image: Image, quality: int, file: BinaryIO) -> None:
    texts = PngImagePlugin.PngInfo()
    for keyword, text in image.text.items():
        texts.add_text(keyword, text)
    if image.xmp:
        texts.add_itxt("XML:com.adobe.xmp", image.xmp)
    frame = io.BytesIO()  # by Pillow: all but the samples
    _write_pillow(
        replace(image, pixels=np.zeros((1, 1), np.uint8), alpha=None),
        0,
        frame,
        "PNG",
        pnginfo=texts,
    )
    height, width = image.pixels.shape[:2]
    bits, colour_type = image.pixels.itemsize * 8, {1: 0, 2: 4, 3: 2, 4: 6}[_channels(image)]
    file.write(PNG_SIGNATURE)
    for kind, body in png_chunks(frame.getvalue()):
        if kind == b"IHDR":
            file.write(
                png_chunk(kind, struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
            )
        elif kind == b"IDAT":
            for part in _deflated(image):
                file.write(png_chunk(kind, part))
        else:
            file.write(png_chunk(kind, body))


def _deflated(image: Image) -> Iterator[bytes]:
    """The bodies of IDAT chunks."""
    packer = zlib.compressobj(memLevel=9, strategy=zlib.Z_FILTERED)
    above = None
    for band in _bands(image):
        above = np.zeros_like(band[:1]) if above is None else above
        rows = np.concatenate([above, band])
        if part := packer.compress(
            _filtered(rows) if band.dtype == np.uint8 else _differences(rows)
        ):
            yield part
        above = band[-1:]
    yield packer.flush()


def _filtered(rows: np.ndarray) -> bytes:
    """The rows of 8 bits but the first, each by the filter that suits it best: Pillow finds that quickly."""
    file = io.BytesIO()
    PIL.Image.fromarray(rows if rows.shape[2] > 1 else rows[..., 0]).save(
        file, "PNG", compress_level=0
    )
    stored = b"".join(body for kind, body in png_chunks(file.getvalue()) if kind == b"IDAT")
    return zlib.decompress(stored)[1 + rows[0].size :]


def _differences(rows: np.ndarray) -> bytes:
    """The rows of 16 bits but the first, by filter 2: each byte is the difference to the one above it."""
    stored = rows.astype(">u2").reshape(len(rows), -1).view(np.uint8)
    filtered = np.full((len(rows) - 1, 1 + stored.shape[1]), 2, np.uint8)
    np.subtract(stored[1:], stored[:-1], out=filtered[:, 1:])
    return filtered.tobytes()


def _write_tiff(image: Image, quality: int, file: BinaryIO) -> None:
    old = exif.parse(image.exif) if image.exif else exif.Block("<", {})
    pixels, channels, order = image.pixels, _channels(image), old.order
    height, width = pixels.shape[:2]
    floating = pixels.dtype == np.float32
    big = height * width * channels * pixels.itemsize > MAX_TIFF
    file.write(exif.header(order, 0, big))  # the place of the directory comes when it is known
    offsets = [file.tell()]
    for rows in _bands(image):
        if not floating:  # predictor 2: each sample is the difference to its left neighbour
            rows = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1]))
        file.write(zlib.compress(rows.astype(order + pixels.dtype.str[1:]).data))
        offsets.append(file.tell())
    tags = {
        exif.WIDTH: [width],
        exif.HEIGHT: [height],
        exif.BITS: [pixels.itemsize * 8] * channels,
        exif.COMPRESSION: [8],
        exif.PHOTOMETRIC: [2 if channels > 2 else 1],
        exif.STRIP_OFFSETS: offsets[:-1],
        exif.SAMPLES: [channels],
        exif.ROWS_PER_STRIP: [band_rows(pixels)],
        exif.STRIP_SIZES: [end - start for start, end in itertools.pairwise(offsets)],
        exif.PREDICTOR: [1 if floating else 2],
        exif.SAMPLE_FORMAT: [3 if floating else 1] * channels,
    }
    if image.alpha is not None:
        tags[exif.EXTRA_SAMPLES] = [2]  # alpha, not premultiplied
    entries = exif.descriptive(old.entries) | {
        tag: exif.integers(order, *found) for tag, found in tags.items()
    }
    for tag, value in ((exif.XMP, image.xmp), (exif.ICC_PROFILE, image.icc_profile)):
        if value:
            entries[tag] = exif.raw(value)
    file.write(bytes(offsets[-1] % 2))
    place = file.tell()
    file.write(exif.build(order, entries, place, big))
    file.seek(0)
    file.write(exif.header(order, place, big))


def _write_netpbm(image: Image, quality: int, file: BinaryIO) -> None:
    height, width = image.pixels.shape[:2]
    kind = 5 if image.pixels.ndim == 2 else 6
    file.write(b"P%d %d %d %d\n" % (kind, width, height, WHITE[image.pixels.dtype]))
    for rows in _bands(image):
        file.write(rows.astype(rows.dtype.newbyteorder(">"), copy=False).data)


@dataclass(frozen=True)
class Format:
    """An output format: write takes an image that it can hold, a quality, and the file."""

    name: str
    write: Callable[[Image, int, BinaryIO], None]
    holds: frozenset[str]
    bits: int = 8  # of a sample, at most
    quality: int = 0  # where none is asked for; 0 where nothing is lost
    max_side: int = 2**31 - 1
    longest: int = 2**31 - 1  # bytes of EXIF and XMP


_COLOUR = frozenset({"alpha", "colour profile", "EXIF", "XMP"})
_JPEG_HOLDS = frozenset({"gray", "colour profile", "EXIF", "XMP", "resolution", "comment"})
_JPEG = Format("JPEG", _write_jpeg, _JPEG_HOLDS, quality=95, max_side=65500, longest=65500)
_WEBP = Format(
    "WebP", partial(_write_pillow, name="WEBP", exact=True), _COLOUR, quality=95, max_side=16383
)
_AVIF_HOLDS = _COLOUR | ({"gray"} if int(PIL.__version__.split(".")[0]) >= 13 else set())
_AVIF = Format("AVIF", _write_avif, _AVIF_HOLDS, quality=90, max_side=32768)
_HEIC = Format(
    "HEIC", _write_heic, _COLOUR | {"gray", "gray with alpha"}, 10, quality=90, max_side=16384
)
_TIFF = Format("TIFF", _write_tiff, _COLOUR | {"gray", "gray with alpha"}, 32)
_PNG = Format("PNG", _write_png, _COLOUR | {"gray", "gray with alpha", "resolution", "text"}, 16)
_BMP = Format("BMP", _write_bmp, frozenset({"gray", "resolution"}))
_NETPBM = Format("PPM", _write_netpbm, frozenset({"gray"}), 16)
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


def format_of(suffix: str) -> Format:
    """The output format of a suffix with its dot. Raises CallError (unknown, or HEIC without pillow-heif)."""
    format = _FORMATS.get(suffix.lower())
    if format is None:
        raise CallError(f"unknown suffix {suffix!r}; use one of {' '.join(OUTPUT_SUFFIXES)}")
    if format is _HEIC and image_decode.pillow_heif is None:
        raise CallError(NO_HEIC)
    return format


def check_side(format: Format, size: tuple[int, ...] | None) -> None:
    """Raise CallError where the format cannot hold an image of this (height, width)."""
    if size is not None and max(size) > format.max_side:
        raise CallError(f"{format.name} ends at {format.max_side} pixels a side; use .png")


def reason(error: BaseException) -> str:
    """The message of an error of another library, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
