"""JPEG files: what Pillow passes over in their segments, and a writer that keeps it."""

import hashlib
import io
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import PIL.Image

from ..errors import ImageError
from . import exif, pillow
from .image import NO_GAIN_MAP, Image
from .metadata import IPTC, resource
from .samples import upright

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_PROFILE = b"ICC_PROFILE\0"
_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"

USUAL_PASSES = 50
"""More than any encoder makes for one picture; the small ones in the file count too."""

MOST_PASSES = 2**33
"""Pixels that all passes of a progressive file may have together, which takes half a minute."""

LONGEST = 65502
"""Bytes that fit into one segment together with its name."""

_CLAIMS = rb"(?:hdrgm|HDRGainMap):\w+|G?Camera:(?:MicroVideo|MotionPhoto)\w*"
# No pattern may look at a long packet again and again. So a run of white space is looked at from
# its beginning only.
_SPACE = rb"(?<!\s)\s*"
_ELEMENT = re.compile(_SPACE + rb"<(\w*Container:Directory|%s)\b[^<>]*>" % _CLAIMS)
_ATTRIBUTES = re.compile(_SPACE + rb"""\s(?:%s)\s*=\s*(?:"[^"]*"|'[^']*')""" % _CLAIMS)
_PREFIXES = rb"hdrgm|HDRGainMap|G?Camera|G?Container|Item"
_PREFIX = re.compile(_SPACE + rb"""\sxmlns:(%s)\s*=\s*["'][^"']*["']""" % _PREFIXES)
_POINTER = re.compile(_SPACE + rb"""\sxmpNote:HasExtendedXMP\s*=\s*(?:"([^"]*)"|'[^']*')""")
_IS_GAIN_MAP = re.compile(rb"hdrgm:|HDRGainMap|hdrgainmap|" + _GAIN_MAP)
_PACKET = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta>'
)
_CLAIM = (
    b'<rdf:Description rdf:about="" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"'
    b' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
    b' xmlns:Item="http://ns.google.com/photos/1.0/container/item/" hdrgm:Version="1.0">'
    b'<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">'
    b'<Container:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li>'
    b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap"'
    b' Item:Mime="image/jpeg" Item:Length="%d"/></rdf:li></rdf:Seq></Container:Directory>'
    b"</rdf:Description>"
)
_POINTER_ELEMENT = re.compile(rb"<xmpNote:HasExtendedXMP>([^<]*)</xmpNote:HasExtendedXMP>")


