import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile
from encoded_photos import PHOTOS
from failing import fails
from pictures import (
    WHITE,
    noise,
    pillow_bytes,
    smooth,
    tiff_bytes,
)

from mambair_cli.errors import CallError, ImageError, MemoryLimitError
from mambair_cli.images import io as image_io
from mambair_cli.images.io import Image, decode_image, read_image, write_image

DATA = Path(__file__).parents[1] / "data"


def read(data, **options):
    return decode_image(data, "input", **options)


def test_photographs_for_the_documentation_are_plain_rgb():
    for name, size in (
        ("photo", (144, 192, 3)),
        ("osprey", (128, 96, 3)),
        ("dragonfly", (120, 160, 3)),
    ):
        image = read_image(DATA / f"{name}.png")
        assert image.pixels.shape == size
        assert image.pixels.dtype == np.uint8
        assert image.alpha is None
        assert (DATA / f"{name}.png").stat().st_size < 60_000


SCENE = PIL.Image.fromarray(smooth((6, 9, 3)))


GRAY = SCENE.convert("L")


def test_samples_that_are_reduced_are_said():
    # red
    inks = np.full((4, 5, 4), [0, 65535, 65535, 0], np.uint16)
    image = read(tiff_bytes(inks, PHOTOMETRIC_INTERPRETATION=5))
    np.testing.assert_array_equal(image.pixels, np.full((4, 5, 3), [255, 0, 0]))
    assert image.notes == (
        "input: its samples of 16 bits are reduced to 8",
        "input: its CMYK colours become RGB",
    )
    deep = noise((32, 32, 3), "uint16")
    for suffix, options in ((".jp2", []), (".avif", [cv2.IMWRITE_AVIF_DEPTH, 10])):
        # as in older versions of OpenCV
        if not cv2.haveImageWriter("a" + suffix):
            continue
        image = read(cv2.imencode(suffix, deep // (64 if options else 1), options)[1].tobytes())
        assert image.notes == (
            f"input: its samples of {10 if options else 16} bits are reduced to 8",
        )


@pytest.mark.parametrize(
    "format", ["PNG", "WEBP", "TIFF", "GIF", "AVIF", "MPO", "TIFF deep", "HEIF"]
)
def test_first_frame_of_several_is_read_and_that_is_said(format):
    frames = [PIL.Image.new("RGB", (32, 24), (value, value, value)) for value in (40, 128, 255)]
    if format == "TIFF deep":
        data = io.BytesIO()
        tifffile.imwrite(
            data,
            np.stack([np.full((24, 32, 3), v * 257, np.uint16) for v in (40, 255)]),
            photometric="rgb",
        )
        data = data.getvalue()
    else:
        data = pillow_bytes(frames[0], format, save_all=True, append_images=frames[1:])
    image = read(data, first_frame=True)
    assert image.frames is None
    assert np.abs(image.pixels / WHITE[image.pixels.dtype.name] * 255 - 40).max() <= 3
    assert image.notes == ("input: holds several frames or pages: only the first is read",)


@pytest.mark.parametrize("orientation", [*range(10), 65535])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF deep"])
def test_orientation(format, orientation):
    # The first row and column of the stored pixels lie, on the seen image, where the EXIF standard
    # says.
    seen = smooth((16, 24, 3))
    stored = {
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen, 1),
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(seen, -1),
    }.get(orientation, seen)
    stored = np.ascontiguousarray(stored)
    alpha = np.ascontiguousarray(stored[..., 0])
    has_alpha = format not in {"JPEG", "TIFF"}
    if format == "TIFF deep":
        samples = np.dstack([stored, alpha]).astype(np.uint16) * 257
        image = read(tiff_bytes(samples, EXTRASAMPLES=2, _274=orientation))
        seen = seen.astype(np.uint16) * 257
    else:
        exif = PIL.Image.Exif()
        exif[274] = orientation
        options = {
            "PNG": {},
            "JPEG": {"quality": 100},
            "WEBP": {"lossless": True, "exact": True},
            "TIFF": {},
        }
        picture = PIL.Image.fromarray(np.dstack([stored, alpha]) if has_alpha else stored)
        image = read(pillow_bytes(picture, format, exif=exif, **options[format]))
    assert image.pixels.shape == seen.shape
    np.testing.assert_allclose(image.pixels, seen, atol=4 if format == "JPEG" else 0)
    if has_alpha:
        np.testing.assert_array_equal(image.alpha, seen[..., 0])


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"II*\0", ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"P6 0 0 255\n", ""),
    ],
)
def test_no_image(data, word):
    fails(lambda: read(data), ImageError, "input", word)


