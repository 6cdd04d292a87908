"""PNG files: their chunks, colours of 16 bits, which Pillow would cut to 8, and a writer of images
of any size.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from PIL import PngImagePlugin

from . import metadata, pillow
from .colour import ColourTags
from .image import Image
from .samples import Samples, bands, channel_count, opencv

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")


def chunks_of(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kinds and bodies of the chunks of a PNG file, IEND included.

    Raises struct.error where the file ends before.
    """
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        yield kind, data[place + 8 : place + 8 + size]
        place += 12 + size


def chunk(kind: bytes, body: bytes) -> bytes:
    """Build a chunk of a PNG file, with its length and checksum."""
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join([struct.pack(">I4s", len(body), kind), body, struct.pack(">I", checksum)])


def read_deep(data: bytes) -> Samples:
    """Read the samples of a PNG file of 16 bits that is gray with alpha, or RGB."""
    # OpenCV gets nothing but the samples: its versions differ in what they make of other chunks.
    kept = (b"IHDR", b"IDAT", b"IEND")
    chunks = [chunk(kind, body) for kind, body in chunks_of(data) if kind in kept]
    samples = opencv(b"".join([SIGNATURE, *chunks]))
    # in IHDR: 2 RGB, 4 gray and alpha, 6 RGB and alpha
    colour_type = data[25]
    # OpenCV gives BGR or BGRA, and gray three times
    pixels = samples[..., 0] if colour_type == 4 else samples[..., 2::-1]
    return pixels, None if colour_type == 2 else samples[..., 3]


def describe(data: bytes) -> tuple[list[str], dict[str, Any]]:
    """Read what Pillow passes over: notes of what is lost, colour tags as a field of `Image`."""
    found: dict[bytes, bytes] = {}
    keywords, notes = set(), []
    for kind, body in chunks_of(data):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = body.split(b"\0")[0]
            if keyword in keywords:
                notes.append(f"its second text {keyword.decode('latin-1')!r} is left out")
            keywords.add(keyword)
        found.setdefault(kind, body)
    pixel = found.get(b"pHYs", b"")
    if len(pixel) == 9 and pixel[8] == 0:
        notes.append("the shape of its pixels (pHYs without a unit) is left out")
    if found.get(b"cICP", b"")[3:4] == b"\0":
        notes.append("its samples of a narrow range (cICP) are taken as of the full range")
    if {b"mDCV", b"cLLI"} & found.keys():
        notes.append("the light levels of its HDR (mDCV, cLLI) are left out")
    return notes, {"colour": _colour_tags(found)}


def _colour_tags(found: dict[bytes, bytes]) -> ColourTags | None:
    cicp, intent, gamma, points = (found.get(kind, b"") for kind in _COLOUR_CHUNKS)
    (stored,) = struct.unpack(">I", gamma) if len(gamma) == 4 else (0,)
    chromaticities = struct.unpack(">8I", points) if len(points) == 32 else ()
    # a y of 0 makes no colour
    usable = all(chromaticities[1::2]) and chromaticities
    # 2: unspecified
    has_numbers = len(cicp) == 4 and cicp[:2] != b"\2\2"
    tags = ColourTags(
        (cicp[0] if cicp[0] != 2 else 1, cicp[1] if cicp[1] != 2 else 13) if has_numbers else None,
        intent[0] if intent else None,
        stored / 100000 or None,
        tuple(value / 100000 for value in chromaticities) if usable else None,
    )
    return None if tags == ColourTags() else tags


def _colour_chunks(tags: ColourTags) -> Iterator[bytes]:
    if tags.cicp:
        # RGB, in its full range
        yield chunk(b"cICP", bytes([*tags.cicp, 0, 1]))
    if tags.intent is not None:
        yield chunk(b"sRGB", bytes([tags.intent]))
    if tags.gamma:
        yield chunk(b"gAMA", struct.pack(">I", round(tags.gamma * 100000)))
    if tags.chromaticities:
        points = (round(value * 100000) for value in tags.chromaticities)
        yield chunk(b"cHRM", struct.pack(">8I", *points))


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a PNG file of 8 or 16 bits, some rows at a time; an animation, of 8 bits, at once."""
    texts = PngImagePlugin.PngInfo()
    for keyword, text in image.text.items():
        texts.add_text(keyword, text)
    if image.xmp:
        texts.add_itxt("XML:com.adobe.xmp", image.xmp)
    if image.iptc:
        stored = metadata.resource(image.iptc)
        lines = re.findall(".{1,72}", stored.hex())
        words = "\n".join(["", "iptc", f"{len(stored):8}", *lines, ""])
        # so ImageMagick and ExifTool write it
        texts.add_text("Raw profile type iptc", words, zip=True)
    # Pillow writes all but the samples, and those of animations too
    frame = io.BytesIO()
    empty = replace(image, pixels=np.zeros((1, 1), np.uint8), alpha=None)
    pillow.write(image if image.frames else empty, 0, frame, "PNG", pnginfo=texts)
    height, width = image.pixels.shape[:2]
    bits, colour_type = image.pixels.itemsize * 8, {1: 0, 2: 4, 3: 2, 4: 6}[channel_count(image)]
    file.write(SIGNATURE)
    for kind, body in chunks_of(frame.getvalue()):
        if kind == b"IHDR":
            header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
            file.write(chunk(kind, header))
            file.writelines(_colour_chunks(image.colour) if image.colour else ())
        elif kind == b"IDAT" and not image.frames:
            for part in _deflated(image):
                file.write(chunk(kind, part))
        else:
            file.write(chunk(kind, body))


def _deflated(image: Image) -> Iterator[bytes]:
    """Yield the bodies of IDAT chunks."""
    packer = zlib.compressobj(memLevel=9, strategy=zlib.Z_FILTERED)
    above = None
    for band in bands(image):
        above = np.zeros_like(band[:1]) if above is None else above
        rows = np.concatenate([above, band])
        filtered = _filtered(rows) if band.dtype == np.uint8 else _differences(rows)
        if part := packer.compress(filtered):
            yield part
        above = band[-1:]
    yield packer.flush()


def _filtered(rows: np.ndarray) -> bytes:
    """Filter all rows but the first, of 8 bits, each as suits it best; Pillow finds that fast."""
    file = io.BytesIO()
    picture = PIL.Image.fromarray(rows if rows.shape[2] > 1 else rows[..., 0])
    picture.save(file, "PNG", compress_level=0)
    stored = b"".join(body for kind, body in chunks_of(file.getvalue()) if kind == b"IDAT")
    return zlib.decompress(stored)[1 + rows[0].size :]


def _differences(rows: np.ndarray) -> bytes:
    """Apply filter 2 to all rows but the first, of 16 bits: each byte minus the one above it."""
    stored = rows.astype(">u2").reshape(len(rows), -1).view(np.uint8)
    filtered = np.full((len(rows) - 1, 1 + stored.shape[1]), 2, np.uint8)
    np.subtract(stored[1:], stored[:-1], out=filtered[:, 1:])
    return filtered.tobytes()
