"""From the bytes of an image file to samples at their full depth and metadata.

Pillow reads, and so finds damaged files. It cuts colours of 16 bits to 8, so those come from OpenCV (PNG and
TIFF), from pillow-heif, or straight from the file (PPM). Samples are H x W (gray, alpha) or H x W x 3 (RGB) of
uint8, uint16 or float32.
"""

import contextlib
import io
import logging
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import PIL.Image
from PIL import ImageCms, PngImagePlugin

from ..errors import ImageError
from . import exif
from .image import WHITE, Image, in_bands

pillow_heif: Any
try:
    import pillow_heif
except ImportError:
    pillow_heif = None
else:
    pillow_heif.register_heif_opener(thumbnails=False)

MAX_TEXT = 16 * 2**20
"""The most bytes of one text, or colour profile, of a PNG file."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))\d')
_LIBRARIES = threading.Lock()
_OPENCV_LOG: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 and 4
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs goes to stderr

Samples = tuple[np.ndarray, np.ndarray | None]
"""The pixels, and the alpha where there is one."""


def decode(data: bytes, max_pixels: int) -> Image:
    """The first frame, upright, and all that the file tells of it.

    Raises ImageError (over max_pixels, not readable) and, for damaged files, nearly anything.
    """
    with quiet_libraries():
        return _decode(data, max_pixels)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Turn off the warnings of Pillow and OpenCV, and limits of Pillow: all are global, hence the lock."""
    with _LIBRARIES, warnings.catch_warnings():
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


def _decode(data: bytes, max_pixels: int) -> Image:
    tags = exif.parse(data) if exif.is_tiff(data) else None
    tables: Mapping[int, list[int]] = {}
    mode = ""
    if tags:
        _check_strips(data, tags)
    if tags and _is_deep_tiff(tags):
        _check_pixels((*tags.numbers(exif.WIDTH), *tags.numbers(exif.HEIGHT)), max_pixels)
        pixels, alpha = _from_deep_tiff(data, tags)
        format, several, turn = "TIFF", tags.next > 0, 1
    else:
        PIL.Image.init()
        safe = [name for name in PIL.Image.ID if name != "EPS"]  # that runs Ghostscript
        with PIL.Image.open(io.BytesIO(data), formats=safe) as file:
            _check_pixels(file.size, max_pixels)
            format, info = file.format or "", file.info
            several = (
                getattr(file, "is_animated", False) and format != "PSD"
            )  # whose layers are no frames
            pixels, alpha = _samples(data, file)
            turn, mode = _orientation(file), file.mode
            tables = getattr(file, "quantization", None) or {}
    if tags:
        info = _tiff_info(tags)
    notes = []
    if several:
        notes.append("holds several frames or pages: only the first is read")
    if tags and tags.damaged:
        notes.append("some of its tags are damaged: left out")
    if pixels.dtype == np.uint8 and (bits := _bits(format, data, tags)) > 8:
        notes.append(f"its samples of {bits} bits are reduced to 8")
    if mode in {"CMYK", "LAB"}:
        notes.append(f"its {mode} colours become RGB")
    metadata = _metadata(format, info, turn)
    luma = tuple(tables[min(tables)]) if tables else ()
    profile, space = info.get("icc_profile"), b"GRAY" if pixels.ndim == 2 else b"RGB "
    return Image(
        _upright(pixels, turn),
        None if alpha is None else _upright(alpha, turn),
        profile if profile and profile[16:20] == space else None,
        quantization=luma if len(luma) == 64 and min(luma) > 0 else None,
        **metadata | {"notes": (*notes, *metadata["notes"])},
    )


