"""What a file tells of its photograph besides the pixels, and what of it a format can hold."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import exif
from .image import Image

_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))\d')


def from_info(format: str, info: Mapping[Any, Any], turn: Any) -> dict[str, Any]:
    """Sort what Pillow calls info by the names of Image's fields: EXIF, XMP, resolution, texts,
    notes.
    """
    text: dict[str, str] = {}
    block, xmp, comment = (info.get(key) for key in ("exif", "xmp", "comment"))
    if format == "PNG":
        text = {key: value for key, value in info.items() if isinstance(value, str)}
        text.pop("XML:com.adobe.xmp", None)
        # so ImageMagick writes EXIF
        lines = text.pop("Raw profile type exif", "").split("\n")[3:]
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
    # else it is what Pillow made of EXIF, or 72 where that failed
    if format in {"JPEG", "MPO"} and info.get("jfif_unit") not in {1, 2}:
        found = None
    if found is None and block:
        found = exif.resolution(exif.parse(block))
    try:
        # files round to 0.03 and less
        across, down = (round(float(value), 2) for value in found or ())
    except (TypeError, ValueError):
        return None
    if not (1 <= across <= 65535 and 1 <= down <= 65535):
        return None
    return (down, across) if turn in {5, 6, 7, 8} else (across, down)


def fit(image: Image, name: str, holds: frozenset[str], longest: int) -> tuple[Image, list[str]]:
    """Fit the metadata to what a format of this name can hold, with a note of what is left out.

    longest: bytes that EXIF, XMP and a comment may have there, each.
    """
    block, dpi, text = image.exif, image.dpi, dict(image.text)
    # EXIF has a place also for what few formats hold elsewhere
    if "EXIF" in holds:
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
        "EXIF": len(block or b"") <= longest,
        "XMP": len(image.xmp or b"") <= longest,
        "comment": len(text.get("Comment", "").encode()) <= longest,
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
        comment = {}
        if "comment" in kept and "Comment" in text:
            comment["Comment"] = text.pop("Comment")
        lost += [f"text {keyword!r}" for keyword in text]
        text = comment
    notes = []
    if lost:
        notes.append(f"{name} has no place for all metadata: left out {', '.join(lost)}")
    profile, block, xmp, dpi = (value if what in kept else None for what, value in values.items())
    return Image(image.pixels, image.alpha, profile, block, xmp, dpi, text), notes
