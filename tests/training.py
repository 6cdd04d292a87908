"""A small recipe, photographs to train on, and what watches and disturbs a run; shared by tests."""

import json
from dataclasses import asdict

import numpy as np
import torch
from calls import DATA

from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.system.texts import parse_toml
from mambair_cli.training import checkpoints, loop, state
from mambair_cli.training.config import TrainConfig
from mambair_cli.training.data import TrainingPairs
from mambair_cli.training.inputs import Folders, Settings
from mambair_cli.training.photos import find_sources
from mambair_cli.training.recipe import build_network, checked

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
# draws random numbers
STOPPABLE = {"iterations": 8, "network": {"depths": [1, 1], "drop_path_rate": 0.4}}
CPU = Settings(device="cpu")
DENOISE = {
    "scale": 1,
    "network": {"upsampler": ""},
    "degradation": {"kind": "noise", "sigma": [0, 50]},
}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def save(folder, name, pixels):
    folder.mkdir(exist_ok=True)
    write_image(folder / name, Image(pixels))
    return folder / name


def sources(folder):
    return find_sources(folder, None, 1)


def write_photos(folder):
    """Six crops of photographs."""
    for name in ("dragonfly", "osprey", "photo"):
        image = read_rgb(DATA / f"{name}.png")
        for i in range(2):
            write_image(folder / f"{name}{i}.png", Image(image[40 : 73 + i, 40 * i : 40 * i + 36]))
    return folder


def recipe(**changes) -> TrainConfig:
    """RECIPE with other values; keys have unique names except `network`, which is updated."""
    table = asdict(checked(parse_toml(RECIPE), "RECIPE"))
    for key, value in changes.items():
        if key == "network":
            table[key] |= value
        elif key in table:
            table[key] = value
        else:
            (section,) = (
                name
                for name in ("data", "loss", "teacher", "optimiser", "schedule")
                if key in table[name]
            )
            table[section][key] = value
    return checked(table, "RECIPE")


def start_of(config):
    """The network that a run of the recipe starts from."""
    torch.manual_seed(config.seed)
    model = build_network(config)
    model.start_simply()
    return model


def train(config, data, out, *, val=None, settings=CPU, **options):
    return loop.train(config, Folders(data, val), out, settings=settings, **options)


def load_checkpoint(out):
    return torch.load(checkpoints.paths(out)[0], weights_only=True)


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


def before_iteration(monkeypatch, iteration, action):
    """Run `action` when this iteration begins."""
    original = state.learning_rate

    def learning_rate(config, i):
        if i == iteration:
            action()
        return original(config, i)

    monkeypatch.setattr(state, "learning_rate", learning_rate)


def replace_batches(monkeypatch, iterations, batch):
    """Let these iterations have this batch."""
    original = TrainingPairs.batch
    monkeypatch.setattr(
        TrainingPairs,
        "batch",
        lambda self, i, *rest: batch if i in iterations else original(self, i, *rest),
    )
