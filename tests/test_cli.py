import contextlib
import errno
import io
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import mambair_cli
from mambair_cli import bench, cli, doctor, engine, image_io
from mambair_cli import train as training
from mambair_cli.engine import Restorer
from mambair_cli.image_io import OUTPUT_SUFFIXES, Image, read_image, write_image
from mambair_cli.registry import MODELS
from mambair_cli.weights import bundled_folder

DATA = Path(__file__).parent / "data"
PHOTO = read_image(DATA / "photo.png").pixels[60:78, 80:104]  # 24 x 18
TAIL = r"(\w+) on cpu, \d+\.\d s\n"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program in this process, with no GPU to be seen: exit code, stdout, stderr."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mambair", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with photo.png of 24 x 18 pixels in it."""
    monkeypatch.chdir(tmp_path)
    write_image(Path("photo.png"), Image(PHOTO))
    return tmp_path


def program(*arguments, **environment):
    """What starts the real program: the command line, and the environment."""
    root = str(Path(mambair_cli.__file__).parent.parent)
    return {
        "args": [sys.executable, "-m", "mambair_cli", *map(os.fspath, arguments)],
        "env": {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": "", **environment},
    }


def run(*arguments, **environment):
    """Run the real program, its streams piped: exit code, stdout, stderr."""
    done = subprocess.run(**program(*arguments, **environment), capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def contents(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def plain(text):
    """Text without colours, and without the line breaks and frames of a table."""
    return " ".join(re.sub(r"\x1b\[[\d;?]*\w|[│╭╮╰╯─]", "", text).split())


def fails(result, code, *words):
    """The result is one line on stderr that has all words, nothing else, and the exit code."""
    found, out, err = result
    assert re.fullmatch(r"mambair: [^\n]+\n", err), err
    assert "Traceback" not in err
    for word in words:
        assert word in err, err
    assert out == ""
    assert found == code


def works(result):
    """The result has exit code 0 and nothing on stderr; its stdout."""
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def upscale(call, *arguments):
    """Run `upscale ... --json` and return its facts."""
    out = works(call("upscale", *arguments, "--json"))
    assert re.fullmatch(r"{[^\n]*}\n", out)
    return json.loads(out)


# A photo in, a better photo out


@pytest.mark.parametrize(("scale", "model"), [(2, "tiny-x2"), (3, "tiny-x4"), (4, "tiny-x4")])
def test_scale(call, folder, scale, model):
    out = works(call("upscale", "photo.png", "-s", scale, "-o", "out.png"))
    sizes = f"24x18 -> {24 * scale}x{18 * scale}"
    assert re.fullmatch(f"out.png: {sizes}, {model}, {TAIL}", out)
    with PIL.Image.open("out.png") as file:
        assert file.size == (24 * scale, 18 * scale)
    assert sorted(path.name for path in folder.iterdir()) == ["out.png", "photo.png"]


def test_the_result_is_that_of_the_model(call, folder):
    works(call("upscale", "photo.png", "-s", 2, "-o", "out.png"))
    restored = mambair_cli.load_restorer("tiny-x2", device="cpu").restore(PHOTO)
    np.testing.assert_array_equal(read_image(Path("out.png")).pixels, restored)


def jpeg(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0, **options)
    return file.getvalue()


def rotated():
    exif = PIL.Image.Exif()
    exif[274] = 6  # the picture lies on its left side
    return jpeg(PIL.Image.fromarray(np.rot90(PHOTO).copy()), exif=exif)


GRAY = PHOTO[..., 1]
ALPHA = np.linspace(0, 255, 24 * 18).reshape(18, 24).astype(np.uint8)
DEEP = PHOTO.astype(np.uint16) * 257 + np.arange(24, dtype=np.uint16)[:, None]
BGRA16 = np.dstack([DEEP[..., ::-1], ALPHA.astype(np.uint16) * 257])
LINE, ROTATE = PIL.Image.fromarray(PHOTO).resize((3, 5000)), PIL.Image.Transpose.ROTATE_90
PALETTE = PIL.Image.fromarray(PHOTO).quantize(64)
KINDS = {  # a file; depth and colour type of the PNG that it becomes; pixels that it shows, alpha
    "8-bit.png": (cv2.imencode(".png", PHOTO[..., ::-1])[1].tobytes(), (8, 2), PHOTO, None),
    "16-bit.png": (cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes(), (16, 2), DEEP, None),
    "gray.png": (PIL.Image.fromarray(GRAY), (8, 0), GRAY, None),
    "gray 16-bit.png": (cv2.imencode(".png", DEEP[..., 0])[1].tobytes(), (16, 0), DEEP[..., 0], None),
    "gray+alpha.png": (
        PIL.Image.merge("LA", [*map(PIL.Image.fromarray, (GRAY, ALPHA))]),
        (8, 4),
        GRAY,
        ALPHA,
    ),
    "rgba.png": (PIL.Image.fromarray(np.dstack([PHOTO, ALPHA])), (8, 6), PHOTO, ALPHA),
    "rgba 16-bit.png": (cv2.imencode(".png", BGRA16)[1].tobytes(), (16, 6), DEEP, BGRA16[..., 3]),
    "palette.png": (PALETTE, (8, 2), np.asarray(PALETTE.convert("RGB")), None),
    "cmyk.jpg": (jpeg(PIL.Image.fromarray(PHOTO).convert("CMYK")), (8, 2), PHOTO, None),
    "rotated.jpg": (rotated(), (8, 2), PHOTO, None),
    "one.png": (PIL.Image.fromarray(PHOTO[:1, :1]), (8, 2), PHOTO[:1, :1], None),
    "3x5000.png": (LINE, (8, 2), np.asarray(LINE), None),
    "5000x3.png": (LINE.transpose(ROTATE), (8, 2), np.asarray(LINE.transpose(ROTATE)), None),
}


def shrunk(samples, like):
    """Means over the pixels that each pixel of `like` became, in 0..1."""
    small = cv2.resize(samples.astype(np.float64), like.shape[1::-1], interpolation=cv2.INTER_AREA)
    return small / (65535 if like.dtype == np.uint16 else 255)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_images(call, folder, name):
    data, (depth, colour_type), pixels, alpha = KINDS[name]
    if isinstance(data, bytes):
        Path(name).write_bytes(data)
    else:
        data.save(name)
    before = contents(folder)
    height, width = pixels.shape[:2]
    facts = upscale(call, name, "-s", 2, "-o", "out.png")
    assert (facts["size_in"], facts["size_out"]) == ([width, height], [2 * width, 2 * height])
    header = struct.unpack(">IIBB", Path("out.png").read_bytes()[16:26])
    assert header == (2 * width, 2 * height, depth, colour_type)
    result = cv2.imread("out.png", cv2.IMREAD_UNCHANGED)
    if result.ndim == 3:
        shown = result[..., 0] if pixels.ndim == 2 else result[..., 2::-1]
        if alpha is not None:
            error = np.abs(shrunk(result[..., 3], alpha) - shrunk(alpha, alpha))
            assert error.max() < 0.02
    else:
        shown = result
    full = 65535 if depth == 16 else 255
    error = np.abs(shrunk(shown, pixels) - pixels / full)
    assert error.mean() < (0.02 if min(height, width) > 3 else 0.15)  # where most is border, nets err
    if depth == 16:  # its lower bits are alive
        assert len(np.unique(result % 257)) > 100
    assert {name: body for name, body in contents(folder).items() if "out.png" not in name} == before


@pytest.mark.parametrize(
    ("name", "arguments", "output", "scale"),
    [
        ("photo.png", [], "photo_x4.png", 4),
        ("photo.png", ["-s", 3], "photo_x3.png", 3),
        ("photo.png", ["-m", "tiny-x2"], "photo_x2.png", 2),
        ("photo.png", ["-m", "tiny-x4", "-s", 2], "photo_x2.png", 2),
        ("a.b.JPG", ["-s", 2], "a.b_x2.JPG", 2),
        ("still.gif", ["-s", 2], "still_x2.png", 2),
        ("deeper/photo.png", ["-s", 2], "deeper/photo_x2.png", 2),
        ("deeper/photo.png", ["-m", "tiny-x2"], "deeper/photo_x2.png", 2),
    ],
)
def test_default_output(call, folder, name, arguments, output, scale):
    Path("deeper").mkdir()
    PIL.Image.fromarray(PHOTO).save(name)
    before = contents(folder)
    facts = upscale(call, name, *arguments)
    assert (facts["output"], facts["scale"]) == (output, scale)
    assert facts["size_out"] == [24 * scale, 18 * scale]
    assert contents(folder).keys() - before.keys() == {str(folder / output)}
    assert read_image(Path(output)).pixels.shape == (18 * scale, 24 * scale, 3)


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
def test_formats(call, folder, suffix):
    upscale(call, "photo.png", "-s", 2, "-o", f"out{suffix}")
    assert read_image(Path(f"out{suffix}")).pixels.shape == (36, 48, 3)


def test_what_a_format_cannot_hold_is_said(call, folder):
    write_image(Path("deep.png"), Image(DEEP, BGRA16[..., 3].copy()))
    code, out, err = call("upscale", "deep.png", "-s", 2, "-o", "out.jpg", "--json")
    assert code == 0
    assert json.loads(out)["output"] == "out.jpg"
    assert re.fullmatch(r"(mambair: out\.jpg: [^\n]+\n){2}", err)
    assert "transparency" in err
    assert "uint16" in err


def test_what_was_not_read_is_said(call, folder):
    frame = PIL.Image.fromarray(PHOTO)
    frame.save("moving.gif", save_all=True, append_images=[frame.rotate(180)])
    code, out, err = call("upscale", "moving.gif", "-s", 2, "-o", "out.png", "--json")
    assert (code, json.loads(out)["size_out"]) == (0, [48, 36])
    assert re.fullmatch(r"mambair: moving\.gif: [^\n]+first[^\n]+\n", err)


def test_model_by_name_and_by_file(call, folder):
    state = load_file(bundled_folder() / "tiny-x2.safetensors")
    Path("my net.safetensors").write_bytes((bundled_folder() / "tiny-x2.safetensors").read_bytes())
    torch.save({"params": {f"module.{key}": value for key, value in state.items()}}, "net.pth")
    results = []
    for model in ("tiny-x2", "my net.safetensors", "net.pth"):
        facts = upscale(call, "photo.png", "-m", model, "-o", "out.png")
        assert (facts["model"], facts["scale"]) == (model, 2)
        results.append(read_image(Path("out.png")).pixels)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_tiles(call, folder):
    PIL.Image.fromarray(read_image(DATA / "photo.png").pixels[:70, :90]).save("photo.png")
    results = {}
    for options in (
        "--tile off",
        "--tile auto",
        "--tile 48",
        "--tile 48 --tile-overlap 8",
        "--tile 48 --tile_overlap 8",
    ):
        facts = upscale(call, "photo.png", "-s", 2, "-o", "out.png", *options.split())
        results[options] = facts["tiles"], read_image(Path("out.png")).pixels.astype(int)
    assert [tiles for tiles, _ in results.values()] == [
        1,
        1,
        12,
        6,
        6,
    ]  # 48 + 16 k and 48 + 40 k cover 70 x 90
    (_, whole), (_, auto), (_, tiled), (_, dashes), (_, underscores) = results.values()
    np.testing.assert_array_equal(whole, auto)
    np.testing.assert_array_equal(dashes, underscores)
    for result in (tiled, dashes):
        assert 0 < np.abs(result - whole).mean() < 1
    assert np.abs(tiled - dashes).max() > 0


@pytest.mark.parametrize(
    ("options", "size", "model", "name"),
    [
        ("-s 1", (24, 18), "tiny-x2", "photo_x1.png"),
        ("-s 1.5", (36, 27), "tiny-x2", "photo_x1.5.png"),
        ("-s 5", (120, 90), "tiny-x4, tiny-x2", "photo_x5.png"),
        ("-s 4 -m tiny-x2", (96, 72), "tiny-x2", "photo_x4.png"),
        ("--width 60", (60, 45), "tiny-x4", "photo_60w.png"),
        ("--height 36", (48, 36), "tiny-x2", "photo_36h.png"),
        ("--width 30 --height 54", (30, 54), "tiny-x4", "photo_30w54h.png"),
    ],
)
def test_any_size(call, folder, options, size, model, name):
    facts = upscale(call, "photo.png", *options.split())
    assert (tuple(facts["size_out"]), facts["model"], facts["output"]) == (size, model, name)
    assert read_image(Path(name)).pixels.shape[1::-1] == size


def test_options_of_the_engine(call, folder, monkeypatch):
    made, upscaler = [], engine.Upscaler
    monkeypatch.setattr(engine, "Upscaler", lambda *arguments: made.append(arguments) or upscaler(*arguments))
    amounts = {"4GB": 4 * 2**30, "1.5 gib": 3 * 2**29, "900m": 900 * 2**20, "3000000kB": 3072 * 10**6}
    for text, amount in amounts.items():
        upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--memory-limit", text)
        assert made.pop()[1].memory_limit == amount
    plain = read_image(Path("out.png")).pixels
    upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--ensemble", "--alpha", "bicubic")
    ((model, options, task),) = made
    assert (model, options.ensemble, options.alpha, task) == (None, True, "bicubic", "upscale")
    assert 0 < np.abs(read_image(Path("out.png")).pixels.astype(int) - plain).max() < 40
    upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--dtype", "bf16", "--device", "cpu")
    assert made.pop()[1].dtype == "bf16"
    assert np.abs(read_image(Path("out.png")).pixels.astype(int) - plain).max() <= 2


def test_backends(call, folder):
    results = []
    for name in ("numba", "reference", "auto"):
        facts = upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--backend", name, "--device", "cpu")
        assert facts["backend"] == ("numba" if name == "auto" else name)
        assert facts["device"] == "cpu"
        results.append(read_image(Path("out.png")).pixels.astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
    np.testing.assert_array_equal(results[0], results[2])


def test_facts(call, folder):
    facts = upscale(call, "photo.png", "-s", 2, "-o", "out.png")
    assert facts.pop("seconds") > 0
    assert facts == {
        "input": "photo.png",
        "output": "out.png",
        "size_in": [24, 18],
        "size_out": [48, 36],
        "scale": 2,
        "model": "tiny-x2",
        "backend": "numba",
        "device": "cpu",
        "tiles": 1,
    }


NAMES = [
    "two  words.png",
    "Übergröße 写真.png",
    "[red]x.png",
    ":smile: {0} %s.png",
    "-x.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(call, folder, name):
    Path("photo.png").rename(name)
    out = works(call("upscale", "-s", 2, "--", name))
    output = f"{name[:-4]}_x2.png"
    assert re.fullmatch(f"{re.escape(output)}: 24x18 -> 48x36, tiny-x2, {TAIL}", out)
    assert Path(output).is_file()
    fails(call("upscale", "--", "no " + name), 2, f"no {name}: ")


def test_a_name_of_two_lines_is_said_in_one(call, folder):
    fails(call("upscale", "two\nlines.png"), 2, r"two\nlines.png: no such file")


# Bad input: one line, the exit code, and nothing else has changed

EVIL = (Path.touch, (Path("pwned"),))


class Evil:
    """A pickle of it calls `Path.touch`, which the tests see by the file `pwned`."""

    def __reduce__(self):
        return EVIL


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder of files that no command can use, beside photo.png."""
    bad = tmp_path_factory.mktemp("bad")
    write_image(bad / "photo.png", Image(PHOTO))
    write_image(bad / "deep.png", Image(DEEP))
    (bad / "photo.jpg").write_bytes(jpeg(PIL.Image.fromarray(PHOTO)))
    PIL.Image.new("L", (9000, 1)).save(bad / "line.png")
    for name in ("photo.png", "deep.png", "photo.jpg"):
        data = (bad / name).read_bytes()
        (bad / f"cut {name}").write_bytes(data[: len(data) * 2 // 3])
    (bad / "text.png").write_text("no image at all\n")
    for name in ("zero.png", "zero.pth", "zero.safetensors"):
        (bad / name).touch()
    for name in ("folder.png", "folder.pth", "empty"):
        (bad / name).mkdir()
    (bad / "soft.png").symlink_to("photo.png")
    (bad / "hard.png").hardlink_to(bad / "photo.png")
    other = {"features.weight": torch.ones(3, 3)}
    torch.save(other, bad / "other.pth")
    save_file(other, bad / "other.safetensors")
    torch.save([1, 2], bad / "list.pth")
    (bad / "text.pth").write_text("no checkpoint at all\n")
    (bad / "text.safetensors").write_text("no checkpoint at all\n")
    weights = (bundled_folder() / "tiny-x2.safetensors").read_bytes()
    (bad / "cut.safetensors").write_bytes(weights[:-100])
    saved = io.BytesIO()
    torch.save(load_file(bundled_folder() / "tiny-x2.safetensors"), saved)
    (bad / "cut.pth").write_bytes(saved.getvalue()[:-5000])
    torch.save({"params": {"conv_first.weight": Evil()}}, bad / "evil.pth")
    torch.save({"params": Evil()}, bad / "evil old.pth", _use_new_zipfile_serialization=False)
    for protocol in (0, 2, 4):
        (bad / f"evil {protocol}.pth").write_bytes(pickle.dumps({"params": Evil()}, protocol))
    (bad / "evil.safetensors").write_bytes(pickle.dumps({"params": Evil()}))
    (bad / "recipe.toml").write_text("scale = 2\n")
    return bad


LONG = "x" * 300
UPSCALE = [  # options after `upscale photo.png -o out.png`; exit code, words of the message
    ("-s 17", 2, "--scale", "mambair upscale --help"),
    ("-s 0.9", 2, "--scale"),
    ("-s nan", 2, "scale"),
    ("-s 2 --width 100", 2, "--scale", "--width"),
    ("--width 0", 2, "--width"),
    ("--width 10", 1, "photo.png", "times as large"),
    ("--height 2000", 1, "photo.png", "times as large"),
    ("--memory-limit much", 2, "--memory-limit", "'much'", "4GB"),
    ("--memory-limit 1MB", 1, "memory"),
    ("--alpha sharp", 2, "--alpha", "bicubic"),
    ("--max-pixels 100", 1, "photo.png", "--max-pixels"),
    ("--max-pixels 0", 2, "--max-pixels"),
    ("-s two", 2, "--scale"),
    ("-s", 2, "-s"),
    ("-m tiny-x9", 2, "'tiny-x9'", "did you mean tiny-x"),
    ("-m nonsense", 2, "'nonsense'", "tiny-x2, tiny-x4"),
    ("-m missing.pth", 2, "missing.pth is missing"),
    ("-m folder.pth", 2, "folder.pth is a folder"),
    ("-m empty", 2, "empty is a folder"),
    (f"-m {LONG}", 2, LONG),
    ("-m zero.pth", 1, "zero.pth"),
    ("-m zero.safetensors", 1, "zero.safetensors"),
    ("-m text.pth", 1, "text.pth", "checkpoint"),
    ("-m text.safetensors", 1, "text.safetensors", "safetensors"),
    ("-m photo.png", 1, "photo.png", "checkpoint"),
    ("-m list.pth", 1, "list.pth", "state dict"),
    ("-m cut.pth", 1, "cut.pth"),
    ("-m cut.safetensors", 1, "cut.safetensors"),
    ("-m other.pth", 1, "other.pth", "another architecture"),
    ("-m other.safetensors", 1, "other.safetensors", "another architecture"),
    ("-m evil.pth", 1, "evil.pth", "could run code", "state_dict"),
    ("-m evil old.pth", 1, "evil old.pth", "could run code"),
    ("-m evil 0.pth", 1, "evil 0.pth"),
    ("-m evil 2.pth", 1, "evil 2.pth", "could run code"),
    ("-m evil 4.pth", 1, "evil 4.pth", "could run code"),
    ("-m evil.safetensors", 1, "evil.safetensors"),
    ("--tile none", 2, "--tile", "auto, off", "'none'"),
    ("--tile 0", 2, "--tile", "'0'"),
    ("--tile -8", 2, "--tile", "'-8'"),
    ("--tile 32", 2, "--tile-overlap", "larger than the overlap of 32"),
    ("--tile-overlap -1", 2, "--tile-overlap"),
    ("--tile_overlap x", 2, "--tile-overlap"),
    ("--device tpu", 2, "'tpu'", "auto, cpu, cuda"),
    ("--device cuda:x", 2, "'cuda:x'"),
    ("--device cuda", 1, "'cuda'", "try --device cpu"),
    ("--device mps", 1, "'mps'", "try --device cpu"),
    ("--backend mamba", 2, "'mamba'", "auto, numba, reference"),
    ("--nonsense", 2, "--nonsense", "mambair upscale --help"),
    ("extra.png", 2, "extra.png"),
]
OTHER = [  # arguments, separated by two spaces; exit code, words of the message
    ("upscale", 2, "INPUT", "mambair upscale --help"),
    ("upscale  missing.png", 2, "missing.png: no such file", "check the path"),
    ("upscale  text.png/x.png", 2, "text.png/x.png: no such file"),
    ("upscale  empty", 2, "empty: is a folder", "give -o FOLDER"),
    ("upscale  .", 2, ".: is a folder"),
    ("upscale  text.png", 1, "text.png: not an image", "convert it"),
    ("upscale  zero.png", 1, "zero.png: the file is empty", "fetch or export it again"),
    ("upscale  cut photo.png", 1, "cut photo.png: damaged", "fetch or export it again"),
    ("upscale  cut deep.png", 1, "cut deep.png: damaged"),
    ("upscale  cut photo.jpg", 1, "cut photo.jpg: damaged"),
    (f"upscale  {LONG}.png", 1, f"{LONG}.png", "too long"),
    ("upscale  photo.png  -o  none/out.png", 2, "none/out.png: there is no folder", "create it"),
    ("upscale  photo.png  -o  text.png/out.png", 2, "text.png/out.png: there is no folder"),
    ("upscale  photo.png  -o  photo.jpg/", 2, "photo.jpg: is a file", "name a folder"),
    (f"upscale  photo.png  -o  {LONG}.png", 1, f"{LONG}.png", "too long"),
    ("upscale  photo.png  -o  photo.png", 2, "photo.png: is the input itself", "with -o"),
    ("upscale  photo.png  -o  empty/../photo.png", 2, "photo.png: is the input itself"),
    ("upscale  photo.png  -o  soft.png", 2, "soft.png: is the input itself"),
    ("upscale  photo.png  -o  hard.png", 2, "hard.png: is the input itself"),
    ("upscale  soft.png  -o  photo.png", 2, "photo.png: is the input itself"),
    ("upscale  photo.png  -o  out.gif", 2, "out.gif: unknown suffix '.gif'", *OUTPUT_SUFFIXES),
    ("upscale  photo.png  -o  out", 2, "out: unknown suffix"),
    ("upscale  line.png  -s  2  -o  out.webp", 2, "out.webp: WebP ends at 16383", "use .png"),
    ("nonsense", 2, "'nonsense'", "mambair --help"),
    ("--nonsense", 2, "--nonsense", "mambair --help"),
    ("models  nonsense", 2, "'nonsense'", "mambair models --help"),
    ("doctor  extra", 2, "extra", "mambair doctor --help"),
    ("bench", 2, "--dataset", "mambair bench --help"),
    ("bench  --dataset  missing", 2, "missing is not a folder"),
    ("bench  --dataset  empty", 2, "empty holds no image"),
    ("bench  --dataset  empty  -m  tiny-x2  -s  4", 2, "tiny-x2", "not 4"),
    (f"bench  --dataset  {LONG}", 1, LONG, "too long"),
    ("bench  tiling  missing.png", 2, "missing.png: no such file"),
    ("bench  tiling", 2, "IMAGE", "mambair bench tiling --help"),
    ("bench  nonsense", 2, "'nonsense'", "mambair bench --help"),
    ("train  --data  empty  --out  run", 2, "--recipe", "mambair train --help"),
    ("train  --recipe  tiny-x9  --data  empty  --out  run", 2, "'tiny-x9'", "tiny-x2", ".toml"),
    ("train  --recipe  recipe.toml  --data  empty  --out  run", 2, "recipe.toml", "missing"),
    ("train  --recipe  tiny-x2  --data  missing  --out  run", 2, "missing is not a folder"),
    ("train  --recipe  tiny-x2  --data  empty  --out  run", 2, "empty holds no image"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --val  empty", 2, "empty holds no image"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --resume", 2, "run/checkpoint.pt", "resume"),
    ("train  --recipe  tiny-x2  --data  .  --out  run  --patch  0", 2, "--patch"),
]


def check_bad(call, bad, arguments, code, words):
    before = contents(bad)
    fails(call(*arguments), code, *words)
    assert contents(bad) == before


@pytest.mark.parametrize(("options", "code", "words"), [(o, c, w) for o, c, *w in UPSCALE])
def test_bad_options_of_upscale(call, bad, monkeypatch, options, code, words):
    monkeypatch.chdir(bad)
    split = options.split(" ", 1 if options.startswith("-m") else -1)  # names of models may hold spaces
    check_bad(call, bad, ["upscale", "photo.png", "-o", "out.png", *split], code, words)


@pytest.mark.parametrize(("line", "code", "words"), [(line, c, w) for line, c, *w in OTHER])
def test_bad_calls(call, bad, monkeypatch, line, code, words):
    monkeypatch.chdir(bad)
    check_bad(call, bad, line.split("  "), code, words)


def test_the_malicious_pickle_would_run(bad, folder):
    pickle.loads((bad / "evil 2.pth").read_bytes())
    assert Path("pwned").is_file()
    assert not (bad / "pwned").exists()


def test_an_output_that_cannot_be_created(call, folder, monkeypatch):
    if Path("/proc/self").is_dir():  # whose files not even root can create
        fails(call("upscale", "photo.png", "-s", 2, "-o", "/proc/out.png"), 1, "/proc/out.png: ")
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    fails(call("upscale", "photo.png", "-s", 2, "-o", "out.png"), 1, "out.png: no permission")
    Path("out.png").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK or path == folder)
    fails(call("upscale", "photo.png", "-s", 2, "-o", "out.png"), 1, "out.png: is write-protected")
    assert Path("out.png").read_bytes() == b""


def test_bad_outputs_are_found_before_the_work(call, bad, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError

    monkeypatch.chdir(bad)
    monkeypatch.setattr("mambair_cli.engine.load_restorer", never)
    for output in ("none/out.png", "photo.jpg/", "photo.png", "out.gif"):
        assert call("upscale", "photo.png", "-o", output)[0] == 2


# Failures and interrupts on the way


@pytest.mark.parametrize("existing", [None, b"old"], ids=["new", "existing"])
@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ["mambair: interrupted\n"]),
        (OSError(errno.ENOSPC, "No space left on device"), 1, ["out.png: cannot be written: No space left"]),
    ],
    ids=["interrupt", "full disk"],
)
@pytest.mark.parametrize("place", ["read", "network", "encode", "write", "replace"])
def test_an_output_is_there_whole_or_not_at_all(call, folder, monkeypatch, existing, error, code, words, place):
    if existing:
        Path("out.png").write_bytes(existing)
    before = contents(folder)

    def fail(*arguments, **options):
        raise error

    class FullDisk(io.FileIO):
        write = fail

    def open_full(path, mode="r", *rest, original=Path.open, **options):
        return FullDisk(path, mode) if mode == "xb" else original(path, mode, *rest, **options)

    monkeypatch.setattr(
        *{
            "read": (Path, "read_bytes", fail),
            "network": (Restorer, "restore", fail),
            "encode": (image_io.PIL.Image.Image, "save", fail),
            "write": (Path, "open", open_full),
            "replace": (Path, "replace", fail),
        }[place]
    )
    result = call("upscale", "photo.png", "-s", 2, "-o", "out.png")
    monkeypatch.undo()
    if code == 1 and place in ("read", "network", "encode"):
        words = ["No space left on device"]
    fails(result, code, *words)
    assert contents(folder) == before


