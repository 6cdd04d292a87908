"""From the bytes of an image file to an `Image`: who reads what.

Pillow opens most files, and so finds the damaged ones. What it would cut to 8 bits, or cannot
read, goes to others.
"""

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image

from ..errors import ImageError
from . import avif, bmp, exif, heif, jpeg, jxl, metadata, netpbm, pillow, png, radiance, tiff, webp
from .image import Frames, Image, Stored
from .samples import Samples, alpha_of_key, check_pixels, most_pixels, upright

_RAW = re.compile(
    rb"II\*\0....CR|II\x1a\0\0\0HEAPCCDR|IIII|IIRO|IIRS|MMOR|IIU\0|FUJIFILMCCD-RAW"
    rb"|....ftypcrx |FOVb|\0MRM",
    re.DOTALL,
)
"""How camera raw files begin that are more than TIFF: Canon, Phase One, Olympus, Panasonic ..."""


SEVERAL = "holds several frames or pages: only the first is read"


_MOVING = {"GIF", "WEBP", "PNG", "AVIF"}
"""Formats whose frames are those of an animation, by Pillow's names."""


def decode(data: bytes, max_pixels: int, first_frame: bool = False) -> Image:
    """Read a picture, upright, and all that the file tells of it; also its other frames or pages.

    first_frame: leave these out, with a note.

    Raises ImageError (over max_pixels in all, not readable) and, for damaged files, nearly
    anything.
    """
    if _RAW.match(data):
        raise ImageError(tiff.RAW)
    with pillow.quiet_libraries():
        if not exif.is_tiff(data):
            return _finished(_read(data, max_pixels, first_frame))
        if tiff.is_raw(exif.parse(data)):
            raise ImageError(tiff.RAW)
        places = tiff.pages(data)
        if len(places) > 1 and not first_frame:
            return _pages(data, places, max_pixels)
        # smaller copies may lie before the picture
        if places and places[0] != exif.first_directory(data):
            data = tiff.beginning_at(data, places[0])
        return _finished(_read(data, max_pixels, first_frame, is_page=len(places) == 1))


def _pages(data: bytes, places: list[int], max_pixels: int) -> Image:
    """Read the pages of a TIFF file, whose directories are at these places."""
    pages: list[Image] = []
    for place in places:
        page = _finished(_read(tiff.beginning_at(data, place), max_pixels, True, is_page=True))
        max_pixels -= page.pixels.shape[0] * page.pixels.shape[1]
        pages.append(page)
    first, *others = pages
    notes = dict.fromkeys(note for page in pages for note in page.notes)
    return replace(first, notes=tuple(notes), frames=Frames(tuple(others)))


def _finished(stored: Stored) -> Image:
    """Turn upright what was read, and sort its metadata."""
    found = metadata.from_info(stored.format, stored.info, stored.turn)
    profile, notes = stored.info.get("icc_profile"), stored.notes
    if profile and profile[16:20] != (b"GRAY" if stored.pixels.ndim == 2 else b"RGB "):
        # the inks of CMYK become RGB, which is said
        if not any("become RGB" in note for note in notes):
            notes.append("its colour profile does not fit its pixels: left out")
        profile = None
    pixels, alpha = upright(stored.pixels, stored.turn), stored.alpha
    image = Image(
        pixels,
        None if alpha is None else upright(alpha, stored.turn),
        profile or None,
        read_size=(pixels.shape[0], pixels.shape[1]),
        **stored.fields | found | {"notes": (*notes, *found["notes"])},
    )
    if image.frames is None:
        return image
    alike: dict[str, Any] = {
        "colour": image.colour,
        "icc_profile": image.icc_profile,
        "read_size": image.read_size,
    }
    others = tuple(replace(frame, **alike) for frame in image.frames.images)
    return replace(image, frames=replace(image.frames, images=others))


def _read(data: bytes, max_pixels: int, first_frame: bool, is_page: bool = False) -> Stored:
    """Read what is stored; a page of several is not told that there are others."""
    tags = exif.parse(data) if exif.is_tiff(data) else None
    if tags and tiff.is_raw(tags):
        raise ImageError(tiff.RAW)
    if jxl.knows(data):
        if not jxl.INSTALLED:
            raise ImageError(jxl.NO_JXL)
        # it is decoded as soon as it is opened
        check_pixels(jxl.size(data), max_pixels)
    if netpbm.knows(data):
        return netpbm.read(data, max_pixels)
    if radiance.knows(data):
        return radiance.read(data, max_pixels)
    if not tags:
        return _read_by_pillow(data, max_pixels, first_frame)
    tiff.check_strips(data, tags)
    if tiff.is_for_tifffile(data, tags):
        stored = tiff.read(data, tags, max_pixels)
    else:
        try:
            stored = _read_by_pillow(data, max_pixels, True)
        # such as LERC
        except (PIL.UnidentifiedImageError, NotImplementedError):
            stored = tiff.read(data, tags, max_pixels)
        except OSError as error:
            kind = tiff.rare_compression(tags)
            if kind:
                raise ImageError(
                    f"TIFF with compression {kind} is of a kind that cannot be read; save it anew"
                ) from error
            raise
        bits = max(tags.numbers(exif.BITS), default=8)
        if stored.pixels.dtype == np.uint8 and bits > 8:
            stored.notes.insert(0, f"its samples of {bits} bits are reduced to 8")
    stored.info = tiff.info_of(tags)
    stored.fields["iptc"] = tags.data(exif.IPTC) or metadata.iptc_of(tags.data(exif.PHOTOSHOP))
    if tags.damaged:
        stored.notes.insert(0, "some of its tags are damaged: left out")
    if tags.next > 0 and not is_page:
        stored.notes.insert(0, SEVERAL)
    return stored


