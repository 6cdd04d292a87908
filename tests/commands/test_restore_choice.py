"""`--noise`, `--jpeg` and `--degradation`: which model an image gets."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from calls import DATA, fails, works
from networks import network

from mambair_cli.images.io import read_image
from mambair_cli.models import catalog
from mambair_cli.models import fetch as checkpoints
from mambair_cli.models.weights import save_network
from mambair_cli.system.files import sha256

PIXELS = read_image(DATA / "dragonfly.png").pixels[:96, :96]


def noisy(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, PIXELS.shape)
    return PIL.Image.fromarray((PIXELS + noise).round().clip(0, 255).astype(np.uint8))


@pytest.fixture
def models(monkeypatch, tmp_path_factory, empty_folder):
    """Small networks are bundled under the names of the published ones, each for its level."""
    place, model, rows = tmp_path_factory.mktemp("weights"), network("denoise"), []
    for row in catalog.list_models():
        if row.name.startswith(("mambair-denoise", "mambair-jpeg")):
            path = place / f"{row.name}.safetensors"
            save_network(path, model, model.state_dict(), {"name": row.name})
            rows.append(replace(row, file=path.name, sha256=sha256(path)))
    found = tuple(rows)
    monkeypatch.setattr(catalog, "read_catalog", lambda path: found)
    monkeypatch.setattr(checkpoints, "bundled_folder", lambda: place)
    return place


@pytest.mark.parametrize(
    ("sigma", "option", "model"),
    [
        (12, ["--noise", "auto"], "15"),
        (35, [], "50"),
        (35, ["--noise", "25"], "25"),
        (35, ["--noise", "26"], "50"),
        (35, ["--noise", "real"], "real"),
    ],
)
def test_noise(call, models, sigma, option, model):
    noisy(sigma).save("in.png")
    out = works(call("denoise", "in.png", *option, "-o", "out.png", "--quiet"))
    assert out.startswith(f"out.png: 96x96 -> 96x96, mambair-denoise-{model}")
    measured = re.search(r" \(sigma (\d+) measured\), ", out)
    assert bool(measured) == (not option or "auto" in option)
    assert not measured or int(measured[1]) == pytest.approx(sigma, abs=2)


@pytest.mark.parametrize(
    ("quality", "name", "option", "said"),
    [
        (12, "in.jpg", [], "mambair-jpeg-10 (quality 12 measured)"),
        (33, "in.jpg", ["--jpeg", "auto"], "mambair-jpeg-30 (quality 33 measured)"),
        (33, "in.png", [], "mambair-jpeg-30 (quality 33 measured)"),
        (33, "in.jpg", ["--jpeg", "40"], "mambair-jpeg-40"),
        (33, "twice.jpg", [], "mambair-jpeg-30 (quality 33 measured)"),
    ],
)
def test_jpeg(call, models, quality, name, option, said):
    PIL.Image.fromarray(PIXELS).save("in.jpg", quality=quality)
    with PIL.Image.open("in.jpg") as image:
        image.save("in.png")
        image.save("twice.jpg", quality=98)
    out = works(call("dejpeg", name, *option, "-o", "out.png", "--quiet"))
    assert out.startswith(f"out.png: 96x96 -> 96x96, {said}, ")


def test_a_clean_image_gets_the_weakest(call, models):
    PIL.Image.fromarray(PIXELS).save("in.png")
    out = works(call("dejpeg", "in.png", "-o", "out.png", "--quiet"))
    assert out.startswith("out.png: 96x96 -> 96x96, mambair-jpeg-40, ")


def test_each_image_of_a_folder_gets_its_own(call, models):
    Path("in").mkdir()
    for sigma in (10, 40):
        noisy(sigma).save(f"in/{sigma}.png")
    arguments = "denoise", "in", "-o", "out"
    facts = json.loads(works(call(*arguments, "--json")))
    assert facts["model"] == "mambair-denoise-15, mambair-denoise-50"
    low, high = (file["level"] for file in facts["files"])
    assert (low, high) == (pytest.approx(10, abs=2), pytest.approx(40, abs=2))
    assert json.loads(works(call(*arguments, "--json")))["skipped"] == 2
    facts = json.loads(
        works(call(*arguments, "--json", "--noise", "50"))
    )  # other results: done anew
    assert (facts["ok"], facts["model"]) == (2, "mambair-denoise-50")
    out = works(call(*arguments, "--overwrite"))
    assert f"mambair-denoise-15, mambair-denoise-50 (sigma {low} to {high} measured), " in out


def test_other_weights_of_a_level_make_other_results(call, models, monkeypatch):
    Path("in").mkdir()
    noisy(40).save("in/a.png")
    works(call("denoise", "in", "-o", "out"))
    model, path = network("denoise"), models / "mambair-denoise-50.safetensors"
    save_network(path, model, model.state_dict(), {"name": "another"})
    rows = (replace(row, sha256=sha256(models / str(row.file))) for row in catalog.list_models())
    found = tuple(rows)
    monkeypatch.setattr(catalog, "read_catalog", lambda path: found)
    assert json.loads(works(call("denoise", "in", "-o", "out", "--json")))["ok"] == 1


@pytest.mark.parametrize("task", ["denoise", "derain", "dejpeg"])
def test_a_folder_by_a_file_where_nothing_is_bundled(call, empty_folder, monkeypatch, task):
    monkeypatch.setattr(catalog, "read_catalog", lambda path: ())
    model = network("denoise")
    save_network(empty_folder / "net.safetensors", model, model.state_dict(), {})
    Path("in").mkdir()
    noisy(25).save("in/a.png")
    assert (
        json.loads(works(call(task, "in", "-m", "net.safetensors", "-o", "out", "--json")))["ok"]
        == 1
    )


@pytest.mark.parametrize("options", [[], ["--width", 200]])
def test_what_has_no_model_is_told_before_the_work(call, empty_folder, monkeypatch, options):
    monkeypatch.setattr(catalog, "read_catalog", lambda path: ())
    Path("in").mkdir()
    noisy(25).save("in/a.png")
    fails(
        call("upscale", "in", "--degradation", "real", *options, "-o", "out"),
        2,
        "no bundled model for upscale",
    )
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "denoise in.png --noise loud",
            "--noise takes auto or real or a number from 0 to 255, not 'loud'",
        ),
        ("denoise in.png --noise 25 -m mambair-denoise-25", "mambair-denoise-25 is another choice"),
        ("dejpeg in.png --jpeg 0", "--jpeg takes auto or a number from 1 to 100, not '0'"),
        (
            "upscale in.png --degradation rain",
            "'rain' is not one of 'auto', 'bicubic', 'real'",
        ),
        ("upscale in.png --noise 25", "No such option: --noise"),
        ("denoise in.png -s 2", "No such option: -s"),
        ("derain in.png --width 20", "No such option: --width"),
    ],
)
def test_errors(call, models, line, words):
    noisy(25).save("in.png")
    fails(call(*line.split(), "-o", "out.png"), 2, words)
    assert not Path("out.png").exists()