def _samples(data: bytes, file: Any) -> Samples:
    """Load and return what Pillow has opened, or have it read by others."""
    if file.format == "PPM" and file.tile[0][0] != "raw" and file.tile[0][3][1] > 255:
        return _from_deep_ppm(data, file.size, file.tile[0]), None
    file.load()
    if file.format == "PNG" and file.mode in {"RGB", "RGBA"} and data[24] == 16:
        pixels, alpha = _from_deep_png(data)
    elif file.format == "HEIF":
        pixels, alpha = _from_heif(data, file)
    else:
        pixels, alpha = _from_pillow(file)
    key = file.info.get("transparency")
    if alpha is None and key is not None:
        alpha = _alpha_of_key(pixels, key, data[24] if file.format == "PNG" else 8)
    return pixels, alpha


def _check_pixels(size: tuple[int, ...], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} pixels are over the limit of {max_pixels} in all, which guards against files that"
            " fill the memory; raise it with --max-pixels"
        )


def _check_strips(data: bytes, tags: exif.Block) -> None:
    """Raise ValueError where a TIFF file is truncated: libtiff finds that too, but writes it to stderr."""
    for offsets, sizes in (
        (exif.STRIP_OFFSETS, exif.STRIP_SIZES),
        (exif.TILE_OFFSETS, exif.TILE_SIZES),
    ):
        ends = map(sum, zip(tags.numbers(offsets), tags.numbers(sizes), strict=False))
        if tags.numbers(exif.COMPRESSION) != (1,) and max(ends, default=0) > len(data):
            raise ValueError("the file is truncated")


def _from_heif(data: bytes, file: PIL.Image.Image) -> Samples:
    bits = file.info["bit_depth"]
    if bits == 8:
        pixels, alpha = _from_pillow(file)
    else:
        heif = pillow_heif.open_heif(
            io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False
        )
        samples = _stretched(np.asarray(heif), 2**bits - 1)
        pixels, alpha = (samples, None) if samples.ndim == 2 else (samples[..., :3], None)
        if samples.shape[2:] == (4,):
            alpha = samples[..., 3]
    if (
        "chroma" not in file.info
        and pixels.ndim == 3
        and (pixels[..., :1] == pixels[..., 1:]).all()
    ):
        pixels = pixels[..., 0]  # gray with alpha is read as RGB with alpha
    return pixels, alpha


def _orientation(file: PIL.Image.Image) -> Any:
    """The EXIF or XMP orientation that is still to be applied to a loaded image."""
    try:
        return file.getexif().get(exif.ORIENTATION)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None


def _bits(format: str, data: bytes, tags: exif.Block | None) -> int:
    """Bits of a stored sample, for the formats of which Pillow cuts some to 8."""
    if tags:
        return max(tags.numbers(exif.BITS), default=8)
    if format == "AVIF" and (found := re.search(rb"av1C..(.)", data, re.DOTALL)):
        return {0x40: 10, 0x60: 12}.get(found[1][0] & 0x60, 8)
    if format == "JPEG2000" and (found := re.search(rb"\xff\x4f\xff\x51.{38}(.)", data, re.DOTALL)):
        return (found[1][0] & 0x7F) + 1
    return 8


def _tiff_info(tags: exif.Block) -> dict[Any, Any]:
    """The metadata of a TIFF file by Pillow's names; Pillow itself cannot open all of these files."""
    kept = exif.descriptive(tags.entries)
    return {
        "exif": exif.joined(tags.order, kept) if kept else None,
        "xmp": tags.data(exif.XMP),
        "icc_profile": tags.data(exif.ICC_PROFILE),
    }


