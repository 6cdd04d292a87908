import json
import math
import os
import re
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from training import (
    CPU,
    DENOISE,
    assert_equal,
    before_iteration,
    load_checkpoint,
    read_log,
    recipe,
    start_of,
    train,
    write_photos,
)

from mambair_cli.bench.quality.candidates import Candidate
from mambair_cli.bench.quality.measure import open_benchmark
from mambair_cli.bench.quality.measure import run as measure
from mambair_cli.errors import CallError
from mambair_cli.images.metrics import psnr
from mambair_cli.models.recognise import load_network
from mambair_cli.models.weights import read_state
from mambair_cli.training import loop
from mambair_cli.training import state as module
from mambair_cli.training.inputs import Folders, Settings, open_data
from mambair_cli.training.losses import PerceptualLoss
from mambair_cli.training.recipe import build_network, read_recipe
from mambair_cli.training.schedule import learning_rate
from mambair_cli.training.validation import restored, score


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def score_of(model, config, data):
    """Of a network on the validation images."""
    _, validation, _ = open_data(config, Folders(data), CPU)
    return score(
        restored(model, validation, torch.device("cpu")),
        validation,
        config.scale,
        "psnr_y" if config.scale > 1 else "psnr",
    )


# A whole run


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "deep" / "run"
    # as most published recipes
    config = recipe(iterations=60, batch=4, clip=0.0)
    assert train(config, photos, out) == out / "model.safetensors"
    return config, out


def test_a_run_writes_its_files_and_no_others(run):
    config, out = run
    names = {path.name for path in out.iterdir()}
    pictures = {"curves.png", "validation.png"}
    texts = {"log.jsonl", "model.md", "recipe.json"}
    assert names == {
        "checkpoint-00000060.pt",
        "best.safetensors",
        "model.safetensors",
        *pictures,
        *texts,
    }
    assert read_recipe(str(out / "recipe.json")) == config
    for text in ((out / "recipe.json").read_text(), *(out / "log.jsonl").read_text().splitlines()):
        # NaN and Infinity are no JSON
        json.loads(text, parse_constant=pytest.fail)
    assert "validation psnr y: " in (out / "model.md").read_text()
    assert re.search(
        r"^A network of the user\. [\d,]+ parameters\.$",
        (out / "model.md").read_text(),
        re.MULTILINE,
    )
    for name in pictures:
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20


def test_a_run_learns(run, photos):
    config, out = run
    log = read_log(out)
    assert [entry["iteration"] for entry in log] == list(range(1, 61))
    assert [entry["lr"] for entry in log] == [learning_rate(config, i) for i in range(60)]
    assert all(
        entry["it_per_s"] > 0 and 0 <= entry["wait"] <= entry["outside"] < 1 for entry in log
    )
    losses = [entry["loss"] for entry in log]
    assert np.mean(losses[-15:]) < 0.97 * np.mean(losses[:15])
    assert [e["iteration"] for e in log if "psnr_y" in e] == list(range(2, 61, 2))
    assert log[-1]["psnr_y"] > score_of(start_of(config), config, photos) + 0.05


def test_the_weights_are_the_averaged_ones(run):
    config, out = run
    saved = load_checkpoint(out)
    assert_equal(load_file(out / "model.safetensors"), saved["ema"])
    assert any(not torch.equal(saved["ema"][k], v) for k, v in saved["model"].items())
    model, arch = load_network(out / "model.safetensors")
    expected = build_network(config).eval()
    expected.load_state_dict(saved["ema"])
    assert arch == "mambair"
    assert model.config == expected.config
    image = torch.rand(1, 3, 9, 11)
    with torch.inference_mode():
        assert torch.equal(model(image), expected(image))


def test_the_weights_name_their_origin(run):
    _, out = run
    metadata = read_state(out / "model.safetensors").metadata
    assert [metadata[f"mambair.{key}"] for key in ("task", "iterations", "scale")] == [
        "upscale",
        "60",
        "2",
    ]
    assert float(metadata["mambair.validation_psnr_y"]) == pytest.approx(
        read_log(out)[-1]["psnr_y"], abs=1e-3
    )


