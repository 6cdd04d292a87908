"""`mambair upscale`: a photo in, a better photo out."""

import inspect
import json
import logging
import os
import re
import struct
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import torch
from calls import DATA, DEEP, PHOTO, TAIL, contents, fails, jpeg, upscale, works
from safetensors.torch import load_file

import mambair_cli
from mambair_cli.commands.restore import command
from mambair_cli.images.io import OUTPUT_SUFFIXES, Image, read_image, write_image
from mambair_cli.models.catalog import model_named
from mambair_cli.models.choice import Choice, gain
from mambair_cli.models.tasks import TASKS
from mambair_cli.models.weights import bundled_folder
from mambair_cli.restore import upscaler
from mambair_cli.restore.options import Options


def rotated():
    exif = PIL.Image.Exif()
    exif[274] = 6  # the picture lies on its left side
    return jpeg(PIL.Image.fromarray(np.rot90(PHOTO).copy()), exif=exif)


GRAY = PHOTO[..., 1]
ALPHA = np.linspace(0, 255, 24 * 18).reshape(18, 24).astype(np.uint8)
BGRA16 = np.dstack([DEEP[..., ::-1], ALPHA.astype(np.uint16) * 257])
LINE, ROTATE = PIL.Image.fromarray(PHOTO).resize((3, 5000)), PIL.Image.Transpose.ROTATE_90
PALETTE = PIL.Image.fromarray(PHOTO).quantize(64)
KINDS = {  # a file; depth and colour type of the PNG that it becomes; pixels that it shows, alpha
    "8-bit.png": (cv2.imencode(".png", PHOTO[..., ::-1])[1].tobytes(), (8, 2), PHOTO, None),
    "16-bit.png": (cv2.imencode(".png", DEEP[..., ::-1])[1].tobytes(), (16, 2), DEEP, None),
    "gray.png": (PIL.Image.fromarray(GRAY), (8, 0), GRAY, None),
    "gray 16-bit.png": (
        cv2.imencode(".png", DEEP[..., 0])[1].tobytes(),
        (16, 0),
        DEEP[..., 0],
        None,
    ),
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


@pytest.mark.parametrize(("scale", "model"), [(2, "tiny-x2"), (3, "tiny-x3"), (4, "tiny-x4")])
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


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_images(call, folder, name, task):
    scale, scope = (2, 1) if task == "upscale" else (1, 2)  # to the others fine texture is noise
    data, (depth, colour_type), pixels, alpha = KINDS[name]
    if isinstance(data, bytes):
        Path(name).write_bytes(data)
    else:
        data.save(name)
    before = contents(folder)
    height, width = pixels.shape[:2]
    to_scale = ["-s", 2] if scale == 2 else []
    code, out, err = call(task, name, *to_scale, "-o", "out.png", "--json", "--quiet")
    assert (code, err) == (
        0,
        f"mambair: {name}: its CMYK colours become RGB\n" if name == "cmyk.jpg" else "",
    )
    facts = json.loads(out)
    assert (facts["size_in"], facts["size_out"]) == (
        [width, height],
        [scale * width, scale * height],
    )
    header = struct.unpack(">IIBB", Path("out.png").read_bytes()[16:26])
    assert header == (scale * width, scale * height, depth, colour_type)
    result = cv2.imread("out.png", cv2.IMREAD_UNCHANGED)
    if result.ndim == 3:
        shown = result[..., 0] if pixels.ndim == 2 else result[..., 2::-1]
        if alpha is not None:
            error = np.abs(shrunk(result[..., 3], alpha) - shrunk(alpha, alpha))
            assert error.max() < 0.02 * scope
    else:
        shown = result
    full = 65535 if depth == 16 else 255
    error = np.abs(shrunk(shown, pixels) - pixels / full)
    assert error.mean() < (
        0.02 * scope if min(height, width) > 3 else 0.15 * scope
    )  # where most is border, nets err
    if depth == 16:  # its lower bits are alive
        assert len(np.unique(result % 257)) > 100
    assert {
        name: body for name, body in contents(folder).items() if "out.png" not in name
    } == before


@pytest.mark.parametrize("task", TASKS)
def test_what_files_hold_in_folders(call, folder, task):
    exif, profile = (
        PIL.Image.Exif(),
        PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes(),
    )
    exif[271] = "a camera"
    Path("in/deeper").mkdir(parents=True)
    held = {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}
    Path("in/deeper/a.jpg").write_bytes(jpeg(PIL.Image.fromarray(PHOTO), **held))
    Path("in/b.png").write_bytes(b"no image")
    code, out, err = call(task, "in", "-o", "out", "--json", "--quiet")
    assert code == 1
    assert err == "mambair: in/b.png: not an image that can be read; convert it to PNG or JPEG\n"
    assert [file["status"] for file in json.loads(out)["files"]] == ["failed", "ok"]
    kept = read_image(Path("out/deeper/a.jpg"))
    assert (kept.icc_profile, kept.dpi) == (profile, (300, 300))
    assert b"a camera" in kept.exif


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
    command = ["upscale", "moving.gif", "-s", 2, "-o", "out.png", "--json"]
    code, out, err = call(*command, "--first-frame")
    assert (code, json.loads(out)["size_out"]) == (0, [48, 36])
    assert re.fullmatch(r"mambair: moving\.gif: [^\n]+first[^\n]+\n", err)
    assert read_image(Path("out.png")).frames is None


def test_all_frames_of_an_animation(call, folder):
    frame = PIL.Image.fromarray(PHOTO)
    frame.save("moving.gif", save_all=True, append_images=[frame.rotate(180)], duration=70)
    code, _, err = call("upscale", "moving.gif", "-s", 2, "-o", "out.png", "--quiet")
    assert (code, err) == (0, "")
    result = read_image(Path("out.png"))
    assert result.frames.durations == (70, 70)
    assert [image.pixels.shape for image in (result, *result.frames.images)] == [(36, 48, 3)] * 2


def test_json_of_one_file_has_its_notes(call, folder):
    write_image(Path("deep.png"), Image(DEEP, BGRA16[..., 3].copy()))
    facts = json.loads(call("upscale", "deep.png", "-s", 2, "-o", "out.jpg", "--json")[1])
    assert (facts["status"], facts["error"], facts["models"]) == ("ok", None, ["tiny-x2"])
    assert len(facts["notes"]) == 2
    assert "transparency" in facts["notes"][0]


def test_json_of_one_file_that_fails(call, folder):
    Path("bad.png").write_bytes(Path("photo.png").read_bytes()[:200])
    code, out, err = call("upscale", "bad.png", "-s", 2, "--json")
    facts = json.loads(out)
    assert (code, facts["status"], facts["input"]) == (1, "failed", "bad.png")
    assert "damaged" in facts["error"]
    assert facts["error"] in err
    good = json.loads(call("upscale", "photo.png", "-s", 2, "--json")[1])
    assert facts.keys() == good.keys()


@pytest.mark.parametrize("keep", [False, True])
def test_times_and_permissions(call, folder, keep):
    os.utime("photo.png", ns=(10**18, 10**18))
    Path("photo.png").chmod(0o640)
    Path("out").mkdir()
    for output in ("a.png", "out/"):
        works(call("upscale", "photo.png", "-o", output, *(["--keep-times"] if keep else [])))
    for result in (Path("a.png"), Path("out/photo.png")):
        status = result.stat()
        assert (status.st_mtime_ns == 10**18) is keep
        assert not keep or status.st_mode & 0o777 == 0o640


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
        ("--width 60", (60, 45), "tiny-x3", "photo_60w.png"),
        ("--height 36", (48, 36), "tiny-x2", "photo_36h.png"),
        ("--width 60 --height 54", (60, 45), "tiny-x3", "photo_60w54h.png"),
        ("--width 30 --height 54 --exact", (30, 54), "tiny-x3", "photo_30w54h.png"),
    ],
)
def test_any_size(call, folder, options, size, model, name):
    facts = upscale(call, "photo.png", *options.split())
    assert (tuple(facts["size_out"]), facts["model"], facts["output"]) == (size, model, name)
    assert read_image(Path(name)).pixels.shape[1::-1] == size