def _metadata(format: str, info: Mapping[Any, Any], turn: Any) -> dict[str, Any]:
    """EXIF, XMP, resolution and texts by the names of Image's fields, from what Pillow calls info."""
    text: dict[str, str] = {}
    block, xmp, comment = (info.get(key) for key in ("exif", "xmp", "comment"))
    if format == "PNG":
        text = {key: value for key, value in info.items() if isinstance(value, str)}
        text.pop("XML:com.adobe.xmp", None)
        lines = text.pop("Raw profile type exif", "").split("\n")[3:]  # so ImageMagick writes EXIF
        with contextlib.suppress(ValueError):
            block = block or bytes.fromhex("".join(lines))
    elif isinstance(comment, bytes):
        text = {"Comment": _decoded(comment)}
    notes = []
    block = re.sub(rb"^(Exif\0\0)+", b"", block or b"")
    if block:
        try:
            block, damaged = exif.cleaned(block)
        except ValueError:
            block, damaged = None, True
        if damaged:
            notes.append("its EXIF is damaged: what cannot be read is left out")
    return {
        "exif": block or None,
        "xmp": _XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if xmp else None,
        "dpi": _dpi(format, info, block, turn),
        "text": text,
        "notes": notes,
    }


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _dpi(
    format: str, info: Mapping[Any, Any], block: bytes | None, turn: Any
) -> tuple[float, float] | None:
    found = info.get("dpi")
    if format in {"JPEG", "MPO"} and info.get("jfif_unit") not in {1, 2}:
        found = None  # what Pillow made of EXIF, or 72 where it failed
    if found is None and block:
        found = exif.resolution(exif.parse(block))
    try:
        across, down = (
            round(float(value), 2) for value in found or ()
        )  # files round to 0.03 and less
    except (TypeError, ValueError):
        return None
    if not (1 <= across <= 65535 and 1 <= down <= 65535):
        return None
    return (down, across) if turn in {5, 6, 7, 8} else (across, down)


# Files that Pillow would cut


def _from_pillow(file: PIL.Image.Image) -> Samples:
    """The samples of a loaded Pillow image of any mode. Raises ImageError (out of range)."""
    mode = file.mode
    if mode == "F" or mode.startswith("I"):
        return _in_range(np.asarray(file)), None
    if mode in {"1", "L"}:
        return np.asarray(_converted(file, "L")), None
    if mode in {"LA", "La"}:
        samples = np.asarray(_converted(file, "LA"))
        return samples[..., 0], samples[..., 1]
    if mode in {"RGBA", "RGBa", "PA"} or (mode == "P" and file.has_transparency_data):
        samples = np.asarray(_converted(file, "RGBA"))
        return samples[..., :3], samples[..., 3]
    return np.asarray(_to_rgb(file)), None


def _converted(file: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    return file if file.mode == mode else file.convert(mode)  # which would copy


def _to_rgb(file: PIL.Image.Image) -> PIL.Image.Image:
    profile: bytes = file.info.get("icc_profile") or b""
    if file.mode == "LAB" or (file.mode == "CMYK" and profile[16:20] == b"CMYK"):
        with contextlib.suppress(ImageCms.PyCMSError):  # a damaged profile
            source: Any = (
                ImageCms.createProfile("LAB") if file.mode == "LAB" else io.BytesIO(profile)
            )
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(file, source, srgb, outputMode="RGB")
            assert converted is not None  # it is None only with inPlace
            return converted
    return _converted(file, "RGB")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kinds and bodies of the chunks of a PNG file, with IEND. Raises struct.error where one is missing."""
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place + 8 : place + 8 + size]
        place += 12 + size


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file, with its length and checksum."""
    return b"".join(
        [
            struct.pack(">I4s", len(body), kind),
            body,
            struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))),
        ]
    )


def _from_deep_png(data: bytes) -> Samples:
    """The samples of a PNG file of 16 bits that is gray with alpha, or RGB."""
    # OpenCV gets nothing but the samples: its versions differ in what they make of other chunks.
    chunks = [
        png_chunk(*chunk) for chunk in png_chunks(data) if chunk[0] in {b"IHDR", b"IDAT", b"IEND"}
    ]
    samples = _opencv(b"".join([PNG_SIGNATURE, *chunks]))
    colour_type = data[25]  # in IHDR: 2 RGB, 4 gray and alpha, 6 RGB and alpha
    pixels = (
        samples[..., 0] if colour_type == 4 else samples[..., 2::-1]
    )  # BGR or BGRA, and gray three times
    return pixels, None if colour_type == 2 else samples[..., 3]


