import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mambair_cli import bench, tiling
from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.datasets import read_rgb
from mambair_cli.engine import load_restorer
from mambair_cli.errors import CallError
from mambair_cli.image_io import Image, write_image
from mambair_cli.metrics import psnr_y, ssim_y
from mambair_cli.ops.simd import LANES
from mambair_cli.resize import bicubic, downscale, modcrop

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Crops whose sides are no multiples of any scale, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "deeper").mkdir()
    write_image(folder / "a.png", Image(read_rgb(DATA / "osprey.png")[20:69, 10:81]))
    write_image(folder / "deeper" / "b.png", Image(read_rgb(DATA / "dragonfly.png")[30:85, 60:109]))
    (folder / "notes.txt").touch()
    return folder


# Quality


@pytest.mark.parametrize(("model", "scale"), [("tiny-x2", 2), ("tiny-x4", 4), ("tiny-x4", 3)])
def test_quality_by_hand(folder, model, scale):
    facts = bench.quality(model, folder, scale, device="cpu")
    restorer = load_restorer(model, device="cpu")
    assert (facts["model"], facts["scale"], facts["dataset"]) == (model, scale, str(folder))
    assert (facts["device"], facts["backend"]) == ("cpu", restorer.backend)
    assert facts["seconds"] > 0
    assert [row["image"] for row in facts["images"]] == ["a", "b"]
    for row, path in zip(facts["images"], ("a.png", "deeper/b.png"), strict=True):
        high = modcrop(read_rgb(folder / path), scale)
        low = downscale(high, scale)
        restored = restorer.restore(low)
        if restorer.scale != scale:
            assert restored.shape != high.shape
            restored = bicubic(restored, *high.shape[:2])
        enlarged = bicubic(low, *high.shape[:2])
        assert row["psnr_y"] == psnr_y(restored, high, border=scale)
        assert row["ssim_y"] == ssim_y(restored, high, border=scale)
        assert row["bicubic_psnr_y"] == psnr_y(enlarged, high, border=scale)
        assert row["bicubic_ssim_y"] == ssim_y(enlarged, high, border=scale)
        assert 15 < row["bicubic_psnr_y"] < 45
    for key in ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y"):
        assert facts["mean"][key] == pytest.approx(np.mean([row[key] for row in facts["images"]]))
    assert facts["mean"]["image"] == "mean of 2"


def test_the_bundled_model_beats_bicubic(folder):
    mean = bench.quality("tiny-x2", folder, 2)["mean"]
    assert mean["psnr_y"] > mean["bicubic_psnr_y"] + 0.5
    assert mean["ssim_y"] > mean["bicubic_ssim_y"]


def test_quality_passes_its_options_on(folder, monkeypatch):
    asked = {}

    def load(name, **options):
        asked.update(options, name=name)
        raise CallError("asked")

    monkeypatch.setattr(bench, "load_restorer", load)
    with pytest.raises(CallError, match="asked"):
        bench.quality("x", folder, 2, tile="64", device="cuda:1", backend="reference")
    assert asked == {"name": "x", "tile": "64", "device": "cuda:1", "backend": "reference"}


def test_quality_of_wrong_calls(folder, tmp_path):
    (tmp_path / "notes.txt").touch()
    for name, where, scale, words in (
        ("tiny-x2", tmp_path, 2, "holds no image"),
        ("tiny-x2", tmp_path / "none", 2, "not a folder"),
        ("tiny-x2", folder, 4, "enlarges 2 times, not 4"),
        ("tiny-x9", folder, 2, "no model is called 'tiny-x9'"),
    ):
        with pytest.raises(CallError, match=words):
            bench.quality(name, where, scale)


# Seams


