"""Files made to hang a reader, or to take its memory."""

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from failing import fails
from pictures import exif_block, pillow_bytes, smooth

from mambair_cli.errors import ImageError, MemoryLimitError
from mambair_cli.images import jpeg, jxl, samples, tiff
from mambair_cli.images.folders import image_size
from mambair_cli.images.io import decode_image, read_image, receive_image
from mambair_cli.images.png import SIGNATURE, chunk

pytestmark = pytest.mark.usefixtures("within_a_minute")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def within_a_minute():
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 60


def read(data, **options):
    return decode_image(data, "input", **options)


def png(width, height, body=b""):
    """A PNG file of black pixels that claims any size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def icns(inner):
    entry = b"ic10" + struct.pack(">I", 8 + len(inner)) + inner
    return b"icns" + struct.pack(">I", 8 + len(entry)) + entry


def ico(inner, kind=1):
    place = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22)
    return struct.pack("<HHH", 0, kind, 1) + place + inner


def webp(width, height):
    """A whole WebP file of one colour, in 34 bytes or so."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22
    body = bits.to_bytes(5, "little") + bytes.fromhex("0788fd0f31011100")[:8].ljust(9, b"\0")
    chunk_of = b"VP8L" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk_of)) + b"WEBP" + chunk_of


def jp2(width, height):
    """The head of a JPEG 2000 stream."""
    size = struct.pack(">HIIIIIIIIHBBB", 0, width, height, 0, 0, width, height, 0, 0, 1, 7, 1, 1)
    body = struct.pack(">H", len(size) + 2) + size
    return b"\xff\x4f\xff\x51" + body + b"\xff\x52\0\x0c\0\0\0\1\0\5\4\4\0\1\xff\x90"


# More pixels than the memory holds


PEAK = """
import re, sys
from pathlib import Path
from mambair_cli.errors import MambairError
from mambair_cli.images.io import decode_image

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

data = sys.stdin.buffer.read()
before = peak()
try:
    image = decode_image(data, "input")
except MambairError as error:
    print(type(error).__name__, round(peak() - before), error)
"""


def refused_cheaply(data):
    """What is said of a file that takes less than 100 MB to be refused."""
    command = [sys.executable, "-c", PEAK]
    done = subprocess.run(
        command, input=data, capture_output=True, check=True, cwd=ROOT, timeout=60
    )
    kind, peak, message = done.stdout.decode().rstrip("\n").split(" ", 2)
    assert kind in {"ImageError", "MemoryLimitError"}, message
    assert int(peak) < 100, message
    return message


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak")
@pytest.mark.parametrize(
    "data",
    [icns(png(20_000, 20_000)), icns(jp2(20_000, 20_000)), ico(png(20_000, 20_000))],
    ids=["icns png", "icns jpeg 2000", "ico png"],
)
def test_pictures_in_icons_are_bounded(data):
    assert "too large" in refused_cheaply(data)


def test_icons_are_read():
    picture = PIL.Image.fromarray(smooth((64, 64, 3)))
    assert read(pillow_bytes(picture, "ICNS")).pixels.shape == (1024, 1024, 3)
    assert read(pillow_bytes(picture, "ICO")).pixels.shape == (64, 64, 3)


