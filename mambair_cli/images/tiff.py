"""TIFF files: those that Pillow would cut or refuse, by tifffile; and a writer of any size."""

import importlib.util
import io
import itertools
import logging
import math
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import tifffile

from ..errors import ImageError
from . import colour, exif
from .image import WHITE, Image, Stored
from .samples import (
    UINT8,
    UINT16,
    band_rows,
    bands,
    channel_count,
    check_pixels,
    in_range,
    opencv,
    straight,
    stretched,
)

MAX_CLASSIC = 2**32 - 2**27
"""The most bytes of samples of a plain TIFF file, with room for the rest; more make a BigTIFF."""

CODECS = importlib.util.find_spec("imagecodecs") is not None
"""Whether tifffile has its faster decoders, which stop at the end of a strip."""

NO_CODECS = "this TIFF needs one more package: pip install 'mambair[codecs]'"
RAW = "camera raw: export it as TIFF first"

# no compression, and deflate
_DEFLATE, _LZMA = (8, 32946), 34925
_PLAIN = (1, *_DEFLATE)
# those of every decoder: CCITT, LZW, JPEG and PackBits beside the plain ones
_COMMON = {*_PLAIN, 2, 3, 4, 5, 7, 32773}
# LERC, WebP, JPEG 2000 and JPEG XL
_RARE = {33003, 33004, 33005, 34712, 34887, 34892, 50001, 50002, 52546}

MOST_COPIED = 2**36
"""Bytes that reading one page after the other may copy, which takes half a minute."""

_GRAY, _RGB, _LAB = {0, 1}, {2}, {8, 9}
# else what tifffile logs of damaged files goes to stderr
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def check_strips(data: bytes, tags: exif.Block) -> None:
    """Raise ValueError where a TIFF file is truncated."""
    for offsets, sizes in (
        (exif.STRIP_OFFSETS, exif.STRIP_SIZES),
        (exif.TILE_OFFSETS, exif.TILE_SIZES),
    ):
        ends = map(sum, zip(tags.numbers(offsets), tags.numbers(sizes), strict=False))
        if tags.numbers(exif.COMPRESSION) != (1,) and max(ends, default=0) > len(data):
            raise ValueError("the file is truncated")


def pages(data: bytes) -> list[int]:
    """Find the directories of the pages of a TIFF file, but not those of small copies and masks."""
    found: list[int] = []
    place = exif.first_directory(data)
    seen = set()
    while place and place not in seen:
        seen.add(place)
        if len(seen) > 100 and len(seen) * len(data) > MOST_COPIED:
            raise ImageError(
                f"has more than {len(seen):,} pages, too many to be read; save them in several"
                " files, or take the first with `first_frame`"
            )
        block = exif.parse(data, place)
        # 1: a smaller copy, 4: a mask
        if not (block.numbers(exif.SUBFILE_TYPE) or (0,))[0] & 5:
            found.append(place)
        place = block.next
    return found


def beginning_at(data: bytes, place: int) -> bytes:
    """Make a copy of a TIFF file whose first directory is the one at place."""
    order, big = exif.start(data)
    head = exif.header(order, place, big)
    return head + data[len(head) :]


def is_raw(tags: exif.Block) -> bool:
    """Tell whether a TIFF file is a camera raw, whose first picture is a small preview."""
    # the samples of a sensor, in Pentax's files
    if exif.DNG_VERSION in tags.entries or tags.numbers(exif.PHOTOMETRIC)[:1] == (32803,):
        return True
    is_preview = tags.numbers(exif.SUBFILE_TYPE)[:1] == (1,)
    return is_preview and exif.SUB_DIRECTORIES in tags.entries


def info_of(tags: exif.Block) -> dict[Any, Any]:
    """Collect the metadata of a TIFF file by Pillow's names; Pillow cannot open all of them."""
    kept = exif.descriptive(tags.entries)
    return {
        "exif": exif.joined(tags.order, kept) if kept else None,
        "xmp": tags.data(exif.XMP),
        "icc_profile": tags.data(exif.ICC_PROFILE),
    }


