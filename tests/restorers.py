"""Restorers on the CPU and what goes into them; shared by tests."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import nn

from mambair_cli.archs.mambair import MambaIRConfig
from mambair_cli.images.io import read_image
from mambair_cli.restore.restorer import Options, Restorer, load_restorer

DATA = Path(__file__).parent / "data"
# 128 x 96
PHOTO = read_image(DATA / "osprey.png").pixels
SCENE = PHOTO[40:64, 30:62]
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}


def as_type(image, dtype):
    """The same picture in another type."""
    if dtype == "float32":
        return image.astype(np.float32) / 255
    return image.astype(dtype) * (257 if dtype == "uint16" else 1)


def restorer(model, *, tile="off", tile_overlap=8, **options):
    return Restorer(
        model, "small", Options(**{"device": "cpu"} | options, tile=tile, tile_overlap=tile_overlap)
    )


def load(name="tiny-x2", **options):
    return load_restorer(name, **{"device": "cpu", **options})


class Local(nn.Module):
    """Looks one pixel far and treats the borders of its input as `merge` cannot know; then
    enlarges.
    """

    config = MambaIRConfig(upscale=2, upsampler="")

    def forward(self, image):
        mean = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
        return F.interpolate(mean, scale_factor=2, mode="nearest")
