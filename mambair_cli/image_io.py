"""Reads and writes photographs, and keeps what a file holds: bit depth, gray, alpha, colour profile.

Pillow reads, and so finds damaged files. It cuts colours of 16 bits to 8, so those come from OpenCV (PNG and
TIFF) or straight from the file (PPM). Pillow writes 8 bits; the writers of deeper PNG and TIFF are here, as
neither library can write these with alpha and a colour profile.
"""

import contextlib
import io
import logging
import os
import secrets
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from PIL import ImageCms
from PIL import TiffImagePlugin as tiff

from mambair_cli.errors import CallError, ImageError, MemoryLimitError

MAX_PIXELS = 512 * 2**20
"""The largest image that is read unless the caller says otherwise: a guard against decompression bombs."""

_WHITE: dict[Any, float] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1.0}
_LIBRARIES = threading.Lock()
_OPENCV_LOG: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 and 4
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs goes to stderr


@dataclass(frozen=True, eq=False)
class Image:
    """A photograph as it is seen: EXIF orientation is applied.

    pixels: H x W (gray) or H x W x 3 (RGB); uint8 in 0..255, uint16 in 0..65535 or float32 in [0, 1].
    alpha: H x W, of the type and range of pixels, not premultiplied; None where the file has none.
    icc_profile: the colour space of pixels; None where the file has none, or one that does not fit pixels.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc_profile: bytes | None = None

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if self.pixels.dtype not in _WHITE or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
            raise ValueError(f"no pixels of an image: {self.pixels.dtype} {shape}")
        alpha = self.alpha
        if alpha is not None and (alpha.dtype, alpha.shape) != (self.pixels.dtype, shape[:2]):
            raise ValueError(f"alpha does not fit the pixels: {alpha.dtype} {alpha.shape}")


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read the first frame of any image that Pillow knows, upright, at its full depth.

    Gray stays gray; palette, CMYK, YCbCr, LAB and the like become RGB; 1-bit becomes 8-bit gray.
    Colours deeper than 8 bits are kept in PNG, TIFF and PPM; other formats (JPEG 2000, AVIF) give 8 bits.

    Raises CallError (no such file, or a folder), ImageError (no image, damaged, over max_pixels, not
    permitted) and MemoryLimitError.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise CallError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise CallError(f"{path}: is a folder; name an image file") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {_reason(error)}") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; fetch or export it again")
    try:
        with _quiet_libraries():
            return _decode(data, max_pixels)
    except PIL.UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that can be read; convert it to PNG or JPEG") from None
    except MemoryError as error:
        raise MemoryLimitError(f"{path}: too large for the memory of this computer") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise ImageError(f"{path}: damaged: {_reason(error)}; fetch or export it again") from error


def check_writable(path: Path, size: tuple[int, int] | None = None) -> None:
    """Say before long work whether write_image could write to path; creates and alters nothing.

    size is the (height, width) to be written, where it is known: WebP and JPEG have limits.
    Raises CallError (unknown suffix, no such folder, path is a folder, size over the limit) and
    ImageError (not permitted).
    """
    if path.suffix.lower() not in _FORMATS:
        raise CallError(f"{path}: unknown suffix {path.suffix!r}; use one of {' '.join(OUTPUT_SUFFIXES)}")
    format = _FORMATS[path.suffix.lower()]
    if size is not None and max(size) > format.max_side:
        raise CallError(f"{path}: {format.name} ends at {format.max_side} pixels a side; use .png")
    try:
        target = path.resolve()
        if target.is_dir():
            raise CallError(f"{path}: is a folder; name an image file")
        if target.exists() and not target.is_file():
            raise CallError(f"{path}: is not a regular file; name another output")
        if not target.parent.is_dir():
            raise CallError(f"{path}: there is no folder {target.parent}; create it first")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise ImageError(f"{path}: no permission to write into {target.parent}; name another folder")
        if target.exists() and not os.access(target, os.W_OK):
            raise ImageError(f"{path}: is write-protected; name another output")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ImageError(f"{path}: cannot be written: {_reason(error)}") from error


def write_image(path: Path, image: Image) -> list[str]:
    """Write image in the format of the suffix; return a warning for each thing that the format cannot hold.

    PNG holds 8 and 16 bits, TIFF also float, PPM and PGM 8 and 16 bits (P5 for gray, P6 for RGB, whatever the
    suffix), the others 8. JPEG and WebP are written at quality 95, JPEG without chroma subsampling. Where the
    format has no alpha, the image is laid on white. A new file gets the usual permissions; an existing one is
    replaced in one step, keeps its mode, and is untouched where anything fails. Links are written through.

    Raises CallError and ImageError as check_writable does, ImageError (disk full, not encodable) and
    MemoryLimitError.
    """
    check_writable(path, image.pixels.shape[:2])
    format = _FORMATS[path.suffix.lower()]
    notes, pixels, alpha, profile = [], image.pixels, image.alpha, image.icc_profile
    if alpha is not None and not format.alpha:
        notes.append(f"{path}: {format.name} has no transparency: laid on white")
        pixels, alpha = _on_white(pixels, alpha), None
    if profile is not None and not format.profile:
        notes.append(f"{path}: {format.name} has no colour profiles: left out")
        profile = None
    if pixels.dtype not in format.dtypes:
        dtype = format.dtypes[-1]
        notes.append(f"{path}: {format.name} has no {pixels.dtype} samples: reduced to {dtype}")
        pixels, alpha = _reduced(pixels, dtype), None if alpha is None else _reduced(alpha, dtype)
    try:
        data = format.encode(np.dstack([pixels] if alpha is None else [pixels, alpha]), profile)
    except MemoryError as error:
        raise MemoryLimitError(f"{path}: too large for the memory of this computer") from error
    except Exception as error:  # as many kinds as there are encoders
        raise ImageError(f"{path}: cannot be encoded as {format.name}: {_reason(error)}") from error
    _replace(path, data)
    return notes


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


# Reading


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Turn off the warnings and size limits of Pillow and OpenCV: both are global, hence the lock."""
    with _LIBRARIES, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        level = _OPENCV_LOG.getLogLevel()
        _OPENCV_LOG.setLogLevel(0)
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit
            _OPENCV_LOG.setLogLevel(level)