def describe(data: bytes, info: dict[Any, Any], turn: Any) -> tuple[list[str], dict[str, Any]]:
    """Complete what Pillow calls info; return notes and further fields of `Image`.

    Extended XMP is joined to the rest. What an XMP packet says of a gain map, which `write` says
    anew, and of a video, which is not read, is taken out.
    turn: the EXIF orientation, also of a gain map.
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
    gain_map = _gain_map(data, turn)
    if has_gain_map and not gain_map:
        notes.append(NO_GAIN_MAP)
    if has_video:
        notes.append("holds a video (motion photo), which is left out")
    if xmp and (has_gain_map or has_video):
        xmp = _without_claims(xmp)
    info["xmp"] = xmp
    iptc = (info.get("photoshop") or {}).get(IPTC)
    return notes, {"iptc": iptc or None, "gain_map": gain_map}


def check_length(data: bytes, pixels: int) -> None:
    """Raise ValueError for a JPEG file too short for its pixels, and ImageError for one with so
    many passes over them that it would take minutes.
    """
    # Huffman codes have at least a bit for each block of 64 samples
    huffman = any(marker in {0xC0, 0xC1, 0xC2} for marker, _ in segments(data))
    if huffman and pixels > 64 * 8 * len(data):
        raise ValueError("the file is truncated")
    passes = data.count(b"\xff\xda")
    if passes > USUAL_PASSES and passes * pixels > MOST_PASSES:
        raise ImageError(
            f"its {passes:,} passes over {pixels:,} pixels would take too long; export it again"
        )


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


def _gain_map(data: bytes, turn: Any) -> bytes | None:
    """Find the gain map among the pictures behind the first, and turn it upright."""
    start = data.find(b"\xff\xd8\xff", _end(data))
    while start > 0:
        found = data[start:]
        found = found[: _end(found)]
        heads = [(marker, body) for marker, body in segments(found) if marker in (0xE1, 0xE2)]
        if any(_IS_GAIN_MAP.search(body) for _, body in heads):
            break
        start = data.find(b"\xff\xd8\xff", start + max(len(found), 2))
    else:
        return None
    try:
        with PIL.Image.open(io.BytesIO(found), formats=["JPEG"]) as file:
            file.load()
            if turn not in range(2, 9):
                return found
            samples, _ = pillow.read(file)
    # what is damaged cannot be carried
    except (OSError, ValueError, SyntaxError):
        return None
    turned = io.BytesIO()
    picture = PIL.Image.fromarray(upright(samples, turn))
    picture.save(turned, "JPEG", quality=95, subsampling=0)
    kept = [(marker, body) for marker, body in heads if not body.startswith((b"Exif", b"MPF"))]
    return with_segments(turned.getvalue(), kept)


def _end(data: bytes) -> int:
    """Return the place behind the first JPEG file in data; 0 where it has no end."""
    head = 2 + sum(4 + len(body) for _, body in segments(data))
    # samples never look like this mark
    return data.find(b"\xff\xd9", head) + 2 if data.find(b"\xff\xd9", head) > 0 else 0


def with_segments(data: bytes, added: Iterable[tuple[int, bytes]]) -> bytes:
    """Add segments, of these markers and bodies, behind those that a JPEG file begins with."""
    place = 2
    while data[place + 1] & 0xF0 == 0xE0:
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    parts = [struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in added]
    return b"".join([data[:place], *parts, data[place:]])


def write(image: Image, quality: int, file: BinaryIO) -> None:
    """Write a JPEG file with the whole of its chroma, IPTC, and XMP of any length."""
    xmp, extra = image.xmp, []
    if image.gain_map and _GAIN_MAP in image.gain_map:
        # the earliest version suffices for a reader
        extra.append((0xE2, _GAIN_MAP + bytes(4)))
    # the claim of a gain map has to be in the first packet
    if xmp and len(xmp) > LONGEST - (len(_CLAIM) + 10 if image.gain_map else 0):
        guid = hashlib.md5(xmp, usedforsecurity=False).hexdigest().upper().encode()
        for start in range(0, len(xmp), 65400):
            head = guid + struct.pack(">II", len(xmp), start)
            extra.append((0xE1, _EXTENSION + head + xmp[start : start + 65400]))
        pointer = (
            b'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/"'
            b' xmpNote:HasExtendedXMP="' + guid + b'"/>'
        )
        xmp = _PACKET.replace(b"</rdf:RDF>", pointer + b"</rdf:RDF>")
    if image.gain_map:
        xmp = _with_claim(xmp, image.gain_map)
    if image.iptc:
        extra.append((0xED, _PHOTOSHOP + resource(image.iptc)))
    block = b"Exif\0\0" + image.exif if image.exif else None
    comment = image.text["Comment"].encode() if image.text else None
    encoded = io.BytesIO()
    options = {"exif": block, "xmp": xmp, "comment": comment, "subsampling": 0}
    pillow.write(image, quality, encoded, "JPEG", **options)
    data = with_segments(encoded.getvalue(), extra)
    if image.gain_map:
        # an index of fixed length: first of nothing, to see where it lies
        draft = with_segments(data, [(0xE2, _index(0, 0, 0))])
        offset = len(draft) - draft.index(b"MPF\0II*\0") - 4
        data = with_segments(data, [(0xE2, _index(len(draft), len(image.gain_map), offset))])
    file.write(data)
    file.write(image.gain_map or b"")


def _index(first: int, second: int, offset: int) -> bytes:
    """Build the index of two pictures (CIPA DC-007), of these lengths, the second at an offset."""
    # the first is the one to show, and a JPEG file
    pictures = struct.pack("<IIIHH", 0x20030000, first, 0, 0, 0)
    pictures += struct.pack("<IIIHH", 0, second, offset, 0, 0)
    entries = {
        0xB000: exif.raw(b"0100"),
        0xB001: exif.Entry(4, struct.pack("<I", 2)),
        0xB002: exif.raw(pictures),
    }
    return b"MPF\0" + exif.joined("<", entries)


def _with_claim(xmp: bytes | None, gain_map: bytes) -> bytes | None:
    """Say in XMP that a gain map follows, if the gain map is of Adobe's kind."""
    if b"hdrgm:" not in gain_map:
        return xmp
    claim = _CLAIM % len(gain_map)
    packet = xmp if xmp and b"</rdf:RDF>" in xmp else _PACKET
    end = packet.rfind(b"</rdf:RDF>")
    return packet[:end] + claim + packet[end:]


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
    begin = extension.find(b">", extension.find(b"<rdf:RDF"))
    close = extension.rfind(b"</rdf:RDF>")
    end = xmp.rfind(b"</rdf:RDF>")
    if not (whole and b"<rdf:RDF" in extension and 0 < begin < close and end > 0):
        return xmp, True
    return xmp[:end] + extension[begin + 1 : close] + xmp[end:], False


def _without_claims(xmp: bytes) -> bytes:
    """Take out of XMP what it says of gain maps, videos and other files behind the first."""
    xmp = _ATTRIBUTES.sub(b"", _without_elements(xmp))

    used = set(re.findall(rb"[<\s/](%s):" % _PREFIXES, xmp))
    return _PREFIX.sub(lambda found: found[0] if found[1] in used else b"", xmp)


def _without_elements(xmp: bytes) -> bytes:
    """Take out the elements that _ELEMENT finds, with all that is in them."""
    kept, place = [], 0
    unclosed = set()
    for found in _ELEMENT.finditer(xmp):
        if found.start() < place or found[1] in unclosed:
            continue
        end = found.end()
        if not found[0].endswith(b"/>"):
            close = b"</" + found[1] + b">"
            start = xmp.find(close, end)
            if start < 0:
                unclosed.add(found[1])
                continue
            end = start + len(close)
        kept.append(xmp[place : found.start()])
        place = end
    return b"".join([*kept, xmp[place:]])
