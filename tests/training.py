"""A small recipe and photographs to train on; shared by tests."""

from dataclasses import replace
from pathlib import Path

from mambair_cli.datasets import read_rgb
from mambair_cli.image_io import Image, write_image
from mambair_cli.training.recipe import TrainConfig, checked, tomllib

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


def write_photos(folder):
    """Six crops of photographs."""
    for name in ("dragonfly", "osprey", "photo"):
        image = read_rgb(DATA / f"{name}.png")
        for i in range(2):
            write_image(folder / f"{name}{i}.png", Image(image[40 : 73 + i, 40 * i : 40 * i + 36]))
    return folder


def recipe(**changes) -> TrainConfig:
    """RECIPE with other values; the names of keys are unique but for `network`, which is updated."""
    config = checked(tomllib.loads(RECIPE), "RECIPE")
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
