"""JPEG files: what Pillow passes over in their segments, and a writer that keeps it."""

import hashlib
import io
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from . import pillow
from .image import NO_GAIN_MAP, Image
from .metadata import IPTC, resource

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_PROFILE = b"ICC_PROFILE\0"
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"

LONGEST = 65502
"""Bytes that fit into one segment together with its name."""

_CLAIMS = rb"(?:hdrgm|HDRGainMap):\w+|G?Camera:(?:MicroVideo|MotionPhoto)\w*"
_DIRECTORY = re.compile(rb"\s*<(\w*Container:Directory)\b.*?</\1>", re.DOTALL)
_ATTRIBUTES = re.compile(rb"""\s+(?:%s)\s*=\s*(?:"[^"]*"|'[^']*')""" % _CLAIMS)
_ELEMENTS = re.compile(rb"\s*<(%s)\b(?:[^>]*/>|.*?</\1>)" % _CLAIMS, re.DOTALL)
_PREFIX = re.compile(
    rb"""\s+xmlns:(hdrgm|HDRGainMap|G?Camera|G?Container|Item)\s*=\s*["'][^"']*["']"""
)
_POINTER = re.compile(rb"""\s+xmpNote:HasExtendedXMP\s*=\s*(?:"([^"]*)"|'[^']*')""")
_POINTER_ELEMENT = re.compile(rb"<xmpNote:HasExtendedXMP>([^<]*)</xmpNote:HasExtendedXMP>")


def describe(data: bytes, info: dict[Any, Any]) -> tuple[list[str], dict[str, Any]]:
    """Complete what Pillow calls info; return notes and further fields of `Image`.

    Extended XMP is joined to the rest. What an XMP packet says of gain maps and videos, which are
    not read, is taken out.
    """
    notes: list[str] = []
    extension: dict[bytes, dict[int, bytes]] = {}
    has_gain_map = has_profile = False
    for marker, body in segments(data):
        if marker == 0xE1 and body.startswith(_EXTENSION) and len(body) > 75:
            guid, start = body[35:67], struct.unpack_from(">I", body, 71)[0]
            extension.setdefault(guid, {})[start] = body[75:]
        has_gain_map |= marker == 0xE2 and body.startswith(_GAIN_MAP)
        has_profile |= marker == 0xE2 and body.startswith(_PROFILE)
    if has_profile and not info.get("icc_profile"):
        notes.append("its colour profile is damaged: left out")
    xmp = info.get("xmp")
    if xmp:
        has_gain_map |= re.search(rb"\b(?:hdrgm|HDRGainMap):\w", xmp) is not None
        xmp, lost = _with_extension(xmp, extension)
        if lost:
            notes.append("its extended XMP is incomplete: left out")
    has_video = re.search(rb"Camera:(?:MicroVideo|MotionPhoto)", xmp or b"") is not None
    has_video |= b"MotionPhoto_Data" in data[-(2**25) :]
    if has_gain_map:
        notes.append(NO_GAIN_MAP)
    if has_video:
        notes.append("holds a video (motion photo), which is left out")
    if xmp and (has_gain_map or has_video):
        xmp = _without_claims(xmp)
    info["xmp"] = xmp
    iptc = (info.get("photoshop") or {}).get(IPTC)
    return notes, {"iptc": iptc or None}


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the markers and bodies of the segments before the samples."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, size = struct.unpack_from(">xBH", data, place)
        if marker == 0xDA:
            return
        if marker == 0xFF:
            place += 1
            continue
        yield marker, data[place + 4 : place + 2 + size]
        place += 2 + size


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a JPEG file with the whole of its chroma, IPTC, and XMP of any length."""
    xmp, extra = image.xmp, []
    if xmp and len(xmp) > LONGEST:
        guid = hashlib.md5(xmp, usedforsecurity=False).hexdigest().upper().encode()
        for start in range(0, len(xmp), 65400):
            head = guid + struct.pack(">II", len(xmp), start)
            extra.append((0xE1, _EXTENSION + head + xmp[start : start + 65400]))
        xmp = (
            b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
            b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            b'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/"'
            b' xmpNote:HasExtendedXMP="' + guid + b'"/></rdf:RDF></x:xmpmeta>'
        )
    if image.iptc:
        extra.append((0xED, _PHOTOSHOP + resource(image.iptc)))
    block = b"Exif\0\0" + image.exif if image.exif else None
    comment = image.text["Comment"].encode() if image.text else None
    encoded = io.BytesIO()
    options = {"exif": block, "xmp": xmp, "comment": comment, "subsampling": 0}
    pillow.write(image, quality, encoded, "JPEG", **options)
    data = encoded.getvalue()
    # behind the segments that Pillow wrote first
    place = 2
    while data[place + 1] & 0xF0 == 0xE0:
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    file.write(data[:place])
    for marker, body in extra:
        file.write(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    file.write(data[place:])


def _with_extension(xmp: bytes, found: dict[bytes, dict[int, bytes]]) -> tuple[bytes, bool]:
    """Join the extension that an XMP packet points at to it; tell whether it is missing."""
    pointer = _POINTER.search(xmp) or _POINTER_ELEMENT.search(xmp)
    if not pointer:
        return xmp, False
    parts = found.get((pointer[1] or b"").strip(), {})
    extension, whole = b"", True
    for start, part in sorted(parts.items()):
        whole &= start == len(extension)
        extension += part
    xmp = _POINTER_ELEMENT.sub(b"", _POINTER.sub(b"", xmp))
    inner = re.search(rb"<rdf:RDF\b[^>]*>(.*)</rdf:RDF>", extension, re.DOTALL)
    end = xmp.rfind(b"</rdf:RDF>")
    if not (whole and inner and end > 0):
        return xmp, True
    return xmp[:end] + inner[1] + xmp[end:], False


def _without_claims(xmp: bytes) -> bytes:
    """Take out of XMP what it says of gain maps, videos and other files behind the first."""
    for pattern in (_DIRECTORY, _ELEMENTS, _ATTRIBUTES):
        xmp = pattern.sub(b"", xmp)

    def unused(declaration: re.Match[bytes]) -> bytes:
        used = re.search(rb"[<\s/]" + declaration[1] + rb":", xmp)
        return declaration[0] if used else b""

    return _PREFIX.sub(unused, xmp)
