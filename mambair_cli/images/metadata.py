"""What a file tells of its photograph besides the pixels, and what of it a format can hold."""

import contextlib
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from . import exif
from .image import Image

IPTC = 0x0404
"""The number of IPTC among Photoshop's resources."""

_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_XMP_ORIENTATION = re.compile(rb'(tiff:Orientation(?:="|>))\d')


def from_info(format: str, info: Mapping[Any, Any], turn: Any) -> dict[str, Any]:
    """Sort what Pillow calls info by the names of Image's fields: EXIF, XMP, resolution, texts,
    notes.
    """
    text: dict[str, str] = {}
    raw: dict[str, bytes | None] = {}
    block, xmp, comment = (info.get(key) for key in ("exif", "xmp", "comment"))
    if format == "PNG":
        text = {key: value for key, value in info.items() if isinstance(value, str)}
        text.pop("XML:com.adobe.xmp", None)
        raw = _raw_profiles(text)
        block, xmp = block or raw.get("exif"), xmp or raw.get("xmp")
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
        **({"iptc": raw["iptc"]} if raw.get("iptc") else {}),
    }


def iptc_of(resources: bytes | None) -> bytes | None:
    """Find IPTC among Photoshop's resources, as TIFF and JPEG hold them; else None."""
    place = 0
    while resources and resources[place : place + 4] == b"8BIM":
        kind, length = struct.unpack_from(">HB", resources, place + 4)
        # a name, then the size, both of even length
        place += 6 + (length + 2) // 2 * 2
        (size,) = struct.unpack_from(">I", resources, place)
        if kind == IPTC:
            return resources[place + 4 : place + 4 + size] or None
        place += 4 + size + size % 2
    return None


