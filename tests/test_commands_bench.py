import json
import re

import pytest
from calls import DATA, LONG, check_bad, each_call, works

from mambair_cli import bench


def test_bench(call, pictures):
    facts = json.loads(works(call("bench", "--dataset", pictures, "-s", 2, "--json")))
    assert (facts["model"], facts["scale"], facts["dataset"]) == ("tiny-x2", 2, pictures)
    assert [row["image"] for row in facts["images"]] == ["[red]a", "b b", "c"]
    *lines, last = works(call("bench", "--dataset", pictures, "-s", 2, "--backend", "reference")).splitlines()
    assert re.fullmatch(r"tiny-x2 x2, reference on cpu, \d+\.\d s", last)
    rows = [*facts["images"], facts["mean"]]
    for row, line in zip(rows, lines[1:], strict=True):
        name, *numbers = line.rsplit(maxsplit=4)
        assert name.strip() == row["image"]
        keys = ("psnr_y", "ssim_y", "bicubic_psnr_y", "bicubic_ssim_y")
        assert [float(number) for number in numbers] == pytest.approx([row[key] for key in keys], abs=0.01)


def test_bench_tiling(call, pictures):
    rows = json.loads(works(call("bench", "tiling", DATA / "osprey.png", "-m", "tiny-x2", "--json")))
    assert all({"tile", "overlap", "tiles", "max", "mean", "psnr", "border", "inside"} == row.keys() for row in rows)
    assert len(rows) > 3
    # All tiles hold this one whole: equal to the untiled result, so that its PSNR is no number of JSON.
    *_, last = json.loads(works(call("bench", "tiling", "set/c.png", "--json")))
    assert (last["max"], last["psnr"]) == (0, None)
    lines = works(call("bench", "tiling", "set/c.png")).splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[-1].split() == ["256", "64", "1", "0.00", "0.0000", "inf", "0.00", "0.00"]


def test_bench_memory(call, monkeypatch):
    row = {"model": "tiny-x2", "megapixels": 0.25, "limit": 2**30, "tiles": 3, "predicted": 2**29, "measured": 2**28}
    row |= {"process": 3 * 2**28, "seconds": 1.26}
    asked = []
    monkeypatch.setattr(bench, "memory", lambda name: asked.append(name) or [row, row | {"limit": 0}])
    assert json.loads(works(call("bench", "memory", "-m", "tiny-x2", "--json"))) == [row, row | {"limit": 0}]
    lines = works(call("bench", "memory")).splitlines()
    assert asked == ["tiny-x2", "tiny-x4"]
    assert lines[1].split() == ["tiny-x2", "0.25", "3", "512", "256", "2.00", "768", "1024", "1.3"]
    assert lines[2].split() == ["tiny-x2", "0.25", "3", "512", "256", "2.00", "768", "none", "1.3"]


@pytest.mark.parametrize(
    ("command", "report"),
    [("scan", "mambair_cli.bench.scan_report"), ("train", "mambair_cli.training.speed.step_report")],
)
def test_bars(call, monkeypatch, command, report):
    rows = [
        {"what": "[red]one", "value": "1.5 (3 / 2 ms)", "bar": "<= 2", "met": True},
        {"what": "two", "value": "3.0", "bar": "<= 2", "met": False},
        {"what": "three", "value": "4", "bar": "", "met": None},
    ]
    asked = []
    monkeypatch.setattr(report, lambda quick: asked.append(quick) or rows)
    assert json.loads(works(call("bench", command, "--quick", "--json"))) == rows
    lines = works(call("bench", command)).splitlines()
    assert asked == [True, False]
    assert [line.split() for line in lines] == [
        ["what", "measured", "bar"],
        ["[red]one", "1.5", "(3", "/", "2", "ms)", "<=", "2", "met"],
        ["two", "3.0", "<=", "2", "MISSED"],
        ["three", "4"],
    ]


@each_call(
    ("bench", 2, "--dataset", "mambair bench --help"),
    ("bench  --dataset  missing", 2, "missing is not a folder"),
    ("bench  --dataset  empty", 2, "empty holds no image"),
    ("bench  --dataset  empty  -m  tiny-x2  -s  4", 2, "tiny-x2", "not 4"),
    (f"bench  --dataset  {LONG}", 1, LONG, "too long"),
    ("bench  tiling  missing.png", 2, "missing.png: no such file"),
    ("bench  tiling", 2, "IMAGE", "mambair bench tiling --help"),
    ("bench  nonsense", 2, "'nonsense'", "mambair bench --help"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)