def test_validation_has_the_figure_of_the_benchmark(photos, tmp_path):
    """On whole images of a folder."""
    (tmp_path / "val").mkdir()
    for name in ("photo0.png", "osprey1.png"):
        (tmp_path / "val" / name).write_bytes((photos / name).read_bytes())
    train(recipe(iterations=1), photos, tmp_path / "run", val=tmp_path / "val")
    benchmark = open_benchmark(str(tmp_path / "val"), scale=2)
    network = Candidate(
        str(tmp_path / "run" / "model.safetensors"), benchmark.protocol, "whole", device="cpu"
    )
    (result,) = measure(benchmark, [network]).networks
    assert read_log(tmp_path / "run")[0]["psnr_y"] == pytest.approx(result.mean["psnr"], abs=1e-9)


def test_the_best_weights_are_kept(photos, tmp_path, monkeypatch):
    scores = iter([3.0, 9.0, 5.0, 4.0, 1.0])
    monkeypatch.setattr(module, "score", lambda *_: next(scores))
    monkeypatch.setattr(loop, "VALIDATIONS", 4)
    kept = []
    monkeypatch.setattr(
        module, "save_network", lambda path, model, state, notes: kept.append((path.name, state))
    )
    train(recipe(iterations=4), photos, tmp_path)
    assert [name for name, _ in kept] == [
        "best.safetensors",
        "best.safetensors",
        "model.safetensors",
    ]
    assert load_checkpoint(tmp_path)["best"] == 9.0


