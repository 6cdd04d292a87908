"""Small pictures, files of them as other programs write them, and the metadata that these hold;
shared by tests.
"""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageCms
from PIL import TiffImagePlugin as tiff

DATA = Path(__file__).parent / "data"
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]
CMYK_PROFILE = RGB_PROFILE[:16] + b"CMYK" + RGB_PROFILE[20:]
# tEXt, zTXt or iTXt, by need
TEXTS = {
    "Title": "Zürich",
    "Comment": "日本語 " * 50,
    "Software": "GIMP",
}
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:li>\xc3\x89t\xc3\xa9</rdf:li></x:xmpmeta>'
MAKER_NOTE = b"MAKER\0II\x2a\0" + bytes(range(256))
THUMBNAIL = b"\xff\xd8THUMBNAIL\xff\xd9" * 20


def noise(shape, dtype="uint8", seed=0):
    """Every bit of every sample counts: equality means that nothing was lost."""
    values = np.random.default_rng(seed).random(shape)
    return (values if dtype == "float32" else values * (WHITE[dtype] + 1)).astype(dtype)


def smooth(shape, dtype="uint8"):
    """A picture that lossy formats keep within a few steps."""
    ramp = np.add.outer(np.linspace(0.1, 0.5, shape[0]), np.linspace(0.0, 0.4, shape[1]))
    if len(shape) == 3:
        ramp = ramp[..., None] * np.array([1.0, 0.8, 0.5])
    return (ramp if dtype == "float32" else (ramp * WHITE[dtype]).round()).astype(dtype)


def photo(name="photo"):
    """A photograph of the tests' data, H x W x 3 float32 in [0, 1]."""
    return np.asarray(PIL.Image.open(DATA / f"{name}.png"), np.float32) / 255


def flat(value, height=128, width=128):
    """A picture of one gray, H x W x 3 float32."""
    return np.full((height, width, 3), value, np.float32)


def pillow_bytes(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png_bytes(samples, bits, colour_type, *extra):
    """A PNG of one row per row of bytes in samples (H x bytes), with chunks before IDAT."""
    height, width = (
        samples.shape[0],
        samples.shape[1] * 8 // (bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]),
    )
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [
            (b"IHDR", header),
            *extra,
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        ]
    )


def tiff_bytes(samples, order="<", **changed):
    """An uncompressed TIFF; changed: tags by their names in Pillow, or _ and a number."""
    height, width, channels = samples.shape
    file, tags = io.BytesIO(), tiff.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    values = {
        "IMAGEWIDTH": width,
        "IMAGELENGTH": height,
        "BITSPERSAMPLE": (samples.itemsize * 8,) * channels,
        "COMPRESSION": 1,
        "PHOTOMETRIC_INTERPRETATION": 2 if channels > 2 else 1,
        "SAMPLESPERPIXEL": channels,
        "ROWSPERSTRIP": height,
        "STRIPOFFSETS": 0,
        "STRIPBYTECOUNTS": samples.nbytes,
        "SAMPLEFORMAT": ({"u": 1, "i": 2, "f": 3}[samples.dtype.kind],) * channels,
    }
    for name, value in (values | changed).items():
        tags[int(name[1:]) if name.startswith("_") else getattr(tiff, name)] = value
    tags.save(file)
    return file.getvalue() + samples.astype(samples.dtype.newbyteorder(order)).tobytes()


def exif_tags(orientation=1):
    """What a camera writes, as Pillow takes it: letters beyond ASCII, a maker note, GPS, nested
    directories.
    """
    rational = tiff.IFDRational
    return ({274: orientation} if orientation else {}) | {
        270: "Zürich am See".encode(),
        271: b"Camera",
        282: rational(300),
        283: rational(300),
        296: 2,
        315: "José".encode(),
        34665: {
            33434: rational(1, 250),
            36864: b"0232",
            36867: b"2024:05:06 07:08:09",
            37500: MAKER_NOTE,
            37510: b"UNICODE\0" + "日本".encode("utf-16-be"),
            40965: {1: "R98"},
        },
        34853: {
            1: "N",
            2: (rational(47), rational(22), rational(3299, 100)),
            3: "E",
            6: rational(408),
        },
    }


def exif_block(orientation=1, order="<", thumbnail=True):
    """An EXIF block of exif_tags, with a thumbnail at its end as cameras write it."""
    mark = b"II" if order == "<" else b"MM"
    tags = tiff.ImageFileDirectory_v2(prefix=mark)
    for tag, value in exif_tags(orientation).items():
        tags[tag] = value
    block = bytearray(mark + struct.pack(order + "HI", 42, 8) + tags.tobytes(8))
    if thumbnail:
        struct.pack_into(order + "I", block, 10 + 12 * len(tags), len(block))
        place = len(block) + 2 + 3 * 12 + 4
        block += struct.pack(order + "H", 3)
        for tag, value in ((259, 6), (513, place), (514, len(THUMBNAIL))):
            block += struct.pack(order + "HHII", tag, 4, 1, value)
        block += bytes(4) + THUMBNAIL
    return bytes(block)


def exif_facts(block):
    """All values of an EXIF block, as Pillow reads them, by directory and tag."""
    exif = PIL.Image.Exif()
    exif.load(block)
    facts = {"main": {tag: value for tag, value in exif.items() if tag not in {34665, 34853}}}
    for name, tag in (
        ("exif", 34665),
        ("gps", 34853),
        ("interoperability", 40965),
        ("thumbnail", "IFD1"),
    ):
        facts[name] = {}
        # older versions of Pillow, where there is no directory
        with contextlib.suppress(KeyError):
            facts[name] = {
                key: value for key, value in dict(exif.get_ifd(tag)).items() if key != 40965
            }
    return facts


def check_exif(block):
    """All of exif_tags is in the block, value by value and byte by byte, but no thumbnail."""
    seen, wanted = exif_facts(block), exif_facts(exif_block(thumbnail=False))
    # Software, which comes from texts
    seen["main"].pop(305, None)
    assert seen["main"].pop(274, 1) == wanted["main"].pop(274)
    assert seen == wanted
    assert MAKER_NOTE in block