def _decode(data: bytes, max_pixels: int) -> Image:
    tags = _tiff_tags(data)
    if tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 2 and max(tags.get(tiff.BITSPERSAMPLE, (8,))) > 8:
        _check_size((tags[tiff.IMAGEWIDTH], tags[tiff.IMAGELENGTH]), max_pixels)
        pixels, alpha = _deep_tiff(data, tags)
        orientation, profile = None, tags.get(tiff.ICCPROFILE)
    else:
        PIL.Image.init()
        safe = [name for name in PIL.Image.ID if name != "EPS"]  # that runs Ghostscript
        with PIL.Image.open(io.BytesIO(data), formats=safe) as file:
            _check_size(file.size, max_pixels)
            tile: Any = file.tile[0] if file.format == "PPM" else None
            file.load()
            if file.format == "PNG" and file.mode in {"RGB", "RGBA"} and data[24] == 16:
                pixels, alpha = _deep_png(data)
            elif tile and file.mode == "RGB" and tile[0] != "raw" and tile[3][1] > 255:
                pixels, alpha = _deep_ppm(data, file.size, tile), None
            else:
                pixels, alpha = _samples(file)
            if file.mode == "I;16" and tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0:
                pixels = 65535 - pixels  # white is zero, which Pillow minds only up to 8 bits
            key = file.info.get("transparency")
            if alpha is None and key is not None:
                alpha = _alpha_of_key(pixels, key, data[24] if file.format == "PNG" else 8)
            orientation, profile = _orientation(file), file.info.get("icc_profile")
    space = b"GRAY" if pixels.ndim == 2 else b"RGB "
    return Image(
        _upright(pixels, orientation),
        None if alpha is None else _upright(alpha, orientation),
        profile if profile and profile[16:20] == space else None,
    )


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1 or width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels, and the limit is {max_pixels} in all; scale it down")


