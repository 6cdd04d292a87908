"""The seams that tiles leave in a restored image."""

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...images.folders import read_rgb
from ...images.metrics import psnr
from ...restore.restorer import load_restorer
from ..cost.rows import Table

TILES = ((64, 0), (64, 16), (64, 32), (128, 16), (128, 32), (256, 16), (256, 32), (256, 64))
"""Sides and overlaps, in pixels of the input."""


@dataclass(frozen=True)
class Seams:
    """How far a tiled result is from the untiled one, in steps of 8 bits.

    Args:
        tile: the largest side of a tile, in pixels of the input.
        overlap: that neighbouring tiles share.
        tiles: how many there are.
        max: the largest difference.
        mean: of the differences.
        psnr: in dB.
        border: the largest difference between neighbouring rows or columns of the difference,
            where one tile leads over to the next.
        inside: the same elsewhere; a seam would make `border` larger.
    """

    tile: int
    overlap: int
    tiles: int
    max: float
    mean: float
    psnr: float
    border: float
    inside: float

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)


def seams(name_or_file: str, image: Path) -> list[Seams]:
    """The seams of a model's result for an image, at several tile sizes and overlaps."""
    pixels = read_rgb(image).astype(np.float32) / 255
    whole = load_restorer(name_or_file, tile="off").restore(pixels) * 255
    rows = []
    for tile, overlap in TILES:
        restorer = load_restorer(name_or_file, tile=tile, tile_overlap=overlap)
        plan, scale = restorer.plan(*pixels.shape[:2]), restorer.scale
        error = restorer.restore(pixels) * 255 - whole
        steps = []
        for axis, length, starts in (
            (0, plan.tile_height, plan.tops),
            (1, plan.tile_width, plan.lefts),
        ):
            step = np.abs(np.diff(error, axis=axis)).max(axis=(1 - axis, 2))
            near = np.zeros(len(step), bool)
            for before, start in itertools.pairwise(starts):
                near[scale * start - 1 : scale * (before + length)] = True
            steps.append((step[near], step[~near]))
        row = Seams(
            tile=tile,
            overlap=overlap,
            tiles=len(plan.boxes),
            max=float(np.abs(error).max()),
            mean=float(np.abs(error).mean()),
            psnr=psnr(error, np.zeros_like(error)),
            border=float(max(near.max(initial=0) for near, _ in steps)),
            inside=float(max(far.max(initial=0) for _, far in steps)),
        )
        rows.append(row)
    return rows


def seams_table(rows: Iterable[Seams]) -> Table:
    """All rows, as a header and the cells below."""
    header: tuple[str, ...] = ("tile", "overlap", "tiles", "largest difference (of 255)", "mean")
    header += ("PSNR to untiled, dB", "largest step at borders", "inside")
    cells: list[tuple[str, ...]] = [
        (
            str(row.tile),
            str(row.overlap),
            str(row.tiles),
            f"{row.max:.2f}",
            f"{row.mean:.4f}",
            f"{row.psnr:.2f}",
            f"{row.border:.2f}",
            f"{row.inside:.2f}",
        )
        for row in rows
    ]
    return header, cells
