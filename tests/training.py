"""A small recipe and photographs to train on; shared by tests."""

from dataclasses import asdict

import numpy as np
from calls import DATA

from mambair_cli.datasets import read_rgb
from mambair_cli.image_io import Image, write_image
from mambair_cli.training.photos import find_sources
from mambair_cli.training.recipe import TrainConfig, checked, tomllib

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
DENOISE = {"scale": 1, "network": {"upsampler": ""}, "degradation": {"kind": "noise", "sigma": [0, 50]}}


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
    """RECIPE with other values; the names of keys are unique but for `network`, which is updated."""
    table = asdict(checked(tomllib.loads(RECIPE), "RECIPE"))
    for key, value in changes.items():
        if key == "network":
            table[key] |= value
        elif key in table:
            table[key] = value
        else:
            (section,) = (name for name in ("data", "loss", "optimiser", "schedule") if key in table[name])
            table[section][key] = value
    return checked(table, "RECIPE")
