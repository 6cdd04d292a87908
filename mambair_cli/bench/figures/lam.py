"""Local attribution maps: which inputs a network used for a patch of its output.

Gu and Dong, CVPR 2021.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...images.folders import Pixels
from ...restore.restorer import Restorer
from . import canvas

Map = NDArray[np.float64]
# Of the blur that the path starts from, as in the paper.
SIGMA, KERNEL, STEPS = 1.2, 9, 50
SEEN = 64
"""Pixels a side of the input around the patch, as in the paper; the index depends on it."""


@dataclass(frozen=True)
class Window:
    """A square of the output, in its pixels."""

    top: int
    left: int
    side: int


def around(image: Pixels, window: Window, scale: int) -> tuple[Pixels, Window]:
    """The part of an input around a window of the output, and the window in that part.

    It has SEEN pixels a side, or fewer where the image is smaller.
    """
    starts = [
        max(0, min((at + window.side // 2) // scale - SEEN // 2, length - SEEN))
        for at, length in zip((window.top, window.left), image.shape, strict=False)
    ]
    top, left = starts
    part = image[top : top + SEEN, left : left + SEEN]
    return part, Window(window.top - scale * top, window.left - scale * left, window.side)


def attribution(
    restorer: Restorer,
    image: Pixels,
    window: Window,
    report: Callable[[float], None] = lambda share: None,
) -> Map:
    """Integrated gradients of the detail in a window, from the blurred to the sharp input.

    The detail is the sum of the gradient magnitudes of the output (equation 3); the path blurs less
    and less (equations 6 and 7).

    Args:
        restorer: holds the network.
        image: H x W x 3 uint8 input.
        window: of the output.
        report: is called with the share done.

    Returns:
        H x W, magnitudes summed over the channels.
    """
    path = [_blurred(image, SIGMA * (1 - i / STEPS)) for i in range(STEPS + 1)]
    total = np.zeros(image.shape)
    for i, (start, end) in enumerate(itertools.pairwise(path)):
        report(i / STEPS)
        planes = torch.from_numpy(end.transpose(2, 0, 1).copy())[None].float()
        tensor = planes.to(restorer.device).requires_grad_()
        (gradient,) = torch.autograd.grad(_detail(restorer.model(tensor), window), tensor)
        total += gradient[0].permute(1, 2, 0).double().cpu().numpy() * (end - start)
    return np.asarray(np.abs(total).sum(2))


def _blurred(image: Pixels, sigma: float) -> Map:
    sharp = image / 255
    if sigma <= 0:
        return sharp
    return np.asarray(cv2.GaussianBlur(sharp, (KERNEL, KERNEL), sigma), np.float64)


def _detail(out: Tensor, window: Window) -> Tensor:
    bottom, right = window.top + window.side, window.left + window.side
    patch = out[:, :, window.top : bottom, window.left : right]
    down = patch[:, :, 1:, :-1] - patch[:, :, :-1, :-1]
    across = patch[:, :, :-1, 1:] - patch[:, :, :-1, :-1]
    return (down**2 + across**2 + 1e-12).sqrt().sum()


def diffusion_index(attributed: Map) -> float:
    """100 x (1 - Gini coefficient), equation 8.

    0 where one pixel did it all, towards 100 where all did the same.
    """
    values = np.sort(attributed.ravel())
    ranks = 2 * np.arange(1, values.size + 1) - values.size - 1
    return float(100 * (1 - (ranks * values).sum() / (values.size * values.sum())))


def draw(image: Pixels, window: Window, found: Sequence[tuple[str, int, Map]], path: Path) -> None:
    """Write the input with the window, then each (name, scale, map) over it, with its index."""
    from matplotlib.patches import Rectangle

    figure, axes = canvas.panels(1, 1 + len(found), 2.7 * (1 + len(found)), 3.1)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for ax in axes[0]:
        scale = found[0][1]
        corner = (window.left / scale - 0.5, window.top / scale - 0.5)
        box = Rectangle(
            corner,
            window.side / scale,
            window.side / scale,
            fill=False,
            edgecolor="red",
            linewidth=1.2,
        )
        ax.add_patch(box)
    axes[0, 0].imshow(image)
    canvas.bare(axes[0, 0], "input and patch")
    for ax, (name, _, attributed) in zip(axes[0, 1:], found, strict=True):
        # The root, or only few pixels would be seen.
        strength = (attributed / attributed.max()) ** 0.5
        ax.imshow(gray, cmap="gray", alpha=0.5)
        ax.imshow(np.ma.masked_less(strength, 0.02), cmap="Reds", vmin=0, vmax=1, alpha=0.9)
        canvas.bare(ax, f"{name}, diffusion index {diffusion_index(attributed):.1f}")
    canvas.save(figure, path)