def _read_by_pillow(data: bytes, max_pixels: int, first_frame: bool) -> Stored:
    with pillow.opened(io.BytesIO(data)) as file:
        check_pixels(file.size, max_pixels)
        name = file.format or ""
        if name not in pillow.ICONS:
            pillow.limit(min(max_pixels, most_pixels()))
        if name in {"JPEG", "MPO"}:
            jpeg.check_length(data, file.width * file.height)
        # the layers of a PSD file are no frames; JPEG says more of its pictures
        several = getattr(file, "is_animated", False) and name not in {"PSD", "MPO", "TIFF"}
        pixels, alpha = _samples(data, file)
        stored = Stored(name, pixels, alpha, dict(file.info), pillow.orientation(file))
        moves = several and name in _MOVING and not file.info.get("default_image")
        if moves and not first_frame:
            _add_frames(file, stored, max_pixels)
        elif several:
            stored.notes.append(SEVERAL)
        if file.mode in {"CMYK", "LAB"}:
            stored.notes.append(f"its {file.mode} colours become RGB")
        tables = getattr(file, "quantization", None) or {}
        luma = tuple(tables[min(tables)]) if tables else ()
        if len(luma) == 64 and min(luma) > 0:
            stored.fields["quantization"] = luma
        _describe(data, file, stored)
    return stored


def _add_frames(file: Any, stored: Stored, max_pixels: int) -> None:
    """Read all frames of an animation, with 8 bits, and with alpha where one of them has some."""
    count = file.n_frames
    check_pixels((file.width * count, file.height), max_pixels)
    frames, durations = [], []
    for number in range(count):
        file.seek(number)
        file.load()
        durations.append(float(file.info.get("duration", 0)))
        frames.append(pillow.read_frame(file))
    if stored.pixels.dtype != np.uint8:
        stored.notes.append("its samples of 16 bits are reduced to 8")
    has_alpha = any((alpha < 255).any() for _, alpha in frames)
    stored.pixels, stored.alpha = frames[0][0], frames[0][1] if has_alpha else None
    others = tuple(
        Image(upright(pixels, stored.turn), upright(alpha, stored.turn) if has_alpha else None)
        for pixels, alpha in frames[1:]
    )
    loops = file.info.get("loop")
    # a GIF file without the number is played once, and with it once more
    plays = (1 if loops is None else loops and loops + 1) if stored.format == "GIF" else loops or 0
    stored.fields["frames"] = Frames(others, tuple(durations), plays)


def _samples(data: bytes, file: Any) -> Samples:
    """Load and return what Pillow has opened, or have it read by others."""
    file.load()
    if file.format == "PNG" and file.mode in {"RGB", "RGBA"} and data[24] == 16:
        pixels, alpha = png.read_deep(data)
    elif file.format == "HEIF":
        pixels, alpha = heif.read(data, file)
    else:
        pixels, alpha = pillow.read(file)
    key = file.info.get("transparency")
    if alpha is None and key is not None:
        alpha = alpha_of_key(pixels, key, data[24] if file.format == "PNG" else 8)
    return pixels, alpha


def _describe(data: bytes, file: Any, stored: Stored) -> None:
    """Add what Pillow passes over in the formats that hold more than it tells."""
    bits = 8
    if stored.format == "PNG":
        notes, fields = png.describe(data)
        stored.notes += notes
        stored.fields |= fields
    elif stored.format in {"JPEG", "MPO"}:
        notes, fields = jpeg.describe(data, stored.info, stored.turn)
        if stored.format == "MPO" and not notes and not fields["gain_map"]:
            notes = [SEVERAL]
        stored.notes += notes
        stored.fields |= fields
    elif stored.format == "WEBP":
        stored.fields |= webp.describe(data)
    elif stored.format == "AVIF":
        notes, fields = avif.describe(data)
        stored.notes += notes
        stored.fields |= fields
        bits = avif.depth(data)
    elif stored.format == "HEIF":
        notes, fields = heif.describe(data, file)
        stored.notes += notes
        stored.fields |= fields
    elif stored.format == "JPEG2000":
        found = re.search(rb"\xff\x4f\xff\x51.{38}(.)", data, re.DOTALL)
        bits = (found[1][0] & 0x7F) + 1 if found else 8
        metadata.add_uuid_boxes(data, stored.info)
    elif stored.format in {"ICO", "ICNS"}:
        if len(stored.info.get("sizes", ())) > 1:
            stored.notes.append("holds several sizes: only the largest is read")
        if b"iCCP" in data and not stored.info.get("icc_profile"):
            stored.notes.append("its colour profile is left out")
    elif stored.format == "JXL":
        stored.notes += jxl.describe(data, stored.info)
    elif stored.format == "BMP":
        stored.fields |= bmp.describe(data, stored.info)
    elif stored.format == "SGI":
        bits = 8 * data[3]
    elif stored.format == "PSD":
        metadata.add_resources(file.resources, stored.info, stored.fields)
    elif stored.format == "GIF":
        metadata.add_gif_extensions(data, stored.info)
    if stored.pixels.dtype == np.uint8 and bits > 8:
        stored.notes.append(f"its samples of {bits} bits are reduced to 8")
