import errno
import io
import json
import math
import os
import re
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mambair_cli import train as module
from mambair_cli.datasets import Pair, TrainingPairs, list_images, read_pairs, read_rgb
from mambair_cli.errors import CallError, CheckpointError, TrainingError
from mambair_cli.image_io import Image, write_image
from mambair_cli.train import RECIPES, TrainConfig, build_network, learning_rate, read_recipe, train, validate
from mambair_cli.weights import load_network

DATA = Path(__file__).parent / "data"
RECIPE = """
scale = 2
seed = 1
[network]
arch = "mambair"
embed_dim = 16
depths = [1]
d_state = 2
expand = 1.0
conv_block = "light_c"
upsampler = "pixelshuffledirect"
[data]
patch = 8
batch = 2
validation = 2
[optimiser]
lr = 2e-3
betas = [0.9, 0.99]
weight_decay = 0.01
clip = 1.0
ema = 0.9
[schedule]
iterations = 6
warmup = 0.1
"""


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of six crops of photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("dragonfly", "osprey", "photo"):
        image = read_rgb(DATA / f"{name}.png")
        for i in range(2):
            write_image(folder / f"{name}{i}.png", Image(image[40 : 73 + i, 40 * i : 40 * i + 36]))
    return folder


def recipe(**changes) -> TrainConfig:
    """RECIPE with other values; the names of keys are unique but for `network`, which is updated."""
    config = module._strict(TrainConfig, module.tomllib.loads(RECIPE), "RECIPE")
    parts = {name: getattr(config, name) for name in ("data", "optimiser", "schedule")}
    for key, value in changes.items():
        if key == "network":
            config = replace(config, network=config.network | value)
        elif key in ("scale", "seed"):
            config = replace(config, **{key: value})
        else:
            (name,) = (name for name, part in parts.items() if hasattr(part, key))
            parts[name] = replace(parts[name], **{key: value})
    return replace(config, **parts)


def load_checkpoint(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)


