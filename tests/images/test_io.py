import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pillow_heif
import pytest
from failing import fails
from pictures import (
    GRAY_PROFILE,
    RGB_PROFILE,
    TEXTS,
    WHITE,
    XMP,
    check_exif,
    exif_block,
    exif_facts,
    exif_tags,
    noise,
    pillow_bytes,
    png_bytes,
    smooth,
    tiff_bytes,
)
from PIL.PngImagePlugin import PngInfo

from mambair_cli.errors import CallError, ImageError
from mambair_cli.images.io import (
    OUTPUT_SUFFIXES,
    Image,
    check_writable,
    decode_image,
    encode_image,
    read_image,
    write_image,
)

SIZE = (24, 32)


CHANNELS = {"gray": 1, "gray alpha": 2, "rgb": 3, "rgba": 4, "palette": 3, "cmyk": 4}


HOLDS = {
    ".png": {"gray", "alpha", "gray alpha", "16", "icc", "exif", "xmp", "dpi", "text"},
    ".tiff": {
        "gray",
        "alpha",
        "gray alpha",
        "16",
        "float",
        "icc",
        "exif",
        "xmp",
        "dpi",
        "some text",
    },
    ".jpg": {"gray", "icc", "exif", "xmp", "dpi", "comment", "some text"},
    ".webp": {"alpha", "icc", "exif", "xmp", "dpi", "some text"},
    ".avif": {"gray", "alpha", "icc", "exif", "xmp", "dpi", "some text"},
    ".heic": {"gray", "alpha", "gray alpha", "10", "icc", "exif", "xmp", "dpi", "some text"},
    ".bmp": {"gray", "dpi"},
    ".ppm": {"gray", "16"},
}


if int(PIL.__version__.split(".")[0]) < 13:
    HOLDS[".avif"] -= {"gray"}


LOSSY = {".jpg", ".webp", ".avif", ".heic"}


FILES = [
    *((".png", "uint8", kind) for kind in ("gray", "gray alpha", "rgb", "rgba", "palette")),
    *((".png", "uint16", kind) for kind in ("gray", "gray alpha", "rgb", "rgba")),
    *((".tiff", dtype, kind) for dtype in WHITE for kind in ("gray", "gray alpha", "rgb", "rgba")),
    (".tiff", "uint8", "palette"),
    (".tiff", "uint8", "cmyk"),
    (".tiff", "uint16", "cmyk"),
    *((".jpg", "uint8", kind) for kind in ("gray", "rgb", "cmyk")),
    *((".webp", "uint8", kind) for kind in ("rgb", "rgba")),
    *((".avif", "uint8", kind) for kind in (*(HOLDS[".avif"] & {"gray"}), "rgb", "rgba")),
    *(
        (".heic", dtype, kind)
        for dtype in ("uint8", "uint16")
        for kind in ("gray", "gray alpha", "rgb", "rgba")
    ),
    *((".bmp", "uint8", kind) for kind in ("gray", "rgb", "palette")),
    *((".ppm", dtype, kind) for dtype in ("uint8", "uint16") for kind in ("gray", "rgb")),
]