def test_options_of_the_engine(call, folder, monkeypatch):
    made, original = [], upscaler.Upscaler
    monkeypatch.setattr(
        upscaler, "Upscaler", lambda *arguments: made.append(arguments) or original(*arguments)
    )
    amounts = {
        "4GB": 4 * 2**30,
        "7.5 gib": 15 * 2**29,
        "9000m": 9000 * 2**20,
        "9000000kB": 9216 * 10**6,
    }
    for text, amount in amounts.items():
        upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--memory-limit", text)
        assert made.pop()[1].memory_limit == amount
    plain = read_image(Path("out.png")).pixels
    upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--ensemble", "--alpha", "bicubic")
    ((choice, options),) = made
    assert (choice, options.ensemble, options.alpha) == (Choice(real=None), True, "bicubic")
    assert 0 < np.abs(read_image(Path("out.png")).pixels.astype(int) - plain).max() < 40
    made.clear()
    upscale(call, "photo.png", "-s", 2, "-o", "out.png", "--dtype", "bf16", "--device", "cpu")
    assert made.pop()[1].dtype == "bf16"
    off = np.abs(read_image(Path("out.png")).pixels.astype(int) - plain)
    assert off.max() <= 6
    assert off.mean() < 0.2


def test_the_defaults_are_those_of_the_engine():
    asked = inspect.signature(command(TASKS["upscale"])).parameters
    defaults = {field.name: field.default for field in fields(Options)}
    assert defaults.keys() - asked.keys() == {"graphs"}
    del defaults["graphs"]
    assert defaults == {name: asked[name].default for name in defaults}