def test_seams_fade_with_the_overlap(tmp_path):
    write_image(tmp_path / "photo.png", Image(read_rgb(DATA / "dragonfly.png")[10:110, 20:130]))
    rows = bench.seams("tiny-x2", tmp_path / "photo.png")
    assert all(row["max"] == 0 for row in rows if row["tiles"] == 1)
    rows = [row for row in rows if row["tiles"] > 1]
    assert len(rows) >= 3
    for row in rows:
        assert row["tiles"] > 1
        assert row["tile"] > row["overlap"] >= 0
        assert 0 < row["mean"] < row["max"] < 255
        assert math.isfinite(row["psnr"])
    for tile in {row["tile"] for row in rows}:
        same = sorted((row for row in rows if row["tile"] == tile), key=lambda row: row["overlap"])
        assert all(more["mean"] < 1.05 * less["mean"] for less, more in itertools.pairwise(same))
    assert len({row["mean"] for row in rows}) == len(rows)
    hard, blended = rows[0], next(row for row in rows if row["overlap"] >= 16)
    assert hard["overlap"] == 0
    assert blended["max"] < hard["max"] / 2
    assert blended["mean"] < hard["mean"] / 1.5
    assert blended["psnr"] > hard["psnr"] + 3
    assert blended["border"] < hard["border"] / 2


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

    monkeypatch.setattr(bench, "load_restorer", lambda name, tile, tile_overlap=0: Shifted(tile, tile_overlap))
    write_image(tmp_path / "photo.png", Image(read_rgb(DATA / "photo.png")[:8, :9]))
    for row in bench.seams("x", tmp_path / "photo.png"):
        error = np.ones((8, 9))
        error[:, 5:] += 2
        error[3:] += 0.5
        assert row["tiles"] == 2
        assert row["max"] == pytest.approx(3.5, abs=1e-4)
        assert row["mean"] == pytest.approx(error.mean(), abs=1e-4)
        assert row["psnr"] == pytest.approx(20 * math.log10(255) - 10 * math.log10((error**2).mean()), abs=1e-3)
        assert row["border"] == pytest.approx(2, abs=1e-4)
        assert row["inside"] == pytest.approx(0.5, abs=1e-4)


# The report on the scan; nothing here looks at a duration


@pytest.fixture
def untimed(monkeypatch):
    """Report without timing: small inputs (of the same statistics), and every duration one second."""
    monkeypatch.setattr(bench, "_seconds", lambda function, repeats: 1.0)
    inputs = bench._scan_inputs_like
    monkeypatch.setattr(bench, "_scan_inputs_like", lambda side, dtype: inputs(12, dtype))


def error_rows():
    rows = [row for row in bench._op_rows(True) if "error" in row["what"]]
    assert ["forward" in row["what"] for row in rows] == [True, False]
    for row in rows:
        assert row["met"] is (float(row["value"]) <= float(row["bar"].removeprefix("<=")))
    return rows


def test_the_errors_of_the_scan_meet_their_bars(untimed):
    assert all(row["met"] and float(row["value"]) > 0 for row in error_rows())


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_a_wrong_scan_misses_its_bars(untimed, monkeypatch, wrong):
    scan = bench._numba

    def worse(*inputs):
        y = scan(*inputs)
        return y * 1.0001 if wrong == "value" else y + 1e-4 * (y - y.detach())  # the same value

    monkeypatch.setattr(bench, "_numba", worse)
    assert [row["met"] for row in error_rows()] == [wrong == "gradient", False]


@pytest.mark.parametrize("swinir", [None, torch.nn.Identity()])
def test_every_row_can_be_printed(untimed, monkeypatch, swinir):
    monkeypatch.setattr(bench, "_swinir_light", lambda: swinir)
    rows = [*bench._op_rows(True), *bench._net_rows(True)]
    assert len({row["what"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == {"what", "value", "bar", "met"}
        assert all(isinstance(row[key], str) for key in ("what", "value", "bar"))
        assert row["met"] in (True, False, None)
        assert row["bar"] or row["met"] is None


def floor(side, depths):
    config = MambaIRConfig(16, depths, 4, 1.0, "light_c", "pixelshuffledirect", 2)
    with torch.inference_mode():
        return bench._floor(MambaIR(config).eval(), torch.rand(1, 3, side, side))


def test_the_floor_is_a_time():
    assert 0 < floor(16, (1,)) < math.inf


def test_the_floor_is_the_work_by_the_rates(untimed):
    # With all durations equal, the floor counts: nearly all work is for pixels, and in the blocks.
    assert floor(64, (1,)) / floor(16, (1,)) == pytest.approx(16, rel=0.01)
    one, two, four = (floor(16, (depth,)) for depth in (1, 2, 4))
    assert (four - two) / (two - one) == pytest.approx(2)
    block = two - one
    config = MambaIRConfig(16, (1,), 4, 1.0, "light_c", "pixelshuffledirect", 2)
    updates = 4 * config.inner * config.d_state * 16 * 16
    assert block > 13 * updates / LANES / 2_000_000 / 10


@pytest.mark.parametrize("missing", ["spandrel", "einops"])
def test_without_spandrel_its_row_says_how_to_get_it(untimed, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    assert bench._swinir_light() is None
    (row,) = (row for row in bench._net_rows(True) if "SwinIR" in row["what"])
    assert row["met"] is None
    assert "pip install" in row["value"]


def test_the_report_leaves_the_number_of_threads(monkeypatch):
    seen = []

    def fail(quick):
        seen.append((quick, torch.get_num_threads()))
        raise MemoryError

    monkeypatch.setattr(bench, "_op_rows", fail)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError):
            bench.scan_report(True)
        assert seen == [(True, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
