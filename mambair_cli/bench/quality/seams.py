"""The seams that tiles leave in a restored image."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ...images.folders import read_rgb
from ...images.metrics import psnr
from ...restore.restorer import load_restorer

Facts = dict[str, Any]


def seams(name_or_file: str, image: Path) -> list[Facts]:
    """For several tile sizes and overlaps: how far the tiled result is from the untiled, in 8-bit steps.

    `border` is the largest difference between neighbouring rows or columns of that difference where one tile
    leads over to the next, `inside` the same elsewhere: a seam would make the first larger.
    """
    pixels = read_rgb(image).astype(np.float32) / 255
    whole = load_restorer(name_or_file, tile="off").restore(pixels) * 255
    rows = []
    for tile, overlap in (
        (64, 0),
        (64, 16),
        (64, 32),
        (128, 16),
        (128, 32),
        (256, 16),
        (256, 32),
        (256, 64),
    ):
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
        rows.append(
            {
                "tile": tile,
                "overlap": overlap,
                "tiles": len(plan.boxes),
                "max": float(np.abs(error).max()),
                "mean": float(np.abs(error).mean()),
                "psnr": psnr(error, np.zeros_like(error)),
                "border": float(max(s[0].max(initial=0) for s in steps)),
                "inside": float(max(s[1].max(initial=0) for s in steps)),
            }
        )
    return rows
