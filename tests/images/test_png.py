import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from failing import fails
from pictures import (
    RGB_PROFILE,
    TEXTS,
    WHITE,
    XMP,
    exif_block,
    exif_facts,
    noise,
    pillow_bytes,
    png_bytes,
    smooth,
)

from mambair_cli.errors import ImageError
from mambair_cli.images import pillow, png
from mambair_cli.images.io import (
    Image,
    decode_image,
    encode_image,
)

SCENE = PIL.Image.fromarray(smooth((6, 9, 3)))


def read(data, **options):
    return decode_image(data, "input", **options)


@pytest.mark.parametrize(
    ("bits", "row", "key", "pixels"),
    [
        (1, [0b01101100], 1, [0, 255, 255, 0, 255, 255, 0, 0]),
        (1, [0b01101100], 0, [0, 255, 255, 0, 255, 255, 0, 0]),
        (2, [0b00011011], 1, [0, 85, 170, 255]),
        (4, [0x1F, 0xA1], 0xA, [17, 255, 170, 17]),
        (8, [3, 4, 5], 4, [3, 4, 5]),
        (16, [1, 0, 1, 1, 1, 0], 257, [256, 257, 256]),
    ],
)
def test_gray_png_with_a_transparent_value(bits, row, key, pixels):
    image = read(png_bytes(np.array([row], np.uint8), bits, 0, (b"tRNS", struct.pack(">H", key))))
    assert image.pixels.tolist() == [pixels]
    white = 65535 if bits == 16 else 255
    hidden = key if bits == 16 else key * 255 // (2**bits - 1)
    assert image.alpha.tolist() == [[0 if pixel == hidden else white for pixel in pixels]]
    assert image.alpha.dtype == image.pixels.dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rgb_png_with_a_transparent_colour(dtype):
    samples = noise((4, 5, 3), dtype)
    key = tuple(int(value) for value in samples[2, 3])
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(4, -1).view(np.uint8)
    image = read(png_bytes(rows, samples.itemsize * 8, 2, (b"tRNS", struct.pack(">3H", *key))))
    expected = np.full((4, 5), WHITE[dtype])
    expected[2, 3] = 0
    np.testing.assert_array_equal(image.pixels, samples)
    np.testing.assert_array_equal(image.alpha, expected)


def test_exif_as_imagemagick_writes_it_into_png():
    block = exif_block(orientation=6)
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text(
        "Raw profile type exif",
        "\n".join(["", "exif", str(len(block) + 6), (b"Exif\0\0" + block).hex()]),
    )
    image = read(pillow_bytes(SCENE, "PNG", pnginfo=text))
    assert image.pixels.shape == (9, 6, 3)
    assert exif_facts(image.exif) == exif_facts(exif_block(thumbnail=False))
    assert image.text == {}


def test_long_texts_and_profiles_of_png(monkeypatch):
    text = PIL.PngImagePlugin.PngInfo()
    # Pillow alone ends at a megabyte
    text.add_text("Comment", "long " * 400_000, zip=True)
    data = pillow_bytes(SCENE, "PNG", pnginfo=text, icc_profile=RGB_PROFILE + bytes(3_000_000))
    image = read(data)
    assert len(image.text["Comment"]) == 2_000_000
    assert len(image.icc_profile) == len(RGB_PROFILE) + 3_000_000
    monkeypatch.setattr(pillow, "MAX_TEXT", 1_000_000)
    fails(lambda: read(data), ImageError, "large")


@pytest.mark.parametrize("bits", [8, 16])
def test_png_of_whole_chunks_with_too_few_samples(bits, monkeypatch):
    compress = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda rows: compress(rows)[:-2000])
    data = png_bytes(noise((32, 24 * 3 * bits // 8)), bits, 2)
    fails(lambda: read(data), ImageError, "input")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_png_satisfies_pillow(channels):
    pixels = noise((150, 11, 3) if channels > 2 else (150, 11), "uint16")
    alpha = noise((150, 11), "uint16") if channels in {2, 4} else None
    data, _ = encode_image(
        Image(pixels, alpha, RGB_PROFILE, exif_block(), XMP, (300, 200), TEXTS), "png"
    )
    with PIL.Image.open(io.BytesIO(data)) as file:
        assert file.info["icc_profile"] == RGB_PROFILE
        assert file.info["dpi"] == pytest.approx((300, 200), rel=1e-4)
        assert file.text == TEXTS | {"XML:com.adobe.xmp": XMP.decode()}
        assert exif_facts(file.info["exif"]) == exif_facts(exif_block())
    with PIL.Image.open(io.BytesIO(data)) as file:
        file.verify()


# The kinds of PngSuite: colour types, depths, interlace, gamma, order and number of chunks

ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
KINDS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)),
    *((2, bits) for bits in (8, 16)),
    *((3, bits) for bits in (1, 2, 4, 8)),
    *((colour_type, bits) for colour_type in (4, 6) for bits in (8, 16)),
]
PALETTE = noise((256, 3), seed=5)


def packed(samples, bits):
    """The rows of samples, H x W x C, each behind filter 0."""
    height = len(samples)
    if bits == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        places = samples.reshape(height, -1, 1) >> np.arange(bits)[::-1] & 1
        rows = np.packbits(places.reshape(height, -1).astype(np.uint8), axis=1)
    return np.pad(rows, ((0, 0), (1, 0))).tobytes()