def _from_deep_ppm(data: bytes, size: tuple[int, int], tile: Any) -> np.ndarray:
    """The samples of a PPM or PGM file of more than 8 bits; tile: where Pillow finds them, but is slow to read them."""
    codec, _, offset, (_, maximum) = tile
    shape = (size[1], size[0], 3) if data[1:2] in b"36" else (size[1], size[0])
    if codec == "ppm_plain":
        values = re.sub(rb"#[^\r\n]*", b"", data[offset:]).split()
        samples = np.array(values[: math.prod(shape)], np.uint32)
    else:
        samples = np.frombuffer(data, ">u2", math.prod(shape), offset)
    return _stretched(samples.reshape(shape), maximum)


def _is_deep_tiff(block: exif.Block) -> bool:
    """Whether _from_deep_tiff, and not Pillow, reads a TIFF file: gray or RGB of more than 8 bits."""
    return max(block.numbers(exif.BITS), default=1) > 8 and block.numbers(exif.PHOTOMETRIC) in {
        (0,),
        (1,),
        (2,),
    }


def _from_deep_tiff(data: bytes, block: exif.Block) -> Samples:
    """The samples of a TIFF file of 16, 32 or 64 bits, upright. Raises ImageError for kinds that are unknown."""
    bits, photometric = block.numbers(exif.BITS), block.numbers(exif.PHOTOMETRIC)[0]
    (channels,) = block.numbers(exif.SAMPLES) or (1,)
    colours = 3 if photometric == 2 else 1
    if set(bits) not in ({16}, {32}, {64}) or not colours <= channels <= colours + 1:
        raise ImageError(
            f"TIFF of {channels} samples of {bits} bits; save it as gray or RGB of 16 bits"
        )
    half = bits[0] == 16 and block.numbers(exif.SAMPLE_FORMAT)[:1] == (3,)
    if channels == 2 or half or (channels > 1 and block.numbers(exif.PLANES) == (2,)):
        samples = _upright(
            _as_gray_tiff(data, block, channels), (block.numbers(exif.ORIENTATION) or (1,))[0]
        )
        samples = samples.view(np.float16) if half else samples
    else:
        samples = _opencv(data)  # upright: of all formats, OpenCV turns just this one unasked
        samples = samples[..., [2, 1, 0, 3][:channels]] if channels > 1 else samples[..., None]
    if samples.shape[2:] != (channels,):
        raise ValueError("the tags of this TIFF contradict its pixels")
    pixels = _in_range(np.ascontiguousarray(samples[..., :3] if colours == 3 else samples[..., 0]))
    if photometric == 0 and pixels.dtype == np.uint16:  # white is zero
        pixels = 65535 - pixels
    fourth = (block.numbers(exif.EXTRA_SAMPLES) or (2,))[
        0
    ]  # 0: no alpha, 1: premultiplied alpha, 2: alpha
    if channels == colours or fourth == 0:
        return pixels, None
    alpha = _in_range(np.ascontiguousarray(samples[..., -1]))
    return _in_range(_straight(pixels, alpha)) if fourth == 1 else pixels, alpha