def rare_compression(tags: exif.Block) -> int | None:
    """Return the number of a compression that few decoders know, as ThunderScan; else None."""
    found = tags.numbers(exif.COMPRESSION)[:1] or (1,)
    return None if found[0] in _COMMON else found[0]


def is_for_tifffile(data: bytes, tags: exif.Block) -> bool:
    """Tell whether `read`, and not Pillow, reads a TIFF file."""
    (photometric,) = tags.numbers(exif.PHOTOMETRIC)[:1] or (1,)
    if photometric not in _GRAY | _RGB | _LAB:
        return False
    is_deep = max(tags.numbers(exif.BITS), default=1) > 8
    is_signed = tags.numbers(exif.SAMPLE_FORMAT)[:1] == (2,)
    is_rare = not _RARE.isdisjoint(tags.numbers(exif.COMPRESSION))
    return is_deep or is_signed or is_rare or data[:4] == b"MM\0+"


def read(data: bytes, tags: exif.Block, max_pixels: int) -> Stored:
    """Read gray, RGB or Lab of any depth, with or without alpha.

    Raises ImageError (too large, of an unknown kind, out of range) and, where it is damaged,
    nearly anything.
    """
    width, height = tags.numbers(exif.WIDTH), tags.numbers(exif.HEIGHT)
    check_pixels((*width, *height), max_pixels)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        # tifffile may see another size, and tiles that are larger than the picture
        check_pixels((page.imagewidth, page.imagelength * page.imagedepth), max_pixels)
        check_pixels((page.tilewidth or 1, page.tilelength or 1), max_pixels)
        photometric, count = int(page.photometric), page.samplesperpixel
        colours = 1 if photometric in _GRAY else 3
        if photometric not in _GRAY | _RGB | _LAB or not colours <= count <= colours + 1:
            raise ImageError(
                f"TIFF of {count} samples of {page.bitspersample} bits, photometric {photometric},"
                " is of a kind that cannot be read; save it as gray or RGB of 16 bits"
            )
        # tifffile would fill with zeros
        if len(page.dataoffsets) < math.prod(page.chunked):
            raise ValueError("strips or tiles are missing")
        samples = _samples(data, page)
        bits, signed = page.bitspersample, page.sampleformat == 2
        extra = page.extrasamples[0] if page.extrasamples else 2
    if samples.shape[2:] != (count,):
        raise ValueError("the tags of this TIFF contradict its pixels")
    stored = Stored("TIFF", samples, None, turn=(tags.numbers(exif.ORIENTATION) or (1,))[0])
    if photometric in _LAB:
        if bits not in (8, 16):
            raise ImageError(f"Lab of {bits} bits is of a kind that cannot be read")
        stored.pixels = _lab_to_rgb(samples, photometric == 9)
        stored.notes.append("its LAB colours become RGB")
        return stored
    samples = _scaled(samples, bits, signed, stored.notes)
    stored.pixels = np.ascontiguousarray(samples[..., :3] if colours == 3 else samples[..., 0])
    # white is zero
    if photometric == 0:
        stored.pixels = WHITE[stored.pixels.dtype] - stored.pixels
        stored.pixels = stored.pixels.astype(samples.dtype)
    # 0: no alpha, 1: premultiplied alpha, 2: alpha
    if count > colours and extra != 0:
        stored.alpha = np.ascontiguousarray(samples[..., -1])
        if extra == 1:
            stored.pixels = straight(stored.pixels, stored.alpha)
            # a small alpha can make floats infinite
            if stored.pixels.dtype.kind == "f":
                in_range(stored.pixels)
    return stored


