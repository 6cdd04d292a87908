"""TIFF files: samples of more than 8 bits, which Pillow would cut or refuse, and a writer of images
of any size.
"""

import itertools
import zlib
from typing import Any, BinaryIO

import numpy as np

from ..errors import ImageError
from . import exif
from .image import Image
from .samples import Samples, band_rows, bands, channel_count, in_range, opencv, straight, upright

MAX_CLASSIC = 2**32 - 2**27
"""The most bytes of samples that leave room for the rest of a TIFF file; more of them make a
BigTIFF.
"""


def check_strips(data: bytes, tags: exif.Block) -> None:
    """Raise ValueError where a TIFF file is truncated; libtiff finds that too, but says so on
    stderr.
    """
    for offsets, sizes in (
        (exif.STRIP_OFFSETS, exif.STRIP_SIZES),
        (exif.TILE_OFFSETS, exif.TILE_SIZES),
    ):
        ends = map(sum, zip(tags.numbers(offsets), tags.numbers(sizes), strict=False))
        if tags.numbers(exif.COMPRESSION) != (1,) and max(ends, default=0) > len(data):
            raise ValueError("the file is truncated")


def info_of(tags: exif.Block) -> dict[Any, Any]:
    """Collect the metadata of a TIFF file by Pillow's names; Pillow cannot open all of them."""
    kept = exif.descriptive(tags.entries)
    return {
        "exif": exif.joined(tags.order, kept) if kept else None,
        "xmp": tags.data(exif.XMP),
        "icc_profile": tags.data(exif.ICC_PROFILE),
    }


def is_deep(block: exif.Block) -> bool:
    """Whether read_deep, and not Pillow, reads a TIFF file: gray or RGB of more than 8 bits."""
    is_gray_or_rgb = block.numbers(exif.PHOTOMETRIC) in {(0,), (1,), (2,)}
    return is_gray_or_rgb and max(block.numbers(exif.BITS), default=1) > 8


def read_deep(data: bytes, block: exif.Block) -> Samples:
    """The samples of a TIFF file of 16, 32 or 64 bits, upright. Raises ImageError for kinds that
    are unknown.
    """
    bits, photometric = block.numbers(exif.BITS), block.numbers(exif.PHOTOMETRIC)[0]
    (channels,) = block.numbers(exif.SAMPLES) or (1,)
    colours = 3 if photometric == 2 else 1
    if set(bits) not in ({16}, {32}, {64}) or not colours <= channels <= colours + 1:
        raise ImageError(
            f"TIFF of {channels} samples of {bits} bits; save it as gray or RGB of 16 bits"
        )
    half = bits[0] == 16 and block.numbers(exif.SAMPLE_FORMAT)[:1] == (3,)
    if channels == 2 or half or (channels > 1 and block.numbers(exif.PLANES) == (2,)):
        samples = upright(
            _as_gray_tiff(data, block, channels), (block.numbers(exif.ORIENTATION) or (1,))[0]
        )
        samples = samples.view(np.float16) if half else samples
    else:
        # upright: of all formats, OpenCV turns just this one unasked
        samples = opencv(data)
        samples = samples[..., [2, 1, 0, 3][:channels]] if channels > 1 else samples[..., None]
    if samples.shape[2:] != (channels,):
        raise ValueError("the tags of this TIFF contradict its pixels")
    pixels = in_range(np.ascontiguousarray(samples[..., :3] if colours == 3 else samples[..., 0]))
    # white is zero
    if photometric == 0 and pixels.dtype == np.uint16:
        pixels = 65535 - pixels
    # 0: no alpha, 1: premultiplied alpha, 2: alpha
    fourth = (block.numbers(exif.EXTRA_SAMPLES) or (2,))[0]
    if channels == colours or fourth == 0:
        return pixels, None
    alpha = in_range(np.ascontiguousarray(samples[..., -1]))
    return in_range(straight(pixels, alpha)) if fourth == 1 else pixels, alpha


def _as_gray_tiff(data: bytes, block: exif.Block, channels: int) -> np.ndarray:
    """H x W x channels of a TIFF file of planes, of half floats, or gray with alpha, all of which
    OpenCV refuses.

    It is shown copies with one more directory, in which a plane, or each row of interleaved
    samples, is gray.
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
        seen.append(opencv(b"".join([head, data[len(head) :], bytes(len(data) % 2), directory])))
    samples = np.dstack(seen).reshape(len(seen[0]), -1, channels)
    if predictor == (2,) and interleaved > 1:
        integers = samples.view(f"u{samples.itemsize}")
        step = (block.numbers(exif.TILE_WIDTH) or block.numbers(exif.WIDTH))[0]
        for left in range(0, integers.shape[1], step):
            part = integers[:, left : left + step]
            np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    return samples


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a deflated TIFF file, BigTIFF where it must be, some rows at a time."""
    old = exif.parse(image.exif) if image.exif else exif.Block("<", {})
    pixels, channels, order = image.pixels, channel_count(image), old.order
    height, width = pixels.shape[:2]
    floating = pixels.dtype == np.float32
    big = height * width * channels * pixels.itemsize > MAX_CLASSIC
    # the place of the directory comes when it is known
    file.write(exif.header(order, 0, big))
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