def short_jpeg(side, marker=0xC0):
    """The beginning of a JPEG file, of which little is whole, with an end."""
    data = bytearray(pillow_bytes(PIL.Image.fromarray(smooth((16, 16, 3))), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 1] = marker
    struct.pack_into(">HH", data, place + 5, side, side)
    return bytes(data)


@pytest.mark.parametrize("marker", [0xC0, 0xC1, 0xC2])
def test_a_jpeg_too_short_for_its_pixels_is_not_decoded(monkeypatch, marker):
    data = short_jpeg(20_000, marker)
    monkeypatch.setattr(PIL.Image.Image, "load", pytest.fail)
    fails(lambda: read(data), ImageError, "truncated")


def test_the_shortest_jpeg_is_long_enough():
    flat = pillow_bytes(PIL.Image.new("L", (4096, 4096)), "JPEG", quality=1, optimize=True)
    assert read(flat).pixels.shape == (4096, 4096)
    assert 512 * len(flat) > 4096 * 4096


def test_a_jpeg_of_thousands_of_passes_is_refused(monkeypatch):
    picture = PIL.Image.fromarray(smooth((256, 256, 3)))
    data = pillow_bytes(picture, "JPEG", progressive=True)
    begin, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    again = data[:end] + 3_000 * data[begin:end] + data[end:]
    monkeypatch.setattr(jpeg, "MOST_PASSES", 2**24)
    fails(lambda: read(again), ImageError, "passes", "65,536 pixels")
    assert read(data).pixels.shape == (256, 256, 3)


@pytest.mark.parametrize(
    "data",
    [
        png(9_000, 9_000),
        webp(9_000, 9_000),
        b"P5 9000 9000 255\n",
        b"PF 9000 9000 -1\n",
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 9000 +X 9000\n",
        pillow_bytes(PIL.Image.new("1", (9_000, 9_000)), "TIFF", compression="group4"),
        pillow_bytes(PIL.Image.new("L", (9_000, 9_000)), "GIF"),
    ],
    ids=["png", "webp", "pgm", "pfm", "hdr", "tiff", "gif"],
)
def test_the_free_memory_bounds_what_is_read(monkeypatch, data):
    monkeypatch.setattr(samples, "free_memory", lambda: 2**27)
    monkeypatch.setattr(samples, "SMALL", 2**20)
    fails(lambda: read(data), MemoryLimitError, "memory")


@pytest.mark.skipif(not jxl.INSTALLED, reason="needs pillow-jxl-plugin")
@pytest.mark.parametrize("boxes", [False, True])
def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded(monkeypatch, tmp_path, boxes):
    for width, height in ((8, 8), (64, 48), (256, 256), (257, 100), (1000, 750), (40, 9000)):
        data = pillow_bytes(PIL.Image.new("L", (width, height)), "JXL", use_container=boxes)
        assert data.startswith(b"\0\0\0\x0cJXL ") == boxes
        assert jxl.size(data) == (width, height)
        (tmp_path / "a.jxl").write_bytes(data)
        assert image_size(tmp_path / "a.jxl") == (height, width)
    monkeypatch.setattr(PIL.Image, "open", pytest.fail)
    fails(lambda: read(data, max_pixels=359_999), ImageError, "40x9000", "359999")
    for cut in (data[:2], data[:13], data[:40].replace(b"jxlc", b"free"), b"\xff\x0a" + bytes(99)):
        with pytest.raises(ImageError):
            read(cut, max_pixels=1)


def test_another_size_in_a_comment_of_radiance_does_not_count():
    head = b"#?RADIANCE\n#\n-Y 1 +X 1\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n"
    fails(lambda: read(head), ImageError, "30000x30000")


def test_tiles_larger_than_their_picture_are_bounded():
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, smooth((32, 32, 3), "uint16"), tile=(32, 32), photometric="rgb")
    data = bytearray(file.getvalue())
    place = data.index(struct.pack("<HH", 322, 4))
    struct.pack_into("<I", data, place + 8, 2**30)
    fails(lambda: read(bytes(data)), ImageError, f"{2**30}x32 pixels")


@pytest.mark.parametrize("bits", [16, 12])
def test_strips_that_inflate_without_end_are_refused(monkeypatch, bits):
    """As tifffile reads them where imagecodecs is missing."""
    import tifffile

    bomb = zlib.compress(bytes(200_000_000))
    tags = [(256, 4, 8), (257, 4, 8), (258, 3, bits), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags += [(278, 4, 8), (273, 4, 8), (279, 4, len(bomb))]
    place = 8 + len(bomb) + len(bomb) % 2
    entries = b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags)
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    data = struct.pack("<2sHI", b"II", 42, place) + bomb + bytes(len(bomb) % 2) + directory
    monkeypatch.setattr(tiff, "CODECS", False)
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", None)
    fails(lambda: read(data), ImageError, "more than its samples")


def test_a_hundred_thousand_pages_are_refused(monkeypatch):
    monkeypatch.setattr(tiff, "MOST_COPIED", 2**30)
    count, page = 100_000, 6 + 12
    pages = b"".join(
        struct.pack("<HHHIIL", 1, 256, 4, 1, 1, 8 + (number + 1) * page) for number in range(count)
    )
    fails(lambda: read(b"II*\0\x08\0\0\0" + pages), ImageError, "pages", "`first_frame`")


# Texts that a pattern would look at again and again


def with_xmp(packet, extended=b""):
    picture = PIL.Image.fromarray(smooth((16, 16, 3)))
    data = pillow_bytes(picture, "JPEG")
    guid = b"0123456789ABCDEF0123456789ABCDEF"
    parts = [jpeg._XMP + packet]
    for start in range(0, len(extended), 60_000):
        head = guid + struct.pack(">II", len(extended), start)
        parts.append(jpeg._EXTENSION + head + extended[start : start + 60_000])
    added = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts)
    return data[:2] + added + data[2:]


NOTE = b' xmpNote:HasExtendedXMP="0123456789ABCDEF0123456789ABCDEF"'


