"""HEIC files, at their full depth."""

import io
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import pillow_heif

from . import boxes, pillow
from .image import NO_GAIN_MAP, Image
from .samples import Samples, channel_count, interleaved, stretched

pillow_heif.register_heif_opener(thumbnails=False)


def read(data: bytes, file: PIL.Image.Image) -> Samples:
    """Read the samples of a HEIC file; file: the same, as Pillow has opened it."""
    bits = file.info["bit_depth"]
    if bits == 8:
        pixels, alpha = pillow.read(file)
    else:
        as_stored = {"convert_hdr_to_8bit": False, "hdr_to_16bit": False}
        heif = pillow_heif.open_heif(io.BytesIO(data), **as_stored)
        samples = stretched(np.asarray(heif), 2**bits - 1)
        pixels = samples if samples.ndim == 2 else samples[..., :3]
        alpha = samples[..., 3] if samples.shape[2:] == (4,) else None
    # gray with alpha is read as RGB with alpha
    if "chroma" not in file.info and pixels.ndim == 3:
        is_gray = (pixels[..., :1] == pixels[..., 1:]).all()
        pixels = pixels[..., 0] if is_gray else pixels
    return pixels, alpha


def describe(data: bytes, file: PIL.Image.Image) -> tuple[list[str], dict[str, Any]]:
    """Return notes of what is not read, and the colour tags as a field of `Image`."""
    tags, has_gain_map = boxes.describe(data)
    notes = [NO_GAIN_MAP] if has_gain_map or b"hdrgainmap" in data else []
    if file.info.get("depth_images"):
        notes.append("holds a map of depth, which is left out")
    return notes, {"colour": tags}


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a HEIC file of 8 or 10 bits."""
    samples = interleaved(image)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channel_count(image)]
    mode += ";16" if samples.itemsize == 2 else ""
    metadata = {"icc_profile": image.icc_profile, "exif": image.exif, "xmp": image.xmp}
    given: dict[str, Any] = {key: value for key, value in metadata.items() if value is not None}
    if image.colour and image.colour.cicp:
        # which would go before the numbers
        given.pop("icc_profile", None)
        primaries, transfer = image.colour.cicp
        given |= {"color_primaries": primaries, "transfer_characteristics": transfer}
        # so earlier versions spell it
        given |= {"transfer_characteristic": transfer}
        given |= {"matrix_coefficients": 6, "full_range_flag": 1}
    encoded = io.BytesIO()
    size, content = samples.shape[1::-1], samples.tobytes()
    pillow_heif.encode(mode, size, content, encoded, quality=quality, **given)
    file.write(encoded.getbuffer())