def kind_of_png(samples, colour_type, bits, interlaced, *extra, pieces=1):
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    if interlaced:
        passes = [samples[top::down, left::across] for top, left, down, across in ADAM7]
        stored = b"".join(packed(part, bits) for part in passes if part.size)
    else:
        stored = packed(samples, bits)
    stored = zlib.compress(stored)
    step = -(-len(stored) // pieces)
    parts = [(b"IDAT", stored[start : start + step]) for start in range(0, len(stored), step)]
    palette = [(b"PLTE", PALETTE[: 2**bits].tobytes())] if colour_type == 3 else []
    chunks = [(b"IHDR", header), *extra, *palette, *parts, (b"IEND", b"")]
    return png.SIGNATURE + b"".join(png.chunk(kind, body) for kind, body in chunks)


@pytest.mark.parametrize("pieces", [1, 2, 99])
@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("size", [(32, 32), (1, 1), (9, 3), (3, 40)], ids=str)
@pytest.mark.parametrize(("colour_type", "bits"), KINDS)
def test_kinds_of_png(colour_type, bits, size, interlaced, pieces):
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    samples = np.random.default_rng(bits).integers(0, 2**bits, (*size, channels))
    image = read(kind_of_png(samples, colour_type, bits, interlaced, pieces=pieces))
    scale = 65535 if bits == 16 else 255
    seen = PALETTE[samples[..., 0]] if colour_type == 3 else samples * scale // (2**bits - 1)
    colours = seen[..., :-1] if colour_type in {4, 6} else seen
    np.testing.assert_array_equal(
        image.pixels, colours if colours.shape[2] == 3 else colours[..., 0]
    )
    if colour_type in {4, 6}:
        np.testing.assert_array_equal(image.alpha, seen[..., -1])
    else:
        assert image.alpha is None
    back = read(encode_image(image, "png")[0])
    np.testing.assert_array_equal(back.pixels, image.pixels)
    assert image.notes == ()


@pytest.mark.parametrize("gamma", [0.35, 0.45, 0.55, 0.7, 1.0, 2.5])
@pytest.mark.parametrize(("colour_type", "bits"), [(0, 16), (2, 8), (2, 16), (3, 4), (3, 8)])
def test_gamma_of_every_kind_is_written_back(colour_type, bits, gamma):
    channels = 3 if colour_type == 2 else 1
    samples = np.random.default_rng(0).integers(0, 2**bits, (8, 8, channels))
    chunk = (b"gAMA", struct.pack(">I", round(gamma * 100000)))
    image = read(kind_of_png(samples, colour_type, bits, 0, chunk))
    written = dict(png.chunks_of(encode_image(image, "png")[0]))
    assert written[b"gAMA"] == chunk[1]


def test_chunks_that_nobody_knows_are_passed_over():
    samples = noise((8, 8, 3))
    extra = [(b"prIv", b"something"), (b"bKGD", bytes(6)), (b"hIST", b""), (b"tIME", bytes(7))]
    image = read(kind_of_png(samples, 2, 8, 0, *extra))
    np.testing.assert_array_equal(image.pixels, samples)


@pytest.mark.parametrize("name", ["iptc", "8bim"])
def test_iptc_is_kept_and_found_where_others_write_it(name):
    iptc = b"\x1c\x02\x78\0\x07Caption"
    pixels = noise((4, 6, 3))
    data, notes = encode_image(Image(pixels, iptc=iptc), "png")
    assert notes == []
    back = decode_image(data, "")
    assert (back.iptc, back.text) == (iptc, {})
    text = f"Raw profile type {name}\0\n{name}\n      12\n{iptc.hex()}\n".encode()
    other = png_bytes(pixels.reshape(4, 18), 8, 2, (b"tEXt", text))
    assert decode_image(other, "").iptc == iptc


@pytest.mark.parametrize("name", ["xmp", "APP1"])
def test_xmp_is_found_where_imagemagick_writes_it(name):
    stored = (b"http://ns.adobe.com/xap/1.0/\0" if name == "APP1" else b"") + XMP
    text = f"Raw profile type {name}\0\n{name}\n      99\n{stored.hex()}\n".encode()
    image = decode_image(png_bytes(noise((4, 18)), 8, 2, (b"tEXt", text)), "")
    assert (image.xmp, image.text) == (XMP, {})


def test_hdr_that_is_lost_is_said():
    chunks = [(b"cICP", bytes([9, 16, 0, 0])), (b"cLLI", bytes(8))]
    image = decode_image(png_bytes(noise((4, 18)), 8, 2, *chunks), "")
    assert [note.split("(")[1].split(")")[0] for note in image.notes] == ["cICP", "mDCV, cLLI"]


def test_numbers_that_say_nothing():
    image = decode_image(png_bytes(noise((4, 18)), 8, 2, (b"cICP", bytes([2, 2, 0, 1]))), "")
    assert image.colour is None
    image = decode_image(png_bytes(noise((4, 18)), 8, 2, (b"cICP", bytes([2, 16, 0, 1]))), "")
    assert image.colour.cicp == (1, 16)