def foreign_file(suffix, dtype, kind):
    """A file by another program, with all metadata that it can hold, and the samples in it (H x W x
    channels).
    """
    channels = CHANNELS[kind]
    samples = smooth(SIZE, dtype)[..., None] * np.ones(channels, dtype)
    if kind in {"rgb", "rgba", "cmyk"}:
        samples[..., :3] = smooth((*SIZE, 3), dtype)
    if kind in {"gray alpha", "rgba"}:
        samples[..., -1] = smooth(SIZE[::-1], dtype).T
    profile = GRAY_PROFILE if "gray" in kind else RGB_PROFILE
    # with one, Pillow would write an EXIF block of its own
    orientation = None if suffix == ".avif" else 1
    block = exif_block(orientation, order=">" if kind == "gray" else "<")
    mode = "CMYK" if kind == "cmyk" else {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    picture = PIL.Image.frombytes(mode, SIZE[::-1], samples.tobytes()) if dtype == "uint8" else None
    if kind == "palette":
        picture = picture.quantize(256, dither=PIL.Image.Dither.NONE)
        samples = np.asarray(picture.convert("RGB"))
    metadata = {"icc_profile": profile, "exif": b"Exif\0\0" + block, "xmp": XMP, "dpi": (300, 300)}
    if suffix == ".png":
        text = PngInfo()
        text.add_text("Title", TEXTS["Title"])
        text.add_itxt("Comment", TEXTS["Comment"], zip=True)
        text.add_text("Software", TEXTS["Software"], zip=True)
        text.add_itxt("XML:com.adobe.xmp", XMP)
        if picture:
            return pillow_bytes(picture, "PNG", pnginfo=text, **metadata), samples
        chunks = [(kind, body) for kind, body, *_ in text.chunks]
        chunks += [(b"iCCP", b"profile\0\0" + zlib.compress(profile)), (b"eXIf", block)]
        chunks += [(b"pHYs", struct.pack(">IIB", 11811, 11811, 1))]
        rows = samples.astype(">u2").reshape(SIZE[0], -1).view(np.uint8)
        return png_bytes(rows, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], *chunks), samples
    if suffix == ".tiff":
        tags = {f"_{tag}": value for tag, value in exif_tags().items()} | {
            "_700": XMP,
            "_34675": profile,
        }
        if kind == "palette":
            palette = np.array(picture.getpalette("RGB"), np.uint16).reshape(-1, 3)
            colours = np.zeros((256, 3), np.uint16)
            colours[: len(palette)] = palette * 257
            tags |= {"PHOTOMETRIC_INTERPRETATION": 3, "COLORMAP": tuple(colours.T.ravel().tolist())}
            return tiff_bytes(np.asarray(picture)[..., None], **tags), samples
        if kind == "cmyk":
            tags |= {"PHOTOMETRIC_INTERPRETATION": 5}
        elif channels in {2, 4}:
            tags |= {"EXTRASAMPLES": 2}
        return tiff_bytes(samples, **tags), samples
    if suffix == ".heic":
        file = io.BytesIO()
        mode += ";16" if dtype == "uint16" else ""
        del metadata["dpi"]
        pillow_heif.encode(mode, SIZE[::-1], samples.tobytes(), file, quality=95, **metadata)
        return file.getvalue(), samples
    if suffix == ".ppm":
        header = b"P%d %d %d %d\n" % (6 if channels == 3 else 5, *SIZE[::-1], WHITE[dtype])
        return header + samples.astype(samples.dtype.newbyteorder(">")).tobytes(), samples
    options = {
        ".jpg": {"quality": 95, "subsampling": 0, "comment": TEXTS["Comment"].encode()},
        ".webp": {"lossless": True, "exact": True},
        ".avif": {"quality": 95},
        ".bmp": {},
    }[suffix]
    format = {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())
    return pillow_bytes(picture, format, **metadata, **options), samples


def expected_image(suffix, dtype, kind, samples):
    """What reading a foreign_file must give."""
    has, pixels, alpha = HOLDS[suffix], samples, None
    if kind == "cmyk":
        inks = samples.astype(float) / WHITE[dtype]
        pixels = np.rint((1 - inks[..., :3]) * (1 - inks[..., 3:]) * 255).astype(np.uint8)
    elif kind in {"gray alpha", "rgba"}:
        pixels, alpha = samples[..., :-1], samples[..., -1]
    pixels = pixels[..., 0] if "gray" in kind else pixels
    text = TEXTS if "text" in has else {"Comment": TEXTS["Comment"]} if "comment" in has else {}
    notes = ["its samples of 16 bits are reduced to 8"] * (dtype == "uint16") + [
        "its CMYK colours become RGB"
    ]
    return Image(
        pixels,
        alpha,
        {"rgb": RGB_PROFILE, "gray": GRAY_PROFILE}["gray" if "gray" in kind else "rgb"]
        if "icc" in has
        else None,
        exif_block() if "exif" in has else None,
        XMP if "xmp" in has else None,
        (300, 300) if "dpi" in has else None,
        text,
        tuple(f"input: {note}" for note in notes) if kind == "cmyk" else (),
    )