def read_log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_equal(a, b):
    """Same keys, same bits, at any depth."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = [a[key] for key in a], [b[key] for key in a]
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def before_batch(monkeypatch, iteration, action):
    """Run `action` when the batch of `iteration` is asked for; what it returns, if anything, is the batch."""
    original = TrainingPairs.batch

    def batch(self, i, size):
        given = action() if i == iteration else None
        return original(self, i, size) if given is None else given

    monkeypatch.setattr(TrainingPairs, "batch", batch)


def start_of(config):
    torch.manual_seed(config.seed)
    model = build_network(config)
    model.start_as_bilinear()
    return model


# A whole run


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "deep" / "run"
    config = recipe(iterations=60, batch=4)
    assert train(config, photos, out) == out / "model.safetensors"
    return config, out


def test_a_run_writes_its_files_and_no_others(run):
    config, out = run
    names = sorted(path.name for path in out.iterdir())
    assert names == ["checkpoint.pt", "log.jsonl", "model.safetensors", "recipe.json"]
    assert read_recipe(str(out / "recipe.json")) == config


def test_a_run_learns(run, photos):
    config, out = run
    log = read_log(out)
    assert [entry["iteration"] for entry in log] == list(range(1, 61))
    assert [entry["lr"] for entry in log] == [learning_rate(config, i) for i in range(60)]
    assert all(entry["it_per_s"] > 0 for entry in log)
    losses = [entry["loss"] for entry in log]
    assert np.mean(losses[-15:]) < 0.97 * np.mean(losses[:15])
    _, held_out = module._split(photos, None, 2)
    pairs, _ = read_pairs(held_out, 2, 8)
    start = validate(start_of(config), pairs, 2)
    assert log[-1]["psnr_y"] > start + 0.05


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
    _, metadata = module.read_state(out / "model.safetensors")
    assert (metadata["mambair.iterations"], metadata["mambair.scale"]) == ("60", "2")
    score = read_log(out)[-1]["psnr_y"]
    assert float(metadata["mambair.validation_psnr_y"]) == pytest.approx(score, abs=1e-3)


def test_progress_goes_to_stderr(photos, tmp_path, capsys):
    train(recipe(iterations=2), photos, tmp_path / "out")
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.strip().split("\r")[-1]
    assert "2/2" in last
    assert re.search(r"<.*it/s, loss=0\.\d+, psnr=\d+\.\d+", last)


class Add(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, image):
        return image + self.value


def test_validation_is_the_metric_of_the_benchmarks():
    """A net that enlarges exactly, but beyond the range of an image; then truths that differ by one level."""

    class Enlarge(nn.Module):
        def forward(self, low):
            assert not self.training
            return low.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3 - 1  # clipped

    low = np.array([[[0, 0, 0], [255, 255, 255]] * 4] * 8, np.uint8)
    high = low.repeat(2, 0).repeat(2, 1)
    high[:2], high[-2:], high[:, :2], high[:, -2:] = 99, 99, 99, 99  # the border does not count
    assert validate(Enlarge(), [Pair("a", low, high)], 2) == math.inf
    gray = np.full((8, 8, 3), 100, np.uint8)
    darker = nn.Sequential(nn.Upsample(scale_factor=2), Add(-0.4 / 255))  # rounded, not cut
    assert validate(darker, [Pair("gray", gray, gray.repeat(2, 0).repeat(2, 1))], 2) == math.inf
    off = high.copy()
    off[2:-2, 2:-2] ^= 1
    expected = 10 * math.log10(255**2 / (219 / 255) ** 2)
    assert validate(Enlarge(), [Pair("b", low, off)] * 2, 2) == pytest.approx(expected)


# Resuming


STOPPABLE = {"iterations": 8, "network": {"depths": [1, 1], "drop_path_rate": 0.4}}  # draws random numbers


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    train(recipe(**STOPPABLE), photos, out)
    return out


@pytest.mark.parametrize(
    ("number", "iteration"), [(signal.SIGTERM, 3), (signal.SIGINT, 0), (signal.SIGINT, 7)], ids=int.__repr__
)
def test_a_stopped_run_resumes_exactly(photos, tmp_path, monkeypatch, unbroken, number, iteration):
    config, handlers = recipe(**STOPPABLE), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        before_batch(patch, iteration, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(tmp_path)["iteration"] == iteration + 1
    assert not (tmp_path / "model.safetensors").exists()
    torch.rand(7)  # the state of the process is another one
    train(config, photos, tmp_path, resume=True)
    assert_equal(load_checkpoint(tmp_path), load_checkpoint(unbroken))
    assert_equal(load_file(tmp_path / "model.safetensors"), load_file(unbroken / "model.safetensors"))
    logs = [[e | {"it_per_s": 0} for e in read_log(out)] for out in (tmp_path, unbroken)]
    assert logs[0] == logs[1]


def test_a_killed_run_goes_on_from_the_last_checkpoint(photos, tmp_path, monkeypatch, unbroken):
    """Its log may be ahead of its checkpoint, and end within a line."""
    config = recipe(**STOPPABLE)
    with monkeypatch.context() as patch:
        before_batch(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(config, photos, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"iteration": 5, "loss": 9}\n{"iteration": 6, "lo')
    train(config, photos, tmp_path, resume=True)
    assert [entry["iteration"] for entry in read_log(tmp_path)] == list(range(1, 9))
    assert read_log(tmp_path)[4]["loss"] == read_log(unbroken)[4]["loss"]


def test_a_finished_run_can_be_resumed(photos, tmp_path):
    config = recipe(iterations=2)
    train(config, photos, tmp_path)
    before, log = load_file(tmp_path / "model.safetensors"), (tmp_path / "log.jsonl").read_text()
    (tmp_path / "model.safetensors").unlink()
    train(config, photos, tmp_path, resume=True)
    assert_equal(load_file(tmp_path / "model.safetensors"), before)
    assert (tmp_path / "log.jsonl").read_text() == log


def test_the_recipe_of_a_run_resumes_it(photos, tmp_path):
    train(recipe(iterations=1), photos, tmp_path)
    train(read_recipe(str(tmp_path / "recipe.json")), photos, tmp_path, resume=True)


@pytest.mark.parametrize("changes", [{"lr": 1e-3}, {"iterations": 7}, {"seed": 2}, {"network": {"d_state": 3}}])
def test_another_recipe_does_not_resume(run, photos, changes):
    _, out = run
    before = {path: path.read_bytes() for path in out.iterdir()}
    other = recipe(**{"iterations": 60, "batch": 4} | changes)
    with pytest.raises(CallError, match=r"another recipe; resume with .*/recipe\.json"):
        train(other, photos, out, resume=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_nothing_to_resume(photos, tmp_path):
    with pytest.raises(CallError, match="nothing to resume"):
        train(recipe(), photos, tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["text", "cut", "foreign"])
def test_a_damaged_checkpoint_is_named(run, photos, tmp_path, damage):
    config, out = run
    path = tmp_path / "checkpoint.pt"
    if damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(b"text" if damage == "text" else (out / path.name).read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is no checkpoint of a training run"):
        train(config, photos, tmp_path, resume=True)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_a_run_is_not_overwritten(photos, tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(CallError, match="holds a run already; give --resume"):
        train(recipe(), photos, tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"precious")]


def test_a_new_run_starts_a_new_log(photos, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"iteration": 99}\n')  # its run ended before any checkpoint
    train(recipe(iterations=2), photos, tmp_path)
    assert [entry["iteration"] for entry in read_log(tmp_path)] == [1, 2]


# What goes wrong on the way


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    write, checkpoints = Path.write_bytes, []

    def fail_half_way(path, content):
        if "checkpoint.pt" in path.name:
            if len(checkpoints) == 3:
                write(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            checkpoints.append(content)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail_half_way)
    with pytest.raises(TrainingError, match=r"cannot be written: .*No space left"):
        train(recipe(), photos, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == checkpoints[2]
    assert load_checkpoint(tmp_path)["iteration"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pt", "log.jsonl", "recipe.json"]


def test_a_file_in_place_of_the_run(photos, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(TrainingError, match="out cannot be written"):
        train(recipe(), photos, tmp_path / "out")


@pytest.mark.parametrize("kind", [math.nan, math.inf, "gradient"])
def test_divergence_ends_the_run_before_it_spoils_the_checkpoint(photos, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    handler = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    if kind != "gradient":
        bad = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 16, 16), kind)
        before_batch(monkeypatch, 3, lambda: bad)
    else:
        clip, calls = nn.utils.clip_grad_norm_, []

        def overflow(*arguments, **options):
            calls.append(1)
            return torch.tensor(math.inf) if len(calls) == 4 else clip(*arguments, **options)

        monkeypatch.setattr(nn.utils, "clip_grad_norm_", overflow)
    with pytest.raises(TrainingError, match=r"diverged at iteration 3; lower optimiser\.lr"):
        train(recipe(iterations=300), photos, tmp_path)  # where the log is written every 6 iterations
    saved = load_checkpoint(tmp_path)
    assert saved["iteration"] == 3
    assert all(v.isfinite().all() for part in ("model", "ema") for v in saved[part].values())
    assert signal.getsignal(signal.SIGINT) is handler


# Starting from weights


def test_init_takes_what_fits_and_names_what_is_new(run, photos, tmp_path, capsys):
    _, out = run
    config = recipe(scale=3, lr=1e-9, weight_decay=0, iterations=1)
    result = load_file(train(config, photos, tmp_path, init=out / "model.safetensors"))
    note = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("from "))
    assert note == f"from {out / 'model.safetensors'}; new: upsample.0.bias, upsample.0.weight"
    given = load_file(out / "model.safetensors")
    for key in given.keys() - {"upsample.0.bias", "upsample.0.weight"}:
        torch.testing.assert_close(result[key], given[key], rtol=0, atol=1e-7)
    assert result["upsample.0.weight"].shape[0] == 27


def test_init_that_fits_wholly(run, photos, tmp_path, capsys):
    _, out = run
    checkpoint = tmp_path / "foreign.pt"
    given = load_file(out / "model.safetensors")
    torch.save({"params_ema": {f"module.{k}": v.half() for k, v in given.items()}}, checkpoint)
    result = load_file(train(recipe(lr=1e-9, iterations=1), photos, tmp_path / "out", init=checkpoint))
    assert "new: nothing\n" in capsys.readouterr().err
    for key, value in given.items():
        assert result[key].dtype == torch.float32
        torch.testing.assert_close(result[key], value.half().float(), rtol=0, atol=1e-7)


def test_init_that_fits_nothing(photos, tmp_path):
    other = {"conv_first.weight": torch.zeros(7, 3, 3, 3), "other": torch.zeros(2)}
    save_file(other, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_text("no weights")
    for name, error, words in (
        ("a", CallError, r"no tensor of .*a\.safetensors fits"),
        ("b", CheckpointError, r"b\.safetensors is no readable"),
        ("c", CallError, r"c\.safetensors is missing"),
    ):
        with pytest.raises(error, match=words):
            train(recipe(), photos, tmp_path / "out", init=tmp_path / f"{name}.safetensors")
    assert not (tmp_path / "out").exists()


# Recipes


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_bundled_recipes(path):
    config = read_recipe(path.stem)
    assert config == read_recipe(str(path))
    model = build_network(config)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 4, 5)).shape == (1, 3, 4 * config.scale, 5 * config.scale)


def test_recipes_become_typed(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.replace("weight_decay = 0.01", "weight_decay = 0"))
    config = read_recipe(str(path))
    assert config == recipe(weight_decay=0.0)
    assert config.optimiser.betas == (0.9, 0.99)
    assert type(config.optimiser.weight_decay) is float
    assert build_network(config).config.depths == (1,)


def test_a_network_may_leave_keys_to_their_defaults():
    config = replace(recipe(), network={"arch": "mambair", "embed_dim": 16, "depths": [1]})
    assert build_network(config).config.conv_block == "classic"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # keys
        ("patch = 8", "pach = 8", r"own\.toml, \[data\]: unknown key 'pach'; did you mean 'patch'\?"),
        ("[optimiser]", "[optimizer]", r"own\.toml: unknown key 'optimizer'; did you mean 'optimiser'\?"),
        ("embed_dim", "embeddim", r"\[network\]: unknown key 'embeddim'; did you mean 'embed_dim'\?"),
        ("seed = 1", "seed = 1\nzzz = 2", r"own\.toml: unknown key 'zzz'; there are scale, seed, network"),
        ("depths = [1]", "depths = [1]\nupscale = 2", r"\[network\]: unknown key 'upscale'; .* 'scale'"),
        ("batch = 2\n", "", r"own\.toml, \[data\]: missing batch$"),
        ("scale = 2\nseed = 1\n", "", r"own\.toml: missing scale, seed$"),
        ('arch = "mambair"\n', "", r"arch must be one of .*mambair.*, not None"),
        ('"mambair"', '"mambo"', r"own\.toml, \[network\]: arch must be one of .*mambair.*, not 'mambo'"),
        ('"mambair"', '["mambair"]', r"arch must be one of"),
        # types
        ("lr = 2e-3", 'lr = "fast"', r"own\.toml, \[optimiser\]: lr must be a number from .*, not 'fast'"),
        ("lr = 2e-3", "lr = true", r"lr must be a number from .*, not True"),
        ("batch = 2", "batch = 2.0", r"\[data\]: batch must be a whole number from 1 .*, not 2\.0"),
        ("batch = 2", "batch = true", r"batch must be a whole number"),
        ("[0.9, 0.99]", "[0.9]", r"betas must be a list of 2 numbers, not \[0\.9\]"),
        ("[0.9, 0.99]", "0.9", r"betas must be a list of 2 numbers, not 0\.9"),
        ("[0.9, 0.99]", '[0.9, "b"]', r"betas must be a number from 0 to 0\.9999, not 'b'"),
        ("depths = [1]", "depths = 1", r"own\.toml, \[network\]: depths must be a list of numbers, not 1"),
        ("depths = [1]", "depths = []", r"depths must be a list of numbers"),
        ('"light_c"', '"light_d"', r"conv_block must be one of 'classic', .*'light_c', not 'light_d'"),
        ("iterations = 6\nwarmup = 0.1", "", r"own\.toml, \[schedule\]: missing iterations, warmup"),
        ("scale = 2\n", "scale = 2\nschedule = 3\n", None),
        # ranges
        ("iterations = 6", "iterations = -6", r"iterations must be a whole number from 1 .*, not -6"),
        ("iterations = 6", "iterations = 0", r"iterations must be a whole number from 1"),
        ("batch = 2", "batch = 0", r"batch must be a whole number from 1"),
        ("patch = 8", "patch = -8", r"patch must be a whole number from 1"),
        ("validation = 2", "validation = 0", r"validation must be a whole number from 1"),
        ("scale = 2", "scale = 1", r"scale must be a whole number from 2 to 8, not 1"),
        ("seed = 1", "seed = -1", r"seed must be a whole number from 0"),
        ("lr = 2e-3", "lr = 0", r"lr must be a number from"),
        ("lr = 2e-3", "lr = nan", r"lr must be a number from .*, not nan"),
        ("lr = 2e-3", "lr = inf", r"lr must be a number from .*, not inf"),
        ("[0.9, 0.99]", "[0.9, 1.0]", r"betas must be a number from 0 to 0\.9999, not 1\.0"),
        ("weight_decay = 0.01", "weight_decay = -0.1", r"weight_decay must be a number from 0"),
        ("clip = 1.0", "clip = 0.0", r"clip must be a number from"),
        ("ema = 0.9", "ema = 1.1", r"ema must be a number from 0 to 1, not 1\.1"),
        ("warmup = 0.1", "warmup = 3", r"warmup must be a number from 0 to 1, not 3"),
        ("embed_dim = 16", "embed_dim = 0", r"embed_dim must be a whole number from 6"),
        ("depths = [1]", "depths = [1, 0]", r"depths must be a whole number from 1 .*, not 0"),
        ("depths = [1]", "depths = [1]\nin_chans = 1", r"in_chans must be a whole number from 3 to 3"),
        ('"pixelshuffledirect"', '""', r"upsampler must not be empty"),
        # syntax
        ("seed = 1", "seed = ", r"own\.toml is no valid TOML: .*line"),
        ("seed = 1", "seed = 1\nseed = 2", r"own\.toml is no valid TOML"),
    ],
)
def test_recipes_are_strict(tmp_path, old, new, words):
    path = tmp_path / "own.toml"
    assert RECIPE.count(old) == 1
    text = RECIPE.replace(old, new)
    if words is None:
        text, words = text.split("[schedule]")[0], r"own\.toml: schedule must be a table, not 3"
    path.write_text(text)
    with pytest.raises(CallError, match=words):
        read_recipe(str(path))


def test_clip_may_be_infinite(tmp_path):
    (tmp_path / "own.toml").write_text(RECIPE.replace("clip = 1.0", "clip = inf"))
    assert read_recipe(str(tmp_path / "own.toml")).optimiser.clip == math.inf


def test_unreadable_recipes(tmp_path):
    with pytest.raises(CallError, match=r"no recipe 'tiny-x9'; there are .*tiny-x2, .*\.toml file"):
        read_recipe("tiny-x9")
    with pytest.raises(CallError, match="no recipe"):
        read_recipe(str(tmp_path))
    mistyped = json.dumps(asdict(recipe()) | {"sede": 1}).encode()
    for name, content, words in (
        ("binary.toml", b"\xff\xfe\x00", "no valid TOML"),
        ("cut.json", b'{"scale": 2', "no valid JSON"),
        ("list.json", b"[1]", "must be a table"),
        ("key.json", mistyped, r"key\.json: unknown key 'sede'.*'seed'"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CallError, match=words):
            read_recipe(str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iterations": -5}, "iterations must be"),
        ({"batch": 0}, "batch must be"),
        ({"network": {"deepths": [1]}}, "unknown key 'deepths'; did you mean 'depths'"),
        ({"network": {"upsampler": "pixelshuffle"}, "scale": 5}, "no upsampler of this network reaches x5"),
    ],
)
def test_recipes_that_were_changed_are_checked_too(photos, tmp_path, changes, words):
    with pytest.raises(CallError, match=words):
        train(recipe(**changes), photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Folders


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
    assert "too few images to put 6 aside for validation; give --val" in message(photos, validation=6)
    assert re.search(r"none of 4 images can be used; .*smaller than 80 pixels", message(photos, patch=40))
    assert "none is left to train on" in message(photos, val=photos)
    for i in range(4):
        (folder / f"{i}.png").write_text("no image")
    assert re.search(r"none of 2 images can be used; .*\.png: not an image", message(folder))


def test_damaged_images_are_skipped_with_the_reason(photos, tmp_path, capsys):
    """In whatever part of the data they are."""
    folder = tmp_path / "data"
    folder.mkdir()
    good = (photos / "photo0.png").read_bytes()
    for i in range(10):
        (folder / f"{i}.png").write_bytes(good if i % 2 else good[:100])
    files, held_out = module._split(folder, None, 4)
    damaged = [sum(int(path.stem) % 2 == 0 for path in part) for part in (files, held_out)]
    assert min(damaged) > 0
    train(recipe(iterations=1, validation=4), folder, tmp_path / "out")
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: ")]
    expected = [str(folder / f"{i}.png") for i in range(0, 10, 2)]
    assert sorted(line.split(": ")[1] for line in skipped) == expected
    assert all("damaged" in line for line in skipped)


def test_held_out_images_are_not_trained_on(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").touch()
    files, held_out = module._split(tmp_path, None, 8)
    assert len(held_out) == len(set(held_out)) == 8
    assert sorted(files + held_out) == list_images(tmp_path)
    assert files == sorted(files)
    assert module._split(tmp_path, None, 8) == (files, held_out)
    # A resumed run relies on the choice, so it stays the same from version to version.
    assert sorted(int(path.stem) for path in held_out) == [0, 1, 2, 7, 8, 12, 15, 19]


def test_validation_images_within_the_data_are_not_trained_on(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("a.png", "b.png", "val/c.png"):
        (tmp_path / name).touch()
    files, held_out = module._split(tmp_path, tmp_path / "." / "val" / ".." / "val", 8)
    assert files == [tmp_path / "a.png", tmp_path / "b.png"]
    assert [path.name for path in held_out] == ["c.png"]


# The arithmetic


@pytest.mark.parametrize(("total", "share", "warmup"), [(1000, 0.03, 30), (50, 0, 1), (10, 1, 10), (1, 0.5, 1)])
def test_learning_rate(total, share, warmup):
    config = recipe(lr=0.5, iterations=total, warmup=share)
    rates = [learning_rate(config, i) for i in range(total + 1)]
    assert rates[:warmup] == pytest.approx([0.5 * (i + 1) / warmup for i in range(warmup)])
    assert max(rates) == rates[warmup - 1] == 0.5
    if warmup < total:
        assert rates[warmup] == 0.5
        assert rates[(warmup + total) // 2] == pytest.approx(0.25, rel=0.1)
        assert all(a > b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
        assert 0 < rates[total - 1] < 0.5 * 3 / (total - warmup) ** 2
        assert rates[total] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("ema", "decays"), [(0.999, (1 / 11, 2 / 12)), (0.1, (1 / 11, 0.1)), (0.0, (0, 0))])
def test_averaged_weights(photos, tmp_path, monkeypatch, ema, decays):
    """avg <- decay avg + (1 - decay) weights after each step, from the start; the decay grows up to `ema`."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    saved, write = [], module.write_atomically

    def keep(path, content):
        if path.name == "checkpoint.pt":
            saved.append(torch.load(io.BytesIO(content), weights_only=True))
        write(path, content)

    monkeypatch.setattr(module, "write_atomically", keep)
    config = recipe(iterations=2, ema=ema)
    train(config, photos, tmp_path)
    average = {k: v.detach().double() for k, v in start_of(config).state_dict().items()}
    for decay, state in zip(decays, saved, strict=False):
        average = {k: decay * v + (1 - decay) * state["model"][k].double() for k, v in average.items()}
        for key, value in average.items():
            torch.testing.assert_close(state["ema"][key].double(), value, rtol=1e-5, atol=1e-6)
    assert any((v - saved[0]["model"][k]).abs().max() > 1e-4 for k, v in saved[1]["model"].items())