def test_progress_goes_to_stderr(photos, tmp_path, capsys):
    train(recipe(iterations=2), photos, tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4 images to train on, 2 to validate\n" in captured.err
    assert "patches of 8: batch 2, that is 1 times 2 on each of 1 cpu\n" in captured.err
    assert re.search(
        r"^2/2, loss 0\.\d+, \d+\.\d+ dB, .* it/s, 0 min left$", captured.err, re.MULTILINE
    )


# Recipes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iterations": -5}, "iterations must be"),
        ({"batch": 0}, "batch must be"),
        ({"network": {"deepths": [1]}}, "unknown key 'deepths'; did you mean 'depths'"),
        (
            {"network": {"upsampler": "pixelshuffle"}, "scale": 5},
            "no upsampler of this network reaches x5",
        ),
    ],
)
def test_recipes_that_were_changed_are_checked_too(photos, tmp_path, changes, words):
    with pytest.raises(CallError, match=words):
        train(recipe(**changes), photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Data


def test_folders_that_cannot_be_trained_on(photos, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()

    def message(data, **options):
        config = recipe(**{k: v for k, v in options.items() if k != "val"})
        with pytest.raises(CallError) as caught:
            train(config, data, tmp_path / "out", val=options.get("val"))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "holds no image" in message(folder)
    assert "is not a folder" in message(tmp_path / "absent")
    assert "holds no image" in message(photos, val=folder)
    assert (
        "too few images to put 6 aside for validation;"
        " give `val`, a folder of others, or set data.validation=1" in message(photos, validation=6)
    )
    assert re.search(
        r"none of 4 images can be used; .*smaller than 80 pixels", message(photos, patch=40)
    )
    assert "no image can be used for patches of 18" in message(
        photos, patch=[8, 18], iterations=[3, 3]
    )
    assert "none is left to train on" in message(photos, val=photos)
    for i in range(4):
        (folder / f"{i}.png").write_text("no image")
    assert re.search(r"none of 2 images can be used; .*\.png: not an image", message(folder))


def test_damaged_images_are_skipped_with_the_reason(photos, tmp_path, capsys):
    """In whatever part of the data they are, when they are found: the heads of some are whole."""
    folder = tmp_path / "data"
    folder.mkdir()
    good = (photos / "photo0.png").read_bytes()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(good if i % 2 else good[:400])
    train(recipe(iterations=20, validation=4), folder, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    skipped = [line for line in lines if line.startswith("skipped: ")]
    expected = [str(folder / f"{i}.png") for i in range(0, 10, 2)]
    assert sorted(line.split(": ")[1] for line in skipped) == expected


def test_of_many_that_are_skipped_some_are_named(photos, tmp_path, capsys):
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for i in range(30):
        (tmp_path / f"{i}.png").touch()
    train(recipe(iterations=1), tmp_path, tmp_path / "out", val=photos)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("skipped: ")]) == 10
    assert "images skipped in all: 30" in lines


def test_a_net_that_does_not_enlarge_starts_as_the_identity_and_learns(photos, tmp_path):
    config = recipe(**DENOISE, iterations=60, batch=4, lr=4e-3)
    with torch.no_grad():
        image = torch.rand(1, 3, 9, 11)
        torch.testing.assert_close(start_of(config)(image), image, rtol=0, atol=1e-6)
    train(config, photos, tmp_path)
    _, pairs, _ = open_data(config, Folders(photos), CPU)
    untouched = np.mean([psnr(pair.low.clip(0, 1) * 255, pair.high) for pair in pairs])
    assert score_of(start_of(config), config, photos) == pytest.approx(untouched, abs=0.01)
    assert read_log(tmp_path)[-1]["psnr"] > untouched + 1
    assert load_network(tmp_path / "model.safetensors")[0].config.upscale == 1


def test_given_pairs_are_trained_on(photos, tmp_path):
    """As the recipe would degrade them: x2 by bicubic."""
    from mambair_cli.images.folders import read_rgb
    from mambair_cli.images.io import Image as Picture
    from mambair_cli.images.io import write_image
    from mambair_cli.images.resize import downscale

    (tmp_path / "X2").mkdir()
    for path in photos.iterdir():
        write_image(tmp_path / "X2" / f"{path.stem}x2.png", Picture(downscale(read_rgb(path), 2)))
    for name, low in (("made", None), ("given", tmp_path / "X2")):
        loop.train(recipe(iterations=2), Folders(photos, None, low), tmp_path / name, settings=CPU)
    assert [e["loss"] for e in read_log(tmp_path / "made")] == [
        e["loss"] for e in read_log(tmp_path / "given")
    ]


def test_the_discriminator_stage(photos, tmp_path, monkeypatch):
    """Without VGG19, as its weights are the user's. It resumes exactly too."""
    loss = {"adversarial": 0.5, "discriminator_lr": 1e-3}
    config = recipe(iterations=4, loss=loss)
    train(config, photos, tmp_path / "whole")
    train(recipe(iterations=4), photos, tmp_path / "plain")
    losses = [read_log(tmp_path / name)[0]["loss"] for name in ("whole", "plain")]
    # it tosses a coin
    assert losses[0] == pytest.approx(losses[1] + 0.5 * math.log(2), abs=0.1)
    with monkeypatch.context() as patch:
        before_iteration(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path / "broken")
    start = load_checkpoint(tmp_path / "broken")["adversary"]["discriminator"]
    train(config, photos, tmp_path / "broken", resume=True)
    saved = load_checkpoint(tmp_path / "broken")
    assert_equal(saved, load_checkpoint(tmp_path / "whole"))
    moved = [
        (v - start[k]).abs().max()
        for k, v in saved["adversary"]["discriminator"].items()
        if v.ndim == 4
    ]
    assert min(moved) > 1e-4


def test_both_stages_of_a_gan_training(photos, tmp_path):
    """L1 alone, then from its weights with features of a random VGG19 and a discriminator."""
    torch.save(PerceptualLoss().state_dict(), tmp_path / "vgg.pth")
    first = train(recipe(iterations=2), photos, tmp_path / "first")
    loss = {"perceptual": 1.0, "adversarial": 0.1}
    settings = Settings("cpu", vgg=tmp_path / "vgg.pth")
    second = train(
        recipe(iterations=2, loss=loss),
        photos,
        tmp_path / "second",
        init=str(first),
        settings=settings,
    )
    # of the same batch
    losses = [read_log(tmp_path / name)[0]["loss"] for name in ("first", "second")]
    assert losses[1] > losses[0] + 0.05
    assert load_network(second)[0].config == load_network(first)[0].config


def test_a_perceptual_loss_needs_its_weights(photos, tmp_path):
    config = recipe(loss={"perceptual": 1.0})
    with pytest.raises(CallError, match=r"needs VGG19's weights.*vgg19-dcbb9e9d\.pth as `vgg`"):
        train(config, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_iteration_minimises_l1(photos, tmp_path):
    """The loss in the log is that of the untrained net on the first batch."""
    config = recipe(iterations=1)
    train(config, photos, tmp_path)
    pairs, _, _ = open_data(config, Folders(photos), CPU)
    low, high = pairs.batch(0, range(2), 8, 2)
    with torch.no_grad():
        expected = nn.functional.l1_loss(start_of(config)(low), high).item()
    assert read_log(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)
