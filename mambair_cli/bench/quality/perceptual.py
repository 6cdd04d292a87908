"""LPIPS and DISTS, distances of deep features, where their packages are installed.

The smaller, the better.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...errors import CallError
from ...images.folders import Pixels

Distance = Callable[[Pixels, Pixels], float]


def _lpips(package: Any) -> Distance:
    """LPIPS (Zhang 2018), version 0.1 on AlexNet, as is usual for restoration."""
    network = package.LPIPS(net="alex", verbose=False).eval()
    return lambda a, b: float(network(2 * _tensor(a) - 1, 2 * _tensor(b) - 1))


def _dists(package: Any) -> Distance:
    """DISTS (Ding 2020)."""
    network = package.DISTS().eval()
    return lambda a, b: float(network(_tensor(a), _tensor(b)))


METRICS: dict[str, tuple[str, Callable[[Any], Distance]]] = {
    "lpips": ("lpips", _lpips),
    "dists": ("DISTS_pytorch", _dists),
}


def load_distance(name: str) -> Distance:
    """A distance of METRICS between two uint8 images, H x W x 3 or H x W.

    Its package fetches its own weights.
    Raises CallError for another name, and where the package is not installed or cannot be loaded.
    """
    if name not in METRICS:
        raise CallError(
            f"`metric` must be {' or '.join(METRICS)}, not {name!r}; PSNR and SSIM are always"
            " measured"
        )
    module, load = METRICS[name]
    if importlib.util.find_spec(module) is None:
        raise CallError(f"{name} needs one more package: pip install {module.replace('_', '-')}")
    try:
        distance = load(importlib.import_module(module))
    except (ImportError, RuntimeError, OSError) as error:
        raise CallError(
            f"{name} cannot be loaded ({error}); it needs a torchvision that fits this PyTorch, and"
            " the first time a connection to fetch its weights"
        ) from error

    def measured(a: Pixels, b: Pixels) -> float:
        with torch.inference_mode():
            return distance(a, b)

    return measured


def _tensor(image: Pixels) -> torch.Tensor:
    """(1,3,H,W) in [0, 1]."""
    colour = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, 2)
    return torch.from_numpy(colour.copy()).permute(2, 0, 1)[None].float() / 255