def _as_gray_tiff(data: bytes, block: exif.Block, channels: int) -> np.ndarray:
    """H x W x channels of a TIFF file of planes, of half floats, or gray with alpha, all of which OpenCV refuses.

    It is shown copies with one more directory, in which a plane, or each row of interleaved samples, is gray.
    """
    keep = (exif.HEIGHT, exif.COMPRESSION, exif.FILL_ORDER, exif.ROWS_PER_STRIP, exif.TILE_HEIGHT)
    order, big = block.order, data[2:3] == b"+" or data[3:4] == b"+"
    bits, predictor = block.numbers(exif.BITS)[0], block.numbers(exif.PREDICTOR)
    planes, interleaved = (channels, 1) if block.numbers(exif.PLANES) == (2,) else (1, channels)
    if interleaved > 1 and predictor == (3,):
        raise ImageError("TIFF with predictor 3 is not read with these samples; save it without")
    seen = []
    for plane in range(planes):
        tags = {tag: block.entries[tag] for tag in keep if tag in block.entries}
        for tag in (exif.WIDTH, exif.TILE_WIDTH):
            if tag in block.entries:
                tags[tag] = exif.integers(order, block.numbers(tag)[0] * interleaved)
        for tag in (exif.STRIP_OFFSETS, exif.STRIP_SIZES, exif.TILE_OFFSETS, exif.TILE_SIZES):
            if values := block.numbers(tag):
                count = len(values) // planes
                tags[tag] = exif.integers(order, *values[plane * count :][:count])
        tags[exif.BITS], tags[exif.SAMPLES] = exif.integers(order, bits), exif.integers(order, 1)
        tags[exif.PHOTOMETRIC] = exif.integers(order, 1)
        if bits > 16:
            tags[exif.SAMPLE_FORMAT] = exif.integers(
                order, *block.numbers(exif.SAMPLE_FORMAT)[:1] or (1,)
            )
        if predictor and interleaved == 1:
            tags[exif.PREDICTOR] = exif.integers(order, *predictor)
        place = len(data) + len(data) % 2
        head = exif.header(order, place, big)
        directory = exif.build(order, tags, place, big)
        seen.append(_opencv(b"".join([head, data[len(head) :], bytes(len(data) % 2), directory])))
    samples = np.dstack(seen).reshape(len(seen[0]), -1, channels)
    if predictor == (2,) and interleaved > 1:
        integers = samples.view(f"u{samples.itemsize}")
        step = (block.numbers(exif.TILE_WIDTH) or block.numbers(exif.WIDTH))[0]
        for left in range(0, integers.shape[1], step):
            part = integers[:, left : left + step]
            np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    return samples


def _opencv(data: bytes) -> np.ndarray:
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("the file is damaged, or of a kind that OpenCV does not know")
    return samples


# Arrays


def _in_range(samples: np.ndarray) -> np.ndarray:
    """Integers as uint16 and floats as float32. Raises ImageError for integers outside 0..65535, infinity and NaN."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):
            samples = samples.astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise ImageError("some of its samples are infinite or not a number; export it again")
        return samples
    if not (samples.min() >= 0 and samples.max() <= 65535):
        raise ImageError("its samples run outside 0..65535; scale them into that range")
    return samples.astype(np.uint16, copy=False)


def _stretched(samples: np.ndarray, maximum: int) -> np.ndarray:
    """Integers of 0..maximum as uint16 of 0..65535."""

    def stretch(samples: np.ndarray) -> np.ndarray:
        return (np.minimum(samples, maximum).astype(np.uint32) * 65535 + maximum // 2) // maximum

    return in_bands(stretch, np.dtype(np.uint16), samples)


def _straight(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo the multiplication of pixels by alpha."""
    white = WHITE[pixels.dtype]

    def divide(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        gain = np.divide(
            white, alpha, out=np.zeros(alpha.shape, np.float32), where=alpha > white / 2**17
        )
        with np.errstate(over="ignore"):
            result = pixels * (gain if pixels.ndim == 2 else gain[..., None])
        return result if white == 1 else np.rint(result.clip(0, white))

    return in_bands(divide, pixels.dtype, pixels, alpha)


def _alpha_of_key(pixels: np.ndarray, key: Any, bits: int) -> np.ndarray:
    """Alpha that hides the one value or colour that a file declares transparent; bits: of a gray sample there."""
    if bits < 8:  # Pillow scales these samples to 8 bits, but not the key
        key = min(key * 255 // (2**bits - 1), 255)  # some versions scale it for 1 bit
    hidden = pixels == key if pixels.ndim == 2 else (pixels == key).all(axis=2)
    return np.where(hidden, 0, WHITE[pixels.dtype]).astype(pixels.dtype)


def _upright(samples: np.ndarray, orientation: Any) -> np.ndarray:
    """Turn samples as EXIF orientation 1..8 asks; any other value means 1."""
    if orientation in {5, 6, 7, 8}:
        samples = samples.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        samples = samples[::-1]
    if orientation in {2, 3, 6, 7}:
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)
