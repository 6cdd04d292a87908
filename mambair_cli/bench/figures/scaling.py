"""Cost against resolution: the selective scan, attention in windows and full attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...archs.ss2d import SS2D
from ..cost.timing import median_seconds
from . import canvas

# Those of the light networks of MambaIR and SwinIR.
WIDTH, HEADS, WINDOW = 60, 6, 8
INNER, STATES = 72, 16
SIDES = (32, 64, 128, 256, 512)
PATIENCE = 2.0
"""Seconds; a method that takes longer is not measured at the next size."""
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What one method costs on side x side pixels; seconds is None where it was not measured."""

    method: str
    side: int
    macs: int
    seconds: float | None


class Attention(nn.Module):
    """Multi-head self-attention over all pixels, or over each window of WINDOW x WINDOW."""

    def __init__(self, windowed: bool):
        super().__init__()
        self.windowed = windowed
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """(1,H,W,C) -> (1,H,W,C); sides must be multiples of the window."""
        shape = tokens.shape
        if self.windowed:
            grid = tokens.view(shape[1] // WINDOW, WINDOW, shape[2] // WINDOW, WINDOW, WIDTH)
            # (windows,tokens,C)
            x = grid.transpose(1, 2).reshape(-1, WINDOW * WINDOW, WIDTH)
        else:
            x = tokens.flatten(1, 2)
        # (windows,heads,tokens,C/heads)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.proj(mixed.transpose(1, 2).flatten(2))
        if self.windowed:
            grid = x.view(shape[1] // WINDOW, shape[2] // WINDOW, WINDOW, WINDOW, WIDTH)
            x = grid.transpose(1, 2)
        return x.reshape(shape)

    def macs(self, pixels: int) -> int:
        """Multiply-adds: projections, and two products with as many tokens as a pixel sees."""
        return 4 * pixels * WIDTH**2 + 2 * pixels * WIDTH * (WINDOW**2 if self.windowed else pixels)


def costs(
    sides: Sequence[int] = SIDES,
    device: str = "cpu",
    report: Callable[[float, str], None] = lambda share, label: None,
) -> list[Cost]:
    """Count and measure (median seconds) three methods; sides are multiples of WINDOW."""
    torch.manual_seed(0)
    scan, windows, full = SS2D(WIDTH, INNER, STATES), Attention(True), Attention(False)
    methods: list[tuple[str, nn.Module, Callable[[int], int]]] = [
        ("selective scan (MambaIR)", scan, lambda pixels: scan.macs(pixels).full),
        (f"attention in windows of {WINDOW}x{WINDOW}", windows, windows.macs),
        ("full attention", full, full.macs),
    ]
    found: list[Cost] = []
    for i, (name, module, count) in enumerate(methods):
        seconds: float | None = 0.0
        for j, side in enumerate(sides):
            report((i + j / len(sides)) / len(methods), f"{name} {side}x{side}")
            quick = seconds is not None and seconds < PATIENCE
            seconds = _seconds(module.to(device).eval(), side, device) if quick else None
            found.append(Cost(name, side, count(side * side), seconds))
    return found


def _seconds(module: nn.Module, side: int, device: str) -> float:
    tokens = torch.rand(1, side, side, WIDTH, device=device)
    # `item` waits for a GPU.
    with torch.inference_mode():
        return median_seconds(lambda: module(tokens).sum().item(), REPEATS)


def draw(found: Sequence[Cost], path: Path, device: str) -> None:
    """Write two panels, counted and measured, both axes logarithmic."""
    figure, axes = canvas.panels(1, 2, 9.5, 3.8)
    for name in dict.fromkeys(cost.method for cost in found):
        rows = [cost for cost in found if cost.method == name]
        axes[0, 0].plot([r.side for r in rows], [r.macs / 1e9 for r in rows], "o-", label=name)
        timed = [r for r in rows if r.seconds is not None]
        axes[0, 1].plot(
            [r.side for r in timed], [1e3 * (r.seconds or 0) for r in timed], "o-", label=name
        )
    sides = sorted({cost.side for cost in found})
    for ax, title in (
        (axes[0, 0], "counted: multiply-adds, 10⁹"),
        (axes[0, 1], f"measured on {device}: milliseconds"),
    ):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(sides, [str(side) for side in sides])
        ax.set(xlabel="side of the image, pixels", title=title)
        ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    canvas.save(figure, path)
