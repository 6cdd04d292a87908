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
from torch._dynamo.utils import counters
from training import (
    CPU,
    DENOISE,
    STOPPABLE,
    assert_equal,
    before_iteration,
    load_checkpoint,
    read_log,
    recipe,
    train,
    write_photos,
)

from mambair_cli.archs import layers
from mambair_cli.bench.quality.candidates import Candidate
from mambair_cli.bench.quality.measure import open_benchmark
from mambair_cli.bench.quality.measure import run as measure
from mambair_cli.errors import BackendError, CallError
from mambair_cli.images.metrics import psnr
from mambair_cli.models.recognise import load_network
from mambair_cli.models.weights import read_state
from mambair_cli.training import checkpoints, loop
from mambair_cli.training import state as module
from mambair_cli.training.inputs import Folders, Settings, open_data
from mambair_cli.training.losses import PerceptualLoss
from mambair_cli.training.recipe import build_network, read_recipe
from mambair_cli.training.schedule import learning_rate
from mambair_cli.training.validation import restored, score


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def start_of(config):
    torch.manual_seed(config.seed)
    model = build_network(config)
    model.start_simply()
    return model


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
    _, result = measure(benchmark, [network])["results"]
    assert read_log(tmp_path / "run")[0]["psnr_y"] == pytest.approx(
        result["mean"]["psnr"], abs=1e-9
    )


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


def test_inputs_to_validate_with_belong_to_truths(photos, tmp_path):
    with pytest.raises(
        CallError, match="`val_low` holds the degraded forms of `val`; give that too"
    ):
        open_data(recipe(), Folders(photos, val_low=tmp_path), CPU)


def test_no_memory_for_photographs_is_none(photos):
    pairs, _, _ = open_data(recipe(), Folders(photos), Settings("cpu", cache=0))
    assert pairs.photos.memory == 0


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


# The arithmetic


@pytest.mark.parametrize(
    ("ema", "decays"), [(0.999, (1 / 11, 2 / 12)), (0.1, (1 / 11, 0.1)), (0.0, (0, 0))]
)
def test_averaged_weights(photos, tmp_path, monkeypatch, ema, decays):
    """avg <- decay avg + (1 - decay) weights after each step; the decay grows up to `ema`."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    config = recipe(iterations=2, ema=ema)
    train(config, photos, tmp_path)
    saved = [torch.load(path, weights_only=True) for path in checkpoints.paths(tmp_path)[::-1]]
    average = {k: v.detach().double() for k, v in start_of(config).state_dict().items()}
    for decay, state in zip(decays, saved, strict=True):
        average = {
            k: decay * v + (1 - decay) * state["model"][k].double() for k, v in average.items()
        }
        for key, value in average.items():
            torch.testing.assert_close(state["ema"][key].double(), value, rtol=1e-5, atol=1e-6)
    assert any((v - saved[0]["model"][k]).abs().max() > 1e-4 for k, v in saved[1]["model"].items())


def test_the_gradient_is_clipped(photos, tmp_path, monkeypatch):
    """Adam hides the size of a gradient, but its first moment after one step shows it."""
    train(recipe(iterations=1, clip=1e-3), photos, tmp_path / "clipped")
    train(recipe(iterations=1, clip=0.0), photos, tmp_path / "free")
    norms = []
    for name in ("clipped", "free"):
        state = load_checkpoint(tmp_path / name)["optimiser"]["state"]
        norms.append(
            math.sqrt(sum((s["exp_avg"] / 0.1).square().sum().item() for s in state.values()))
        )
    assert norms[0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] > 2e-3


@pytest.mark.parametrize("size", [1, 3])
def test_accumulated_parts_make_the_same_step(photos, tmp_path, size):
    """In double precision: six samples at once, or in parts; some of the batches are mixed."""
    config, results = recipe(iterations=3, batch=6, loss={"pixel": "charbonnier"}, mixup=1.2), []
    for name, settings in (("whole", 6), ("parts", size)):
        train(
            config, photos, tmp_path / name, settings=Settings("cpu", "fp64", device_batch=settings)
        )
        results.append([entry["loss"] for entry in read_log(tmp_path / name)])
    assert results[0] == pytest.approx(results[1], rel=1e-12)
    weights = [load_checkpoint(tmp_path / name)["model"] for name in ("whole", "parts")]
    for key, value in weights[0].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, weights[1][key], rtol=1e-9, atol=1e-12)


def test_stages_have_their_own_patches_and_batches(photos, tmp_path, monkeypatch):
    shapes, original = [], module.add_gradients

    def add_gradients(model, low, *rest):
        shapes.append(low.shape)
        return original(model, low, *rest)

    monkeypatch.setattr(module, "add_gradients", add_gradients)
    config = recipe(iterations=[2, 1], patch=[8, 12], batch=[3, 2], mixup=1.2, validation=1)
    train(config, photos, tmp_path)
    assert [tuple(shape) for shape in shapes] == [(3, 3, 8, 8), (3, 3, 8, 8), (2, 3, 12, 12)]


def test_recomputing_blocks_changes_nothing_but_memory(photos, tmp_path):
    config = recipe(**STOPPABLE | {"iterations": 2})
    train(config, photos, tmp_path / "kept")
    train(config, photos, tmp_path / "again", settings=Settings("cpu", recompute=True))
    assert_equal(
        load_checkpoint(tmp_path / "kept")["model"], load_checkpoint(tmp_path / "again")["model"]
    )


# torch's own
@pytest.mark.filterwarnings("ignore:.*autograd:DeprecationWarning")
def test_a_compiled_network_learns_the_same(photos, tmp_path, monkeypatch):
    """Traced as on a GPU, in one graph for each shape, and run by the same kernels as without."""
    monkeypatch.setattr(layers, "_ONEDNN", False)
    monkeypatch.setattr(
        module, "compile_network", lambda model, device: model.compile(backend="aot_eager")
    )
    counters.clear()
    config = recipe(iterations=3)
    for name, compiled in (("plain", False), ("compiled", True)):
        train(config, photos, tmp_path / name, settings=Settings("cpu", compile=compiled))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    losses = [
        [entry["loss"] for entry in read_log(tmp_path / name)] for name in ("plain", "compiled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert load_network(tmp_path / "compiled" / "model.safetensors")[0].config.depths == (1,)


def test_compiling_is_for_gpus(photos, tmp_path):
    with pytest.raises(
        BackendError, match="`compile` is for NVIDIA and AMD GPUs, not for cpu; leave it out"
    ):
        train(recipe(), photos, tmp_path / "out", settings=Settings("cpu", compile=True))
    assert not (tmp_path / "out").exists()


def test_bf16_is_close(photos, tmp_path):
    for precision in ("fp32", "bf16"):
        train(
            recipe(iterations=2), photos, tmp_path / precision, settings=Settings("cpu", precision)
        )
    # the first loss is before any step
    fp32, bf16 = (read_log(tmp_path / name)[-1]["loss"] for name in ("fp32", "bf16"))
    assert fp32 != bf16
    assert fp32 == pytest.approx(bf16, rel=0.01)
    assert load_file(tmp_path / "bf16" / "model.safetensors")["norm.weight"].dtype == torch.float32


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