def _samples(data: bytes, page: Any) -> np.ndarray:
    """Return the samples of a page as stored, H x W x C."""
    try:
        if not CODECS:
            _check_inflated(data, page)
        samples = page.asarray()
    # tifffile knows fewer kinds without imagecodecs
    except Exception as error:
        if "imagecodecs" not in str(error):
            raise
        if page.bitspersample < 16 and not page.is_tiled and page.compression in _PLAIN:
            return _unpacked(data, page)
        if page.planarconfig == 2 or page.samplesperpixel == 2 or page.dtype == np.float16:
            raise ImageError(NO_CODECS) from error
        try:
            samples = opencv(data)
        except ValueError:
            raise ImageError(NO_CODECS) from error
        if samples.ndim == 3:
            samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
        # of all formats, OpenCV turns just this one unasked
        turn = int(page.tags.valueof("Orientation", 1))
        return _as_stored(samples if samples.ndim == 3 else samples[..., None], turn)
    samples = np.asarray(samples)
    if samples.ndim == 3 and page.axes[0] == "S":
        samples = np.moveaxis(samples, 0, -1)
    return samples if samples.ndim == 3 else samples[..., None]


def _check_inflated(data: bytes, page: Any) -> None:
    """Raise for strips that become longer than their samples, where tifffile would not stop.

    Raises ValueError, and ImageError for LZMA, which is not looked at.
    """
    if page.compression == _LZMA:
        raise ImageError(NO_CODECS)
    if page.compression not in _DEFLATE:
        return
    samples = math.prod(page.chunks) if page.is_tiled else page.imagewidth * page.imagelength
    most = samples * page.samplesperpixel * (page.bitspersample + 7) // 8
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        _inflated(data[offset : offset + size], 8 * most)


def _inflated(strip: bytes, bits: int) -> bytes:
    """Inflate a strip of at most so many bits and a row's padding. Raises ValueError."""
    most = bits // 8 + 2**16
    inflater = zlib.decompressobj()
    whole = inflater.decompress(strip, most)
    if inflater.unconsumed_tail:
        raise ValueError("a strip has more than its samples")
    return whole


