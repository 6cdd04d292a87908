import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from mambair_cli.bench.quality import seams
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.restore import tiling

DATA = Path(__file__).parents[2] / "data"


def test_seams_fade_with_the_overlap(tmp_path):
    write_image(tmp_path / "photo.png", Image(read_rgb(DATA / "dragonfly.png")[10:110, 20:130]))
    rows = seams.seams("tiny-x2", tmp_path / "photo.png")
    assert all(row.max == 0 for row in rows if row.tiles == 1)
    rows = [row for row in rows if row.tiles > 1]
    assert len(rows) >= 3
    for row in rows:
        assert row.tiles > 1
        assert row.tile > row.overlap >= 0
        assert 0 < row.mean < row.max < 255
        assert math.isfinite(row.psnr)
    for tile in {row.tile for row in rows}:
        same = sorted((row for row in rows if row.tile == tile), key=lambda row: row.overlap)
        assert all(more.mean < 1.05 * less.mean for less, more in itertools.pairwise(same))
    assert len({row.mean for row in rows}) == len(rows)
    hard, blended = rows[0], next(row for row in rows if row.overlap >= 16)
    assert hard.overlap == 0
    assert blended.max < hard.max / 2
    assert blended.mean < hard.mean / 1.5
    assert blended.psnr > hard.psnr + 3
    assert blended.border < hard.border / 2


def test_a_seam_is_measured_in_steps_of_8_bits(monkeypatch, tmp_path):
    # An operator that adds 1/255 to a tile, and nothing to the whole image.
    class Shifted:
        def __init__(self, tile, overlap):
            self.tile = tile

        scale = 1

        def restore(self, pixels):
            assert pixels.dtype == np.float32
            shifted = pixels + (0 if self.tile == "off" else np.float32(1 / 255))
            if self.tile != "off":
                shifted[:, 5:] += np.float32(2 / 255)  # where the tiles meet
                shifted[3:] += np.float32(0.5 / 255)  # within a tile
            return shifted

        def plan(self, height, width):
            return tiling.plan(height, width, (8, 5), 1)

    monkeypatch.setattr(
        seams, "load_restorer", lambda name, tile, tile_overlap=0: Shifted(tile, tile_overlap)
    )
    write_image(tmp_path / "photo.png", Image(read_rgb(DATA / "photo.png")[:8, :9]))
    for row in seams.seams("x", tmp_path / "photo.png"):
        error = np.ones((8, 9))
        error[:, 5:] += 2
        error[3:] += 0.5
        assert row.tiles == 2
        assert row.max == pytest.approx(3.5, abs=1e-4)
        assert row.mean == pytest.approx(error.mean(), abs=1e-4)
        assert row.psnr == pytest.approx(
            20 * math.log10(255) - 10 * math.log10((error**2).mean()), abs=1e-3
        )
        assert row.border == pytest.approx(2, abs=1e-4)
        assert row.inside == pytest.approx(0.5, abs=1e-4)