def _samples(file: PIL.Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels and alpha of a loaded Pillow image of any mode."""
    mode = file.mode
    if mode == "F" or mode.startswith("I"):
        return _in_range(np.asarray(file)), None
    if mode in {"1", "L"}:
        return np.asarray(file.convert("L")), None
    if mode in {"LA", "La"}:
        samples = np.asarray(file.convert("LA"))
        return samples[..., 0], samples[..., 1]
    if mode in {"RGBA", "RGBa", "PA"} or (mode == "P" and file.has_transparency_data):
        samples = np.asarray(file.convert("RGBA"))
        return samples[..., :3], samples[..., 3]
    return np.asarray(_to_rgb(file)), None


def _to_rgb(file: PIL.Image.Image) -> PIL.Image.Image:
    profile: bytes = file.info.get("icc_profile") or b""
    if file.mode == "LAB" or (file.mode == "CMYK" and profile[16:20] == b"CMYK"):
        with contextlib.suppress(ImageCms.PyCMSError):  # a damaged profile
            source: Any = ImageCms.createProfile("LAB") if file.mode == "LAB" else io.BytesIO(profile)
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(file, source, srgb, outputMode="RGB")
            assert converted is not None  # it is None only with inPlace
            return converted
    return file.convert("RGB")


def _in_range(samples: np.ndarray) -> np.ndarray:
    """Integers as uint16 and floats as float32, where their values are those of an image."""
    white, dtype = (65535, np.uint16) if samples.dtype.kind in "iu" else (1, np.float32)
    if not (samples.min() >= 0 and samples.max() <= white):  # also where a float is not a number
        raise ImageError(f"its samples run outside 0..{white}; scale them into that range")
    return samples.astype(dtype)


def _deep_png(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    # OpenCV gets nothing but the samples: its versions differ in what they make of other chunks.
    chunks, place, kind = [], 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind in {b"IHDR", b"IDAT", b"IEND"}:
            chunks.append((kind, data[place + 8 : place + 8 + size]))
        place += 12 + size
    samples = _opencv(_join_png(chunks))  # BGR or BGRA, and the gray three times
    colour_type = data[25]  # in IHDR: 2 RGB, 4 gray and alpha, 6 RGB and alpha
    pixels = samples[..., 0] if colour_type == 4 else samples[..., 2::-1]
    return pixels, None if colour_type == 2 else samples[..., 3]


def _deep_ppm(data: bytes, size: tuple[int, int], tile: Any) -> np.ndarray:
    codec, _, offset, (_, maximum) = tile
    width, height = size
    if codec == "ppm_plain":
        samples = np.array(data[offset:].split()[: width * height * 3], np.uint32)
    else:
        samples = np.frombuffer(data, ">u2", width * height * 3, offset).astype(np.uint32)
    scaled = (np.minimum(samples, maximum) * 65535 + maximum // 2) // maximum
    return scaled.astype(np.uint16).reshape(height, width, 3)


def _tiff_tags(data: bytes) -> Mapping[int, Any]:
    """The tags of the first image in a TIFF file; none for other files."""
    if data[:4] not in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        return {}
    tags = tiff.ImageFileDirectory_v2(data[: 16 if b"+" in data[2:4] else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    for offsets, sizes in (
        (tiff.STRIPOFFSETS, tiff.STRIPBYTECOUNTS),
        (tiff.TILEOFFSETS, tiff.TILEBYTECOUNTS),
    ):
        ends = map(sum, zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False))
        if tags.get(tiff.COMPRESSION, 1) != 1 and max(ends, default=0) > len(data):
            raise ValueError("the file is truncated")  # libtiff would find this too, but write it to stderr
    return tags


def _deep_tiff(data: bytes, tags: Mapping[int, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    bits = tags[tiff.BITSPERSAMPLE]
    if not {*bits} <= {16, 32, 64} or len(bits) > 4 or tags.get(tiff.PLANAR_CONFIGURATION, 1) != 1:
        raise ImageError(f"TIFF samples of {bits} bits, or in planes; save it as interleaved RGB of 16 bits")
    samples = _opencv(data)  # BGR or BGRA, upright: of all formats, OpenCV turns just this one unasked
    if samples.shape[2:] != (len(bits),):
        raise ValueError("the tags of this TIFF contradict its pixels")
    pixels, alpha = _in_range(samples[..., 2::-1]), _in_range(samples[..., 3]) if len(bits) == 4 else None
    fourth = tags.get(tiff.EXTRASAMPLES, (2,))[0]  # 0: no alpha, 1: premultiplied alpha, 2: alpha
    if alpha is None or fourth == 0:
        return pixels, None
    return _straight(pixels, alpha) if fourth == 1 else pixels, alpha


def _straight(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo the multiplication of pixels by alpha."""
    white = _WHITE[pixels.dtype]
    gain = np.divide(white, alpha, out=np.zeros(alpha.shape), where=alpha > 0)
    straight = np.minimum(pixels * gain[..., None], white)
    return (straight if white == 1 else np.rint(straight)).astype(pixels.dtype)


def _opencv(data: bytes) -> np.ndarray:
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("the file is damaged, or of a kind that OpenCV does not know")
    return samples


def _alpha_of_key(pixels: np.ndarray, key: Any, bits: int) -> np.ndarray:
    """Alpha that hides the one value or colour that the file declares transparent."""
    if bits < 8:  # Pillow scales these samples to 8 bits, but not the key
        key = min(key * 255 // (2**bits - 1), 255)  # some versions scale it for 1 bit
    hidden = pixels == key if pixels.ndim == 2 else (pixels == key).all(axis=2)
    return np.where(hidden, 0, _WHITE[pixels.dtype]).astype(pixels.dtype)


def _orientation(file: PIL.Image.Image) -> Any:
    """The EXIF orientation that is still to be applied to a loaded image."""
    try:
        return file.getexif().get(274)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None


def _upright(samples: np.ndarray, orientation: Any) -> np.ndarray:
    """Turn samples as EXIF orientation 1..8 asks; any other value means 1."""
    if orientation in {5, 6, 7, 8}:
        samples = samples.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        samples = samples[::-1]
    if orientation in {2, 3, 6, 7}:
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


# Writing


def _on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    white = _WHITE[pixels.dtype]
    share = (alpha if pixels.ndim == 2 else alpha[..., None]) / np.float32(white)
    laid = pixels * share + white * (1 - share)
    return (laid if white == 1 else np.rint(laid)).astype(pixels.dtype)


def _reduced(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if samples.dtype == np.float32:
        return np.rint(samples.clip(0, 1) * _WHITE[dtype]).astype(dtype)
    return ((samples.astype(np.uint32) + 128) // 257).astype(dtype)  # round(x / 257)


def _encode_pillow(samples: np.ndarray, profile: bytes | None, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    if profile is not None:
        options["icc_profile"] = profile
    PIL.Image.fromarray(samples.squeeze(2) if samples.shape[2] == 1 else samples).save(file, name, **options)
    return file.getvalue()


def _encode_png(samples: np.ndarray, profile: bytes | None) -> bytes:
    if samples.dtype == np.uint8:
        return _encode_pillow(samples, profile, "PNG")
    height, width, channels = samples.shape
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # filter 2: the difference to the row above
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    packed = zlib.compress(filtered.data)
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if profile is not None:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    chunks += [(b"IDAT", packed[start : start + 2**30]) for start in range(0, len(packed), 2**30)]
    chunks.append((b"IEND", b""))
    return _join_png(chunks)


def _join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in chunks
    )


def _encode_tiff(samples: np.ndarray, profile: bytes | None) -> bytes:
    if samples.dtype != np.uint8 and samples.shape[2] == 2:
        samples = samples[..., [0, 0, 0, 1]]  # neither Pillow nor OpenCV could read deep gray with alpha
    height, width, channels = samples.shape
    floating = samples.dtype == np.float32
    # Predictor 2: each sample is the difference to its left neighbour.
    rows = samples if floating else np.diff(samples, axis=1, prepend=np.zeros_like(samples[:, :1]))
    packed = zlib.compress(rows.astype(samples.dtype.newbyteorder("<")).tobytes())
    tags = tiff.ImageFileDirectory_v2()
    tags[tiff.IMAGEWIDTH], tags[tiff.IMAGELENGTH] = width, height
    tags[tiff.BITSPERSAMPLE] = (samples.itemsize * 8,) * channels
    tags[tiff.SAMPLEFORMAT] = (3 if floating else 1,) * channels
    tags[tiff.SAMPLESPERPIXEL] = channels
    tags[tiff.PHOTOMETRIC_INTERPRETATION] = 2 if channels > 2 else 1
    if channels in {2, 4}:
        tags[tiff.EXTRASAMPLES] = 2  # alpha, not premultiplied
    tags[tiff.COMPRESSION], tags[tiff.PREDICTOR] = 8, 1 if floating else 2
    tags[tiff.ROWSPERSTRIP], tags[tiff.STRIPBYTECOUNTS] = height, len(packed)
    tags[tiff.STRIPOFFSETS] = 0  # from the end of the tags; save() makes it absolute
    if profile is not None:
        tags[tiff.ICCPROFILE] = profile
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue() + packed


def _encode_netpbm(samples: np.ndarray, profile: bytes | None) -> bytes:
    height, width, channels = samples.shape
    header = b"P%d %d %d %d\n" % (5 if channels == 1 else 6, width, height, _WHITE[samples.dtype])
    return header + samples.astype(samples.dtype.newbyteorder(">")).tobytes()


@dataclass(frozen=True)
class _Format:
    """What an output format can hold. encode takes H x W x C samples (alpha last) and an ICC profile."""

    name: str
    encode: Callable[[np.ndarray, bytes | None], bytes]
    dtypes: tuple[np.dtype, ...] = (np.dtype(np.uint8),)  # the widest last
    alpha: bool = False
    profile: bool = False
    max_side: int = 2**31 - 1


_UINT8, _UINT16, _FLOAT32 = _WHITE
_JPEG = partial(_encode_pillow, name="JPEG", quality=95, subsampling=0)
_WEBP = partial(_encode_pillow, name="WEBP", quality=95)
_BMP = partial(_encode_pillow, name="BMP")
_FORMATS = {
    ".png": _Format("PNG", _encode_png, (_UINT8, _UINT16), alpha=True, profile=True),
    ".jpg": _Format("JPEG", _JPEG, profile=True, max_side=65500),
    ".jpeg": _Format("JPEG", _JPEG, profile=True, max_side=65500),
    ".webp": _Format("WebP", _WEBP, alpha=True, profile=True, max_side=16383),
    ".tif": _Format("TIFF", _encode_tiff, (_UINT8, _UINT16, _FLOAT32), alpha=True, profile=True),
    ".tiff": _Format("TIFF", _encode_tiff, (_UINT8, _UINT16, _FLOAT32), alpha=True, profile=True),
    ".bmp": _Format("BMP", _BMP),
    ".ppm": _Format("PPM", _encode_netpbm, (_UINT8, _UINT16)),
    ".pgm": _Format("PGM", _encode_netpbm, (_UINT8, _UINT16)),
}
OUTPUT_SUFFIXES = tuple(_FORMATS)
"""The suffixes that write_image knows, in lower case."""


def _reason(error: BaseException) -> str:
    """The message of an error of another library, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