def test_weight_decay_is_for_matrices_only():
    """Steps without gradient: what shrinks is decayed."""
    model = build_network(recipe())
    optimiser = module._optimiser(model, recipe(lr=0.1, weight_decay=0.5).optimiser)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    kinds = set()
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and not name.endswith("A_logs")
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1))
        kinds.add((decayed, name.rsplit(".", 1)[-1]))
    never = {(False, name) for name in ("bias", "A_logs", "Ds", "skip_scale")}
    assert {(True, "weight"), *never} <= kinds


def test_the_gradient_is_clipped(photos, tmp_path, monkeypatch):
    """Adam hides the size of a gradient, but its first moment after one step shows it."""
    train(recipe(iterations=1, clip=1e-3), photos, tmp_path / "clipped")
    train(recipe(iterations=1, clip=math.inf), photos, tmp_path / "free")
    norms = []
    for name in ("clipped", "free"):
        state = load_checkpoint(tmp_path / name)["optimiser"]["state"]
        norms.append(math.sqrt(sum((s["exp_avg"] / 0.1).square().sum().item() for s in state.values())))
    assert norms[0] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1] > 2e-3


def test_an_iteration_minimises_l1(photos, tmp_path):
    """The loss in the log is that of the untrained net on the first batch."""
    config = recipe(iterations=1)
    train(config, photos, tmp_path)
    files, _ = module._split(photos, None, 2)
    low, high = TrainingPairs(files, 2, 8, config.seed).batch(0, 2)
    with torch.no_grad():
        expected = nn.functional.l1_loss(start_of(config)(low), high).item()
    assert read_log(tmp_path)[0]["loss"] == pytest.approx(expected, rel=1e-5)
