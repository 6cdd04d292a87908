"""`--noise`, `--jpeg` and `--degradation`: which model an image gets."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from calls import DATA, fails, works
from networks import network

from mambair_cli.cache import Record, models_folder, record_file
from mambair_cli.image_io import read_image
from mambair_cli.weights import save_network, sha256

PIXELS = read_image(DATA / "dragonfly.png").pixels[:96, :96]


def noisy(sigma):
    noise = np.random.default_rng(0).normal(0, sigma, PIXELS.shape)
    return PIL.Image.fromarray((PIXELS + noise).round().clip(0, 255).astype(np.uint8))


@pytest.fixture
def models(monkeypatch, tmp_path_factory, empty_folder):
    """The published models of each level lie in the cache, as far as their names go."""
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path_factory.mktemp("cache")))
    models_folder().mkdir(parents=True)
    model = network("denoise")
    for task, names in (
        ("denoise", ("denoise-15", "denoise-25", "denoise-50", "denoise-real")),
        ("dejpeg", ("jpeg-10", "jpeg-30", "jpeg-40")),
    ):
        for name in names:
            path = models_folder() / f"mambair-{name}.safetensors"
            save_network(path, model, model.state_dict(), {})
            record = Record(path.stem, path.name, sha256(path), "a test", task, "mambair", 1, 1)
            record_file(path.stem).write_text(json.dumps(asdict(record)))
    return empty_folder


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
    out = works(call("denoise", "in.png", "-m", "mambair-denoise", *option, "-o", "out.png", "--quiet"))
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
    out = works(call("dejpeg", name, "-m", "mambair-jpeg", *option, "-o", "out.png", "--quiet"))
    assert out.startswith(f"out.png: 96x96 -> 96x96, {said}, ")


def test_a_clean_image_gets_the_weakest(call, models):
    PIL.Image.fromarray(PIXELS).save("in.png")
    out = works(call("dejpeg", "in.png", "-m", "mambair-jpeg", "-o", "out.png", "--quiet"))
    assert out.startswith("out.png: 96x96 -> 96x96, mambair-jpeg-40, ")


def test_each_image_of_a_folder_gets_its_own(call, models):
    Path("in").mkdir()
    for sigma in (10, 40):
        noisy(sigma).save(f"in/{sigma}.png")
    arguments = "denoise", "in", "-m", "mambair-denoise", "-o", "out"
    facts = json.loads(works(call(*arguments, "--json")))
    assert facts["model"] == "mambair-denoise-15, mambair-denoise-50"
    low, high = (file["level"] for file in facts["files"])
    assert (low, high) == (pytest.approx(10, abs=2), pytest.approx(40, abs=2))
    assert json.loads(works(call(*arguments, "--json")))["skipped"] == 2
    facts = json.loads(works(call(*arguments, "--json", "--noise", "50")))  # other results: done anew
    assert (facts["ok"], facts["model"]) == (2, "mambair-denoise-50")
    out = works(call(*arguments, "--overwrite"))
    assert f"mambair-denoise-15, mambair-denoise-50 (sigma {low} to {high} measured), " in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("denoise in.png --noise loud", "--noise takes auto or real or a number from 0 to 255, not 'loud'"),
        ("denoise in.png --noise 25 -m mambair-denoise-25", "-m names one"),
        ("dejpeg in.png --jpeg 0", "--jpeg takes auto or a number from 1 to 100, not '0'"),
        ("upscale in.png --degradation rain", "--degradation takes bicubic or real, not 'rain'"),
        ("derain in.png --setting auto", "nothing to choose"),
        ("upscale in.png --noise 25", "No such option: --noise"),
    ],
)
def test_errors(call, models, line, words):
    noisy(25).save("in.png")
    fails(call(*line.split(), "-o", "out.png"), 2, words)
    assert not Path("out.png").exists()