def expected_copy(image, suffix):
    """What reading must give after image was written: the image, and a word of each note."""
    has, words = HOLDS[suffix], []
    pixels, alpha, text, exif = image.pixels, image.alpha, dict(image.text), image.exif
    if alpha is not None and "alpha" not in has:
        share = alpha / WHITE[alpha.dtype.name]
        share = share if pixels.ndim == 2 else share[..., None]
        pixels = pixels * share + WHITE[alpha.dtype.name] * (1 - share)
        alpha = None
        words.append("transparency")
    bits = 32 if "float" in has else 16 if "16" in has else 10 if "10" in has else 8
    dtype = image.pixels.dtype.name
    if {"uint8": 8, "uint16": 16, "float32": 32}[dtype] > bits:
        dtype = "uint8" if bits == 8 else "uint16"
        words.append(f"{bits} bits")
    scale = WHITE[dtype] / WHITE[image.pixels.dtype.name]
    pixels, alpha = pixels * scale, None if alpha is None else alpha * scale
    profile = image.icc_profile
    if pixels.ndim == 2 and ("gray" if alpha is None else "gray alpha") not in has:
        pixels, profile = np.dstack([pixels] * 3), None
        words.append("no gray")
    fields = {"icc": profile, "exif": exif, "xmp": image.xmp, "dpi": image.dpi}
    lost = profile is not image.icc_profile or any(
        value and what not in has for what, value in fields.items()
    )
    if "text" not in has:
        text = {key: value for key, value in text.items() if key == "Comment" and "comment" in has}
        lost |= bool(
            image.text.keys() - text.keys() - ({"Software"} if "some text" in has else set())
        )
    if "exif" in has and image.dpi and suffix not in {".png", ".jpg"}:
        exif = exif or b"of the resolution"
    return (
        Image(
            pixels.astype("float32"),
            None if alpha is None else alpha.astype("float32"),
            profile if "icc" in has else None,
            exif if "exif" in has else None,
            image.xmp if "xmp" in has else None,
            image.dpi if "dpi" in has else None,
            text,
        ),
        [*words, *(["place"] if lost else [])],
        dtype,
    )


def check(image, expected, dtype, tolerance):
    """tolerance: of a sample, as a share of white."""
    assert image.pixels.dtype == dtype
    assert image.pixels.flags.c_contiguous
    assert image.pixels.shape == expected.pixels.shape
    for seen, wanted in ((image.pixels, expected.pixels), (image.alpha, expected.alpha)):
        assert (seen is None) == (wanted is None)
        if seen is not None:
            assert np.abs(seen.astype(float) - wanted).max() <= tolerance * WHITE[dtype]
    assert image.icc_profile == expected.icc_profile
    assert image.xmp == expected.xmp
    assert image.dpi == (expected.dpi and pytest.approx(expected.dpi, rel=1e-4))
    assert image.text == expected.text
    assert (image.exif is None) == (expected.exif is None)


@pytest.mark.parametrize(("suffix", "dtype", "kind"), FILES, ids=str)
def test_nothing_is_lost(suffix, dtype, kind):
    data, samples = foreign_file(suffix, dtype, kind)
    image = decode_image(data, "input")
    read_as = "uint8" if kind == "cmyk" else dtype
    tolerance = (
        {"uint16": 0.015, "uint8": 0.03}[dtype]
        if suffix in LOSSY - {".webp"} or kind == "cmyk"
        else 0
    )
    expected = expected_image(suffix, dtype, kind, samples)
    check(image, expected, read_as, tolerance)
    assert image.notes == expected.notes
    if image.exif:
        check_exif(image.exif)
    for output in HOLDS:
        written, notes = encode_image(image, output[1:])
        back = decode_image(written, "output")
        wanted, words, dtype = expected_copy(image, output)
        rounding = 0.51 / WHITE[dtype] if words and dtype != "float32" else 0
        check(back, wanted, dtype, 0.05 if output in LOSSY else rounding)
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes, strict=True)), notes
        assert back.notes == ()
        if back.exif:
            if image.exif:
                check_exif(back.exif)
            if "Software" in image.text and output != ".png":
                assert exif_facts(back.exif)["main"][305] == "GIMP"


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "replaced"])
@pytest.mark.parametrize("place", ["open", "replace", "encode", "interrupt"])
def test_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, existing, place):
    path = tmp_path / "out.png"
    if existing:
        path.write_bytes(existing)

    def refuse(*arguments, **options):
        raise KeyboardInterrupt if place == "interrupt" else OSError(28, "No space left on device")

    class FullDisk(io.FileIO):
        write = refuse

    if place == "open":
        monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    elif place == "encode":
        monkeypatch.setattr(PIL.Image.Image, "save", refuse)
    else:
        monkeypatch.setattr(Path, "replace", refuse)
    if place == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            write_image(path, Image(noise((4, 4))))
    else:
        fails(
            lambda: write_image(path, Image(noise((4, 4)))), ImageError, "out.png", "No space left"
        )
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == (["out.png"] if existing else [])
    if existing:
        assert path.read_bytes() == existing