def resource(iptc: bytes) -> bytes:
    """Make IPTC one of Photoshop's resources."""
    return b"8BIM" + struct.pack(">HHI", IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def _raw_profiles(text: dict[str, str]) -> dict[str, bytes | None]:
    """Take EXIF, XMP and IPTC out of the texts of a PNG file, where ImageMagick writes them."""
    found: dict[str, bytes | None] = {}
    for keyword in [keyword for keyword in text if keyword.startswith("Raw profile type ")]:
        name = keyword.split()[-1].lower()
        if name not in ("exif", "app1", "xmp", "iptc", "8bim"):
            continue
        lines = text.pop(keyword).split("\n")[3:]
        # what is damaged tells nothing
        with contextlib.suppress(ValueError, struct.error):
            content = bytes.fromhex("".join(lines))
            head, _, packet = content.partition(b"\0")
            if name in ("iptc", "8bim"):
                found["iptc"] = content if content[:1] == b"\x1c" else iptc_of(content)
            elif name == "xmp" or head == b"http://ns.adobe.com/xap/1.0/":
                found["xmp"] = packet or content
            else:
                found["exif"] = content
    return found


def add_resources(
    resources: Iterable[tuple[int, bytes, bytes]], info: dict[Any, Any], fields: dict[str, Any]
) -> None:
    """Add EXIF, XMP, IPTC and the resolution of a PSD file to what Pillow calls info."""
    for kind, _, content in resources:
        if kind == 1058:
            info.setdefault("exif", content)
        elif kind == 1060:
            info.setdefault("xmp", content)
        elif kind == IPTC:
            fields["iptc"] = content
        elif kind == 1005 and len(content) == 16:
            # always stored as pixels an inch, whatever unit is shown
            across, down = struct.unpack(">I4xI4x", content)
            info["dpi"] = (across / 65536, down / 65536)


def add_uuid_boxes(data: bytes, info: dict[Any, Any]) -> None:
    """Add EXIF and XMP of a JPEG 2000 file to what Pillow calls info."""
    for name, mark in (("exif", b"JpgTiffExif->JP2"), ("xmp", _XMP_BOX)):
        place = data.find(b"uuid" + mark)
        if place >= 4:
            (size,) = struct.unpack_from(">I", data, place - 4)
            info[name] = data[place + 20 : place - 4 + size]


def add_gif_extensions(data: bytes, info: dict[Any, Any]) -> None:
    """Add XMP of a GIF file, which lies there bare, and its profile to what Pillow calls info."""
    place = data.find(b"\x21\xff\x0bICCRGBG1012") + 14
    profile = bytearray()
    # pieces, each behind its length
    while place > 13 and data[place : place + 1] > b"\0":
        profile += data[place + 1 : place + 1 + data[place]]
        place += 1 + data[place]
    if profile:
        info["icc_profile"] = bytes(profile)
    mark = b"\x21\xff\x0bXMP DataXMP"
    start = data.find(mark)
    end = data.find(b"\x01\xff\xfe", start)
    if 0 <= start < end:
        info["xmp"] = data[start + len(mark) : end]


def sized(image: Image) -> Image:
    """Set the sizes in EXIF and XMP to that of the pixels, and scale those of panoramas."""
    height, width = image.pixels.shape[:2]
    block, xmp = image.exif, image.xmp
    if block:
        block = exif.sized(block, width, height)
    if xmp:
        xmp = _replaced(xmp, rb"tiff:ImageWidth|exif:PixelXDimension", lambda old: width)
        xmp = _replaced(xmp, rb"tiff:ImageLength|exif:PixelYDimension", lambda old: height)
    if xmp and image.read_size:
        down, across = height / image.read_size[0], width / image.read_size[1]
        columns = rb"GPano:\w*(?:Width|AreaLeft)Pixels"
        xmp = _replaced(xmp, columns, lambda old: round(old * across))
        rows = rb"GPano:\w*(?:Height|AreaTop)Pixels"
        xmp = _replaced(xmp, rows, lambda old: round(old * down))
    return replace(image, exif=block, xmp=xmp)


def _replaced(xmp: bytes, names: bytes, change: Callable[[int], int]) -> bytes:
    """Change the whole numbers that an XMP packet has under names, as attributes or elements."""
    pattern = rb"""((?:%s)(?:\s*=\s*["']|>)\s*)(\d{1,9})(?=\s*["'<])""" % names
    return re.sub(pattern, lambda found: found[1] + b"%d" % change(int(found[2])), xmp)


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
    xmp_fits = len(image.xmp or b"") <= longest
    if "long XMP" in holds:
        xmp_fits |= b"</rdf:RDF>" in (image.xmp or b"")
    fits = {
        "colour profile": not (
            image.pixels.ndim == 3 and (image.icc_profile or b"")[16:20] == b"GRAY"
        ),
        "EXIF": len(block or b"") <= longest,
        "XMP": xmp_fits,
        "comment": len(text.get("Comment", "").encode()) <= longest,
    }
    kept = {what for what in holds if fits.get(what, True)}
    values: dict[str, Any] = {
        "colour profile": image.icc_profile,
        "EXIF": block,
        "XMP": image.xmp,
        "resolution": dpi,
        "IPTC": image.iptc,
    }
    lost = [what for what, value in values.items() if value and what not in kept]
    if "text" not in kept:
        comment = {}
        if "comment" in kept and "Comment" in text:
            comment["Comment"] = text.pop("Comment")
        lost += [f"text {keyword!r}" for keyword in text]
        text = comment
    notes = []
    if image.gain_map and "gain map" not in holds:
        notes.append(f"{name} has no place for the gain map for HDR: the result is its SDR picture")
    if lost:
        notes.append(f"{name} has no place for all metadata: left out {', '.join(lost)}")
    profile, block, xmp, dpi, iptc = (
        value if what in kept else None for what, value in values.items()
    )
    held: dict[str, Any] = {
        "icc_profile": profile,
        "exif": block,
        "xmp": xmp,
        "dpi": dpi,
        "iptc": iptc,
    }
    return replace(image, text=text, **held), notes