def test_backends(call, folder):
    results = []
    for name in ("numba", "reference", "auto"):
        facts = upscale(
            call, "photo.png", "-s", 2, "-o", "out.png", "--backend", name, "--device", "cpu"
        )
        assert facts["backend"] == ("numba" if name == "auto" else name)
        assert facts["device"] == "cpu"
        results.append(read_image(Path("out.png")).pixels.astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
    np.testing.assert_array_equal(results[0], results[2])


def test_facts(call, folder):
    facts = upscale(call, "photo.png", "-s", 2, "-o", "out.png")
    better, light, tiny = (
        facts.pop("better"),
        model_named("mambair-light-c-x2"),
        model_named("tiny-x2"),
    )
    seconds = facts.pop("seconds")
    assert seconds < better.pop("seconds") < seconds * light.gmacs / tiny.gmacs + 0.1
    assert better == {
        "model": light.name,
        "here": False,
        "gain": pytest.approx(gain(light, tiny), abs=0.005),
        "dataset": "Set5",
        "scale": 2,
    }
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
        "seen": "",
        "why": "",
        "left": None,
        "level": None,
        "models": ["tiny-x2"],
        "memory": None,
        "status": "ok",
        "error": None,
        "notes": [],
    }


def test_the_gain_is_of_the_models_own_scale(call, folder):
    facts = upscale(call, "photo.png", "-s", 1.5, "-o", "out.png")
    assert (facts["model"], facts["scale"], facts["better"]["scale"]) == ("tiny-x2", 1.5, 2)


def test_a_better_model_is_told_only_to_those_who_ask(call, folder, caplog):
    with caplog.at_level(logging.INFO):
        works(call("upscale", "photo.png", "-s", 2, "-o", "out.png"))
    hint = r"0\.\d dB better on Set5 x2: -m mambair-light-c-x2, about \d+ s, once it is fetched"
    assert re.search(hint, caplog.text)
    for options in (["--quiet"], ["-m", "tiny-x2"], ["--offline"]):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            works(call("upscale", "photo.png", "-s", 2, "-o", "out.png", *options))
        assert "dB better" not in caplog.text


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


def test_the_existing_output_is_replaced(call, folder):
    Path("out.png").write_bytes(b"old")
    works(call("upscale", "photo.png", "-s", 2, "-o", "out.png"))
    assert read_image(Path("out.png")).pixels.shape == (36, 48, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["out.png", "photo.png"]