def test_missing_input_and_folder(tmp_path):
    fails(lambda: read_image(tmp_path / "none.png"), CallError, "none.png", "no such file")
    fails(lambda: read_image(tmp_path), CallError, str(tmp_path), "folder")
    (tmp_path / "file").touch()
    fails(lambda: read_image(tmp_path / "file" / "x.png"), CallError, "x.png", "no such file")


@pytest.mark.parametrize(
    ("raised", "error", "word"),
    [
        (PermissionError(13, "Permission denied"), ImageError, "Permission denied"),
        (OSError(5, "a\nb"), ImageError, "a b"),
    ],
)
def test_input_that_cannot_be_read(monkeypatch, raised, error, word):
    def refuse(path, limit):
        raise raised

    monkeypatch.setattr(image_io, "read_file", refuse)
    fails(lambda: read_image(DATA / "photo.png"), error, "photo.png", word)


def test_too_little_memory(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(PIL.Image, "open", refuse)
    fails(lambda: read_image(DATA / "photo.png"), MemoryLimitError, "photo.png")
    monkeypatch.setattr(zlib, "compress", refuse)
    fails(lambda: write_image(tmp_path / "x.tif", Image(noise((2, 2)))), MemoryLimitError, "x.tif")


def test_pixel_limit(monkeypatch):
    # more than Pillow accepts: 900 megapixels
    width = 30_000
    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    )
    fails(lambda: read(bomb), ImageError, "30000x30000", str(image_io.MAX_PIXELS), "max_pixels")
    samples = noise((6, 9, 3), "uint16")
    for data in (pillow_bytes(SCENE, "PNG"), tiff_bytes(samples)):
        fails(lambda data=data: read(data, max_pixels=53), ImageError, "9x6", "53")
        assert read(data, max_pixels=54).pixels.shape == (6, 9, 3)
    # Pillow's own limit does not count, and is left as it was.
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert read(pillow_bytes(SCENE, "PNG")).pixels.shape == (6, 9, 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("name", PHOTOS)
def test_truncated_files_are_errors_or_have_all_pixels(name, capfd):
    data = PHOTOS[name]
    whole = read(data)
    assert whole.pixels.shape[:2] == (32, 24)
    for part in (0.01, 0.1, 0.3, 0.5, 0.8, 0.95):
        cut = data[: max(1, int(len(data) * part))]
        try:
            image = read(cut)
        except ImageError:
            continue
        # of what is missing, which is neither pixels nor alpha
        assert image.notes
        np.testing.assert_array_equal(image.pixels, whole.pixels)
    # OpenCV 4 prints
    if name != "tiff16" or cv2.__version__ >= "5":
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["png", "png16"])
def test_checksums_of_png_count(name):
    data = bytearray(PHOTOS[name])
    for place in (len(data) // 3, len(data) // 2, len(data) - 20):
        data[place] ^= 1
        fails(lambda data=bytes(data): read(data), ImageError, "input")
        data[place] ^= 1
    assert read(bytes(data)).pixels.shape == (32, 24, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.long)])
def test_mutated_files(count):
    """They give an image or a MambairError, within 10 seconds and 2 GB."""
    script = Path(__file__).parents[1] / "fuzz_images.py"
    run = subprocess.run(
        [sys.executable, script, str(count)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-200:] + run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["name"] for row in rows] == list(PHOTOS)
    assert max(row["slowest"] for row in rows) < 10
    assert max(row["peak"] for row in rows) < 2 * 2**30
    assert min(sum(row.get(word, 0) for row in rows) for word in ("read", "ImageError")) > 5 * len(
        rows
    )


def test_what_an_icon_loses_is_said():
    picture = PIL.Image.fromarray(noise((64, 64, 3)))
    sizes = {"sizes": [(16, 16), (64, 64)]}
    image = decode_image(pillow_bytes(picture, "ICO", **sizes), "input")
    assert image.pixels.shape == (64, 64, 3)
    assert image.notes == ("input: holds several sizes: only the largest is read",)
    data = pillow_bytes(picture, "ICO", sizes=[(64, 64)])
    assert decode_image(data, "").notes == ()
    # the profile lies in the PNG file within
    note = "its colour profile is left out"
    assert note in decode_image(data + b"iCCP", "").notes[0]


def test_a_whole_file_of_an_unknown_kind_is_not_called_damaged():
    data = bytearray(pillow_bytes(PIL.Image.fromarray(noise((4, 4, 3))), "BMP"))
    # bits a pixel
    data[28] = 2
    fails(lambda: decode_image(bytes(data), "input"), ImageError, "of a kind that cannot be read")