@pytest.mark.parametrize(
    "long",
    [
        b" " * 2_000_000,
        b"<hdrgm:a " * 200_000,
        b"<Container:Directory>" * 100_000,
        b"<hdrgm:a>" * 200_000,
        b"\n\t" * 1_000_000 + b"hdrgm:a",
        b' xmlns:Item="" ' * 100_000,
        b" hdrgm:a='" * 200_000,
        b"<rdf:RDF " * 200_000,
    ],
    ids=lambda long: long[:12].decode(),
)
def test_long_packets_of_xmp_take_seconds(long):
    wrapped = b"<rdf:RDF>" + long + b"</rdf:RDF>"
    for extended in (wrapped, long):
        packet = b'<x:xmpmeta hdrgm:Version="1"><rdf:RDF' + NOTE + b"></rdf:RDF></x:xmpmeta>"
        started = time.perf_counter()
        read(with_xmp(packet, extended))
        assert time.perf_counter() - started < 10


def test_gifs_of_many_beginnings_of_xmp_take_seconds():
    gif = pillow_bytes(PIL.Image.new("L", (8, 8)), "GIF")
    assert read(gif + b"\x21\xff\x0bXMP DataXMP" * 500_000).xmp is None


def test_texts_with_long_numbers_are_written():
    from mambair_cli.images.io import Image, encode_image

    packet = b'<x tiff:ImageWidth="' + b"9" * 5_000 + b'" tiff:ImageLength="7"/>'
    image = Image(smooth((16, 16, 3)), xmp=packet)
    assert b'tiff:ImageLength="16"' in read(encode_image(image, "png")[0]).xmp


def test_thumbnails_that_overlap_take_seconds():
    count = 100_000
    block = exif_block()
    small = struct.pack("<H", 2)
    place = len(block) + 2 + 24 + 4
    small += struct.pack("<HHII", 273, 4, count, place)
    small += struct.pack("<HHII", 279, 4, count, place + 4 * count) + bytes(4)
    values = struct.pack("<I", 0) * count + struct.pack("<I", 800_000) * count
    order = "<" if block[:2] == b"II" else ">"
    assert order == "<"
    entries = struct.unpack_from("<H", block, 8)[0]
    linked = bytearray(block)
    struct.pack_into("<I", linked, 10 + 12 * entries, len(block))
    data = pillow_bytes(PIL.Image.new("L", (8, 8)), "PNG")
    image = read(data[:33] + chunk(b"eXIf", bytes(linked) + small + values) + data[33:])
    assert image.pixels.shape == (8, 8)


# What is no file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_devices_and_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for reader in (read_image, image_size):
        fails(lambda reader=reader: reader(tmp_path / "pipe.png"), ImageError, "pipe.png")
        fails(lambda reader=reader: reader(Path("/dev/zero")), ImageError, "/dev/zero")
    fails(lambda: read_image(Path("/dev/zero")), ImageError, "it is a device")


def test_the_length_of_files_is_bounded(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**43)
    fails(lambda: read_image(tmp_path / "sparse.png"), ImageError, "more than")
    (tmp_path / "a.png").write_bytes(bytes(100))
    fails(lambda: read_image(tmp_path / "a.png", max_bytes=99), ImageError, "more than 99 bytes")


def test_stdin_is_bounded_and_may_be_closed(tmp_path):
    data = pillow_bytes(PIL.Image.new("L", (8, 8)), "PNG")
    assert receive_image(io.TextIOWrapper(io.BytesIO(data))).pixels.shape == (8, 8)
    long = io.TextIOWrapper(io.BytesIO(data))
    fails(lambda: receive_image(long, max_bytes=9), ImageError, "stdin", "more than 9 bytes")
    closed = io.TextIOWrapper(io.BytesIO(data))
    closed.close()
    for stream in (None, closed):
        fails(lambda stream=stream: receive_image(stream), ImageError, "stdin: is closed")


def test_a_pam_of_many_channels_is_refused():
    data = b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 5\nMAXVAL 255\nENDHDR\n" + bytes(5)
    fails(lambda: read(data), ImageError, "5 channels", "1 to 4")


@pytest.mark.parametrize("block", [b"MM\0*\0\0\0\x08\0\1\1\x12\0\3", b"II", b"Exif\0\0II*\0"])
def test_damaged_exif_says_nothing_of_the_pixels(block):
    data = pillow_bytes(PIL.Image.fromarray(smooth((16, 16, 3))), "PNG")
    image = read(data[:33] + chunk(b"eXIf", block) + data[33:])
    np.testing.assert_array_equal(image.pixels, smooth((16, 16, 3)))