def test_permissions(tmp_path):
    path = tmp_path / "out.png"
    previous = os.umask(0o027)
    try:
        write_image(path, Image(noise((4, 4))))
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o606)
        write_image(path, Image(noise((5, 5))))
    finally:
        os.umask(previous)
    assert path.stat().st_mode & 0o777 == 0o606
    assert read_image(path).pixels.shape == (5, 5)


def test_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable(Path("out.png"))
    write_image(Path("out.png"), Image(noise((4, 4))))
    np.testing.assert_array_equal(read_image(Path("out.png")).pixels, noise((4, 4)))


@pytest.mark.parametrize("dangling", [False, True])
def test_link_is_written_through(tmp_path, dangling):
    target, link = tmp_path / "there" / "target.png", tmp_path / "link.png"
    target.parent.mkdir()
    if not dangling:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write_image(link, Image(noise((4, 4))))
    assert link.is_symlink()
    np.testing.assert_array_equal(read_image(target).pixels, noise((4, 4)))


def test_check_writable(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "old.png").write_bytes(b"old")
    for name, error, words in (
        ("out.xyz", CallError, [".xyz", *OUTPUT_SUFFIXES]),
        ("out", CallError, ["''", ".png"]),
        ("folder.png", CallError, ["folder.png", "is a folder"]),
        ("none/out.png", CallError, ["none", "no folder"]),
        ("file/out.png", CallError, ["no folder"]),
        ("null.png", CallError, ["regular"]),
        ("loop.png", ImageError, ["loop.png"]),
        ("x" * 300 + ".png", ImageError, ["File name too long"]),
    ):
        if name == "loop.png":
            # from Python 3.13 on, a loop is replaced like a dangling link
            with contextlib.suppress(ImageError):
                check_writable(tmp_path / name)
            continue
        fails(lambda name=name: check_writable(tmp_path / name), error, *words)
        fails(lambda name=name: write_image(tmp_path / name, Image(noise((4, 4)))), error, *words)
    before = sorted((entry.name, entry.lstat().st_mtime_ns) for entry in tmp_path.iterdir())
    check_writable(tmp_path / "new.PNG")
    check_writable(tmp_path / "old.png")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "old.png")
    fails(lambda: check_writable(tmp_path / "old.png"), ImageError, "write-protected")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails(lambda: check_writable(tmp_path / "new.png"), ImageError, "permission", str(tmp_path))
    assert sorted((entry.name, entry.lstat().st_mtime_ns) for entry in tmp_path.iterdir()) == before


def test_size_limits_of_formats(tmp_path):
    for suffix, limit in ((".webp", 16383), (".jpg", 65500), (".avif", 32768), (".heic", 16384)):
        path = tmp_path / f"out{suffix}"
        write_image(path, Image(np.zeros((32, limit), np.uint8)))
        assert read_image(path).pixels.shape[:2] == (32, limit)
        check_writable(path, (1, limit))
        fails(
            lambda path=path, limit=limit: check_writable(path, (limit + 1, 1)),
            CallError,
            str(limit),
        )
        large = Image(np.zeros((1, limit + 1), np.uint8))
        fails(lambda path=path, large=large: write_image(path, large), CallError, str(limit))
