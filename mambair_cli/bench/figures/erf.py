"""Effective receptive fields: which inputs the centre of an output depends on.

MambaIR, figure 1; Luo 2016.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import CallError
from ...images.folders import Pixels
from ...restore.restorer import Restorer
from . import canvas

Map = NDArray[np.float64]
SIDE = 120
"""Pixels of an input."""
SHARES = (0.2, 0.5, 0.9, 0.99)


def field(
    restorer: Restorer,
    images: Sequence[Pixels],
    report: Callable[[float], None] = lambda share: None,
) -> tuple[Map, Map]:
    """Gradients of the output's centre pixel, their magnitudes summed over the channels of both.

    Args:
        restorer: holds the network.
        images: H x W x 3 uint8 of at least SIDE pixels a side; their centres are the inputs.
        report: is called with the share done.

    Returns:
        Two SIDE x SIDE maps, means over the images: of the magnitudes, and of their fourth roots,
        which show small values too.

    Raises CallError for an image that is too small.
    """
    model, channels = restorer.model, restorer.config.in_chans
    total, rooted = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for i, image in enumerate(images):
        report(i / len(images))
        tensor = _centre(image, channels).to(restorer.device).requires_grad_()
        out = model(tensor)
        centre = out[:, :, restorer.scale * SIDE // 2, restorer.scale * SIDE // 2].sum()
        (gradient,) = torch.autograd.grad(centre, tensor)
        magnitude = gradient.abs().sum((0, 1)).double().cpu().numpy()
        total += magnitude / len(images)
        rooted += magnitude**0.25 / len(images)
    return total, rooted


def _centre(image: Pixels, channels: int) -> torch.Tensor:
    """(1,C,SIDE,SIDE) in [0, 1]."""
    height, width = image.shape[:2]
    if min(height, width) < SIDE:
        raise CallError(
            f"an image of {width}x{height} pixels is too small: the receptive field takes {SIDE} a"
            " side"
        )
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    crop = image[top : top + SIDE, left : left + SIDE] / np.float32(255)
    crop = crop.mean(2, keepdims=True) if channels == 1 else crop
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]


def areas(magnitude: Map, shares: Iterable[float] = SHARES) -> list[float]:
    """For each share of the map's sum, the part of the area that carries it.

    It is that of the smallest square around the centre.
    """
    middle = [side // 2 for side in magnitude.shape]
    found = []
    for share in shares:
        radius = 0
        while True:
            square = magnitude[tuple(slice(max(0, m - radius), m + radius + 1) for m in middle)]
            if square.sum() >= share * magnitude.sum() * (1 - 1e-12):
                found.append(square.size / magnitude.size)
                break
            radius += 1
    return found


def draw(fields: Sequence[tuple[str, Map, Map]], path: Path) -> None:
    """Write a panel for each (name, magnitudes, fourth roots), with the areas below."""
    figure, axes = canvas.panels(1, len(fields), 3.4 * len(fields) + 0.9, 4)
    image: Any = None
    for ax, (name, magnitude, rooted) in zip(axes[0], fields, strict=True):
        image = ax.imshow(rooted / rooted.max(), cmap="viridis", vmin=0, vmax=1)
        shares = " / ".join(f"{100 * share:g}" for share in SHARES)
        parts = " / ".join(f"{100 * area:.2f}" for area in areas(magnitude))
        canvas.bare(ax, f"{shares} % of it lie within\n{parts} % of the area")
        ax.set_title(name, fontsize=10)
    figure.colorbar(
        image, ax=axes[0].tolist(), shrink=0.75, label="gradient, fourth root, of the largest"
    )
    canvas.save(figure, path)