def test_the_existing_output_is_replaced(call, folder):
    Path("out.png").write_bytes(b"old")
    works(call("upscale", "photo.png", "-s", 2, "-o", "out.png"))
    assert read_image(Path("out.png")).pixels.shape == (36, 48, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["out.png", "photo.png"]


# The real program: streams, terminals, signals


def test_readme_command(tmp_path):
    output = tmp_path / "out.png"
    out = works(run("upscale", DATA / "photo.png", "-s", "4", "-o", output))
    assert re.fullmatch(f"{re.escape(str(output))}: 192x144 -> 768x576, tiny-x4, {TAIL}", out)
    with PIL.Image.open(output) as file:
        assert (file.size, file.mode) == ((768, 576), "RGB")
    assert list(tmp_path.iterdir()) == [output]


class Terminal:
    """The real program in a terminal of its own: what it has shown so far, its exit code in the end."""

    def __init__(self, *arguments):
        pty = pytest.importorskip("pty")
        self.master, slave = pty.openpty()
        start = program(*arguments, TERM="xterm-256color", COLUMNS="100")
        # Where the tests run in the background of a shell, SIGINT is ignored, and would be by the program.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(**start, stdin=slave, stdout=slave, stderr=slave)
        finally:
            signal.signal(signal.SIGINT, previous)
        os.close(slave)
        self.shown = ""

    def read(self):
        """More of what it shows; False at its end."""
        try:
            data = os.read(self.master, 65536)
        except OSError:  # how Linux ends a terminal
            data = b""
        self.shown += data.decode(errors="replace")
        return bool(data)

    def end(self):
        with contextlib.closing(os.fdopen(self.master)):
            while self.read():
                pass
        return self.process.wait(60)


def write_tiled_photo(path):
    """A photograph that keeps a net busy for some tiles."""
    pixels = read_image(DATA / "photo.png").pixels
    write_image(path, Image(np.tile(pixels, (2, 2, 1))))


def test_progress_on_a_terminal(folder):
    write_tiled_photo(Path("[red]x.png"))
    terminal = Terminal("upscale", "[red]x.png", "-s", "2", "-o", "out.png", "--tile", "96")
    assert terminal.end() == 0
    *bars, last = re.split(r"[\r\n]+", plain_lines(terminal.shown))
    assert re.fullmatch(f"out.png: 384x288 -> 768x576, tiny-x2, {TAIL[:-2]}", last)
    steps = [re.fullmatch(r"\[red\]x\.png [━╸╺ ]+ +(\d+)% (\S+)", line) for line in bars if line]
    assert all(steps), bars
    shares = [int(step[1]) for step in steps]
    assert shares == sorted(shares)
    assert shares[0] < 100 == shares[-1]
    assert any(re.fullmatch(r"\d+:\d\d:\d\d", step[2]) for step in steps if int(step[1]) < 100)


def plain_lines(shown):
    return re.sub(r"\x1b\[[\d;?]*\w", "", shown).strip()


def test_interrupt_in_the_middle(folder):
    write_tiled_photo(Path("photo.png"))
    Path("out.png").write_bytes(b"old")
    before = contents(folder)
    terminal = Terminal("upscale", "photo.png", "-s", "4", "-o", "out.png", "--tile", "48")
    while not re.search(r"[1-9]\d?%", plain_lines(terminal.shown)) and terminal.read():
        pass
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() in (130, -signal.SIGINT)  # for a shell, both are 130
    assert plain_lines(terminal.shown).splitlines()[-1] == "mambair: interrupted"
    assert "100%" not in terminal.shown
    assert "Traceback" not in terminal.shown
    assert contents(folder) == before


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_stdout_cannot_encode(folder):
    name = b"\xc3\xbc\xff[red].png"
    os.rename(b"photo.png", name)  # noqa: PTH104
    code, out, err = run("--verbose", "upscale", name, "-s", "2", **ASCII)
    assert (code, err) == (0, "mambair: scan back end on cpu: numba\n")  # the one thing that is decided
    assert re.fullmatch(rf"\\udcc3\\udcbc\\udcff\[red\]_x2\.png: 24x18 -> 48x36, tiny-x2, {TAIL}", out)
    assert sorted(os.fsencode(path.name) for path in folder.iterdir()) == [name, b"\xc3\xbc\xff[red]_x2.png"]
    fails(run("upscale", b"no" + name, **ASCII), 2, r"no\udcc3\udcbc\udcff[red].png: no such file")


def test_a_malicious_pickle_in_the_real_program(bad, monkeypatch):
    monkeypatch.chdir(bad)
    check_bad(run, bad, ["upscale", "photo.png", "-m", "evil 4.pth"], 1, ["evil 4.pth", "could run code"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_stdout_on_a_full_disk():
    with Path("/dev/full").open("w") as full:
        start = program("--help", PYTHONUNBUFFERED="1")
        done = subprocess.run(**start, stdout=full, stderr=subprocess.PIPE, check=False)
    fails((done.returncode, "", done.stderr.decode()), 1, "No space left")


def test_closed_streams(call, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert call("upscale", "photo.png", "-s", "2", "-o", "out.png")[0] == 0
    assert read_image(Path("out.png")).pixels.shape == (36, 48, 3)


def test_what_needs_no_torch_imports_none():
    code = """
import sys
from mambair_cli import cli
for line in sys.stdin.read().splitlines():
    sys.argv = ["mambair", *line.split()]
    try:
        cli.main()
    except SystemExit as stop:
        heavy = {"torch", "numba", "numpy", "cv2", "PIL"} & sys.modules.keys()
        print(line, "->", stop.code, *sorted(heavy), file=sys.stderr)
"""
    lines = ["--help", "--version", "upscale --help", "train --help", "bench --help", "bench tiling --help"]
    lines += ["models list", "doctor --help"]
    start = program()
    start["args"][1:] = ["-c", code]
    done = subprocess.run(**start, input="\n".join(lines), capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == [f"{line} -> 0" for line in lines]


def test_python_m(folder):
    assert run("--version") == (0, f"mambair {mambair_cli.__version__}\n", "")
    fails(run("upscale", "missing.png"), 2, "missing.png: no such file")


# Help and the other commands


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "upscale doctor train models bench --version --verbose -v --help"),
        (
            "upscale",
            "INPUT --output -o --scale -s --model -m --glob --overwrite --format --quality --suffix --tile"
            " --tile-overlap --device --backend --json",
        ),
        ("models", "list"),
        ("models list", "--json"),
        ("doctor", "--json"),
        (
            "train",
            "--recipe --data --out --iterations --batch --patch --resume --init --val",
        ),
        ("bench", "--dataset --scale -s --model -m --tile --device --backend --json memory scan tiling"),
        ("bench scan", "--quick --json"),
        ("bench tiling", "IMAGE --model -m --json"),
    ],
)
def test_help(call, monkeypatch, command, words):
    monkeypatch.setenv("COLUMNS", "120")
    text = works(call(*command.split(), "--help"))
    assert works(call(*command.split(), "-h")) == text
    shown = plain(text).split()
    assert f"Usage: mambair {command}".strip() in plain(text)
    for word in words.split():
        assert word in shown


def test_nothing_asked_is_answered_with_the_help(call):
    code, out, err = call()
    assert code == 2
    assert "Usage: mambair" in out + err
    assert "Traceback" not in err


def test_models_list(call):
    assert json.loads(works(call("models", "list", "--json"))) == [asdict(model) for model in MODELS]
    header, *lines = works(call("models", "list")).splitlines()
    assert header.split() == ["name", "task", "scale", "parameters", "for", "score"]
    for model, line in zip(MODELS, lines, strict=True):
        assert line.split()[:4] == [model.name, model.task, f"x{model.scale}", f"{model.parameters:,}"]


def test_doctor(call, monkeypatch):
    reason = "its [bold]compiler is missing"
    monkeypatch.setattr(
        doctor,
        "BACKENDS",
        (replace(doctor.BACKENDS[0], unavailable=lambda device, dtype: reason), doctor.BACKENDS[1]),
    )
    facts = json.loads(works(call("doctor", "--json")))
    assert facts["backends"] == {"numba": reason, "reference": None}
    assert facts["versions"]["mambair"] == mambair_cli.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert all(facts["devices"][name].startswith("unavailable: ") for name in ("cuda", "mps"))
    text = works(call("doctor"))
    for table, label in (("versions", "version"), ("devices", "device")):
        for name, value in facts[table].items():
            if name != "cpu":  # its free memory changes
                assert f"{label} {name} {value}" in plain(text)
    assert f"back end numba {reason}" in plain(text)
    assert "back end reference available" in plain(text)


@pytest.fixture
def pictures(folder):
    """A folder of pictures for `train` and `bench`, of names that are hard to print."""
    pixels = read_image(DATA / "dragonfly.png").pixels
    Path("set").mkdir()
    for i, name in enumerate(("[red]a", "b b", "c")):
        write_image(Path("set") / f"{name}.png", Image(pixels[20 * i : 20 * i + 40, 30 * i : 30 * i + 44]))
    return "set"


def test_bench(call, pictures):
    facts = json.loads(works(call("bench", "--dataset", pictures, "-s", 2, "--json")))
    assert (facts["model"], facts["scale"], facts["dataset"]) == ("tiny-x2", 2, pictures)
    assert [row["image"] for row in facts["images"]] == ["[red]a", "b b", "c"]
    *lines, last = works(call("bench", "--dataset", pictures, "-s", 2, "--backend", "reference")).splitlines()
    assert re.fullmatch(r"tiny-x2 x2, reference on cpu, \d+\.\d s", last)
    rows = [*facts["images"], facts["mean"]]
    for row, line in zip(rows, lines[1:], strict=True):
        name, *numbers = line.rsplit(maxsplit=4)
        assert name.strip() == row["image"]
        keys = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")
        assert [float(number) for number in numbers] == pytest.approx([row[key] for key in keys], abs=0.01)


def test_bench_tiling(call, pictures):
    rows = json.loads(works(call("bench", "tiling", DATA / "osprey.png", "-m", "tiny-x2", "--json")))
    assert all({"tile", "overlap", "tiles", "max", "mean", "psnr", "border", "inside"} == row.keys() for row in rows)
    assert len(rows) > 3
    # All tiles hold this one whole: equal to the untiled result, so that its PSNR is no number of JSON.
    *_, last = json.loads(works(call("bench", "tiling", "set/c.png", "--json")))
    assert (last["max"], last["psnr"]) == (0, None)
    lines = works(call("bench", "tiling", "set/c.png")).splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[-1].split() == ["256", "64", "1", "0.00", "0.0000", "inf", "0.00", "0.00"]


def test_bench_memory(call, monkeypatch):
    row = {"model": "tiny-x2", "megapixels": 0.25, "limit": 2**30, "tiles": 3, "predicted": 2**29, "measured": 2**28}
    row |= {"process": 3 * 2**28, "seconds": 1.26}
    asked = []
    monkeypatch.setattr(bench, "memory", lambda name: asked.append(name) or [row, row | {"limit": 0}])
    assert json.loads(works(call("bench", "memory", "-m", "tiny-x2", "--json"))) == [row, row | {"limit": 0}]
    lines = works(call("bench", "memory")).splitlines()
    assert asked == ["tiny-x2", "tiny-x4"]
    assert lines[1].split() == ["tiny-x2", "0.25", "3", "512", "256", "2.00", "768", "1024", "1.3"]
    assert lines[2].split() == ["tiny-x2", "0.25", "3", "512", "256", "2.00", "768", "none", "1.3"]


def test_bench_scan(call, monkeypatch):
    rows = [
        {"what": "[red]one", "value": "1.5 (3 / 2 ms)", "bar": "<= 2", "met": True},
        {"what": "two", "value": "3.0", "bar": "<= 2", "met": False},
        {"what": "three", "value": "4", "bar": "", "met": None},
    ]
    asked = []
    monkeypatch.setattr(bench, "scan_report", lambda quick: asked.append(quick) or rows)
    assert json.loads(works(call("bench", "scan", "--quick", "--json"))) == rows
    lines = works(call("bench", "scan")).splitlines()
    assert asked == [True, False]
    assert [line.split() for line in lines] == [
        ["what", "measured", "bar"],
        ["[red]one", "1.5", "(3", "/", "2", "ms)", "<=", "2", "met"],
        ["two", "3.0", "<=", "2", "MISSED"],
        ["three", "4"],
    ]


RECIPE = """
scale = 2
seed = 1
network = {arch = "mambair", embed_dim = 16, depths = [1], d_state = 2, expand = 1.0, conv_block = "light_c",
           upsampler = "pixelshuffledirect"}
data = {patch = 10, batch = 3, validation = 1}
optimiser = {lr = 2e-3, betas = [0.9, 0.99], weight_decay = 0.01, clip = 1.0, ema = 0.9}
schedule = {iterations = 6, warmup = 0.1}
""".replace(",\n           ", ", ")


def test_train(call, pictures):
    Path("recipe.toml").write_text(RECIPE)
    line = ["train", "--recipe", "recipe.toml", "--data", pictures, "--out", "run", "--iterations", 2]
    line += ["--batch", 1, "--patch", 8]
    code, out, err = call(*line)
    assert (code, out) == (0, "run/model.safetensors\n")
    assert "2/2" in err
    names = sorted(path.name for path in Path("run").iterdir())
    assert names == ["checkpoint.pt", "log.jsonl", "model.safetensors", "recipe.json"]
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert (recipe["data"]["batch"], recipe["data"]["patch"]) == (1, 8)
    assert recipe["schedule"]["iterations"] == 2
    before = contents(Path("run"))
    fails(call(*line), 2, "run holds a run already", "--resume")
    assert contents(Path("run")) == before
    assert call(*line, "--resume")[:2] == (0, "run/model.safetensors\n")
    assert upscale(call, "photo.png", "-m", "run/model.safetensors")["size_out"] == [48, 36]


def test_train_passes_its_options_on(call, folder, monkeypatch):
    Path("recipe.toml").write_text(RECIPE)
    asked = []

    def train(config, data, out, **options):
        asked.append((config, data, out, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    line = ["train", "--recipe", "recipe.toml", "--data", "d", "--out", "o"]
    fails(call(*line), 130, "mambair: interrupted\n")
    fails(call(*line, "--resume", "--init", "i.pth", "--val", "v", "--batch", 7), 130)
    config = training.read_recipe("recipe.toml")
    seven = replace(config, data=replace(config.data, batch=7))
    plain_options = {"resume": False, "init": None, "val": None}
    options = {"resume": True, "init": Path("i.pth"), "val": Path("v")}
    assert asked == [
        (config, Path("d"), Path("o"), plain_options),
        (seven, Path("d"), Path("o"), options),
    ]