def _unpacked(data: bytes, page: Any) -> np.ndarray:
    """Unpack strips of 9 to 15 bits a sample, which tifffile leaves to imagecodecs."""
    width, count, bits = page.imagewidth, page.samplesperpixel, page.bitspersample
    used = width * count * bits
    places = 1 << np.arange(bits, dtype=np.uint16)[::-1]
    parts = []
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        strip = data[offset : offset + size]
        strip = strip if page.compression == 1 else _inflated(strip, used * page.imagelength)
        rows = np.unpackbits(np.frombuffer(strip, np.uint8).reshape(-1, -(-used // 8)), axis=1)
        values = rows[:, :used].reshape(-1, width, count, bits) @ places
        parts.append(values.astype(np.uint16))
    samples = np.concatenate(parts)
    if len(samples) < page.imagelength or page.planarconfig == 2 or page.predictor != 1:
        raise ImageError(NO_CODECS)
    return samples[: page.imagelength]


def _as_stored(samples: np.ndarray, turn: int) -> np.ndarray:
    """Undo `upright`."""
    if turn in {2, 3, 6, 7}:
        samples = samples[:, ::-1]
    if turn in {3, 4, 7, 8}:
        samples = samples[::-1]
    return samples.swapaxes(0, 1) if turn in {5, 6, 7, 8} else samples


def _scaled(samples: np.ndarray, bits: int, signed: bool, notes: list[str]) -> np.ndarray:
    """Bring samples to uint8, uint16 or float32, and add to notes what that means.

    Raises ImageError where it is not plain what black and white are.
    """
    if samples.dtype.kind == "f":
        return _unit(in_range(samples), notes)
    if samples.dtype.kind not in "iu":
        raise ImageError(f"samples of type {samples.dtype} are of a kind that cannot be read")
    if bits > 16:
        if not signed and samples.max() >= 2 ** (bits - 8):
            notes.append(f"its samples of {bits} bits are reduced to 16")
            return (samples >> (bits - 16)).astype(np.uint16)
        return in_range(samples)
    if signed:
        if samples.min() < 0:
            raise ImageError("its samples run outside 0..65535; scale them into that range")
        bits -= 1
        notes.append(f"its signed samples of 0..{2**bits - 1} are stretched to the whole range")
    return stretched(samples, 2**bits - 1, UINT8 if bits <= 8 else UINT16)


def _unit(samples: np.ndarray, notes: list[str]) -> np.ndarray:
    """Scale floats that plainly mean 0..255 or 0..65535 to 0..1: most are above white."""
    largest = float(samples.max())
    if samples.min() < 0 or largest <= 8:
        return samples
    seen = samples[samples > 0]
    if np.median(seen) <= 1:
        return samples
    white = 255 if largest <= 255 else 65535
    if largest > white:
        raise ImageError(
            f"its samples run up to {largest:g}, so that white cannot be told; scale them to 0..1"
        )
    notes.append(f"its samples run up to {largest:g}: taken as 0..{white} and scaled to 0..1")
    return samples / np.float32(white)


def _lab_to_rgb(samples: np.ndarray, is_icc: bool) -> np.ndarray:
    """Convert CIE L*a*b* of D50 of 8 or 16 bits to sRGB of 16 bits.

    is_icc: a* and b* are stored with an offset, not as signed numbers.
    """
    wide = samples.dtype.itemsize == 2
    one = 256.0 if wide else 1.0
    lightness = samples[..., 0].astype(np.float64) * 100 / (65535 if wide else 255)
    stored = samples[..., 1:3]
    if is_icc:
        opponent = stored / one - 128
    else:
        opponent = np.ascontiguousarray(stored).view(np.int16 if wide else np.int8) / one
    y = (lightness + 16) / 116
    cubes = np.dstack([y + opponent[..., 0] / 500, y, y - opponent[..., 1] / 200])
    xyz = np.where(cubes > 6 / 29, cubes**3, (cubes - 4 / 29) * 3 * (6 / 29) ** 2)
    rgb = colour.srgb_of_xyz(xyz)
    return np.rint(rgb * 65535).astype(np.uint16)


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a deflated TIFF file of all pages, BigTIFF where it must be, some rows at a time."""
    pages = [image, *(image.frames.images if image.frames else ())]
    order = exif.start(image.exif)[0] if image.exif else "<"
    planes = [plane for page in pages for plane in (page.pixels, page.alpha) if plane is not None]
    big = sum(plane.nbytes for plane in planes) > MAX_CLASSIC
    # the place of the first directory comes when it is known
    file.write(exif.header(order, 0, big))
    # where the place of the next directory is to be stored
    pointer = 8 if big else 4
    for page in pages:
        place, following = _write_page(page, file, order, big)
        file.seek(pointer)
        file.write(struct.pack(order + ("Q" if big else "I"), place))
        file.seek(0, io.SEEK_END)
        pointer = following


def _write_page(image: Image, file: BinaryIO, order: str, big: bool) -> tuple[int, int]:
    """Append samples and directory; return its place, and that of its pointer to the next one."""
    old = exif.parse(image.exif) if image.exif else exif.Block(order, {})
    pixels, channels = image.pixels, channel_count(image)
    height, width = pixels.shape[:2]
    floating = pixels.dtype == np.float32
    offsets = [file.tell()]
    for rows in bands(image):
        # predictor 2: each sample is the difference to its left neighbour
        if not floating:
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
    # alpha, not premultiplied
    if image.alpha is not None:
        tags[exif.EXTRA_SAMPLES] = [2]
    # metadata in another order than the file's would be misread
    described = exif.descriptive(old.entries) if old.order == order else {}
    entries = described | {tag: exif.integers(order, *found) for tag, found in tags.items()}
    blocks = {
        exif.XMP: image.xmp,
        exif.ICC_PROFILE: image.icc_profile,
        exif.IPTC: image.iptc,
    }
    entries |= {tag: exif.raw(value) for tag, value in blocks.items() if value}
    file.write(bytes(offsets[-1] % 2))
    place = file.tell()
    file.write(exif.build(order, entries, place, big))
    file.write(bytes(file.tell() % 2))
    head, entry = (8, 20) if big else (2, 12)
    return place, place + head + entry * len(entries)
