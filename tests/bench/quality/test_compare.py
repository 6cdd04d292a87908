import json
import math

import pytest
from failing import fails
from reports import facts, result

from mambair_cli.bench.quality.compare import compare, read_report
from mambair_cli.errors import CallError

BASELINE = result("bicubic", {"a": 28.0, "b": 30.0, "c": 20.0})
OLD = result("tiny", {"a": 31.0, "b": 32.0, "c": 24.0}, seconds=2.0)
NEW = result("tiny", {"c": 24.3, "a": 31.1, "b": 32.2}, seconds=3.0)


def test_gains_by_image_and_in_the_mean():
    (gain,) = compare(facts(BASELINE, OLD), facts(BASELINE, NEW))
    assert (gain["first"], gain["second"]) == ("tiny", "tiny")
    assert [row["image"] for row in gain["images"]] == ["a", "b", "c"]
    assert [row["psnr"] for row in gain["images"]] == pytest.approx([0.1, 0.2, 0.3])
    assert gain["mean"]["psnr"] == pytest.approx(0.2)
    half = 4.302653 * 0.1 / math.sqrt(3)  # of differences, so far narrower than that of either
    assert gain["interval"]["psnr"] == pytest.approx((0.2 - half, 0.2 + half))
    assert gain["seconds"] == 1.5
    assert gain["peak_memory"] == 1


def test_networks_pair_by_name_or_as_the_only_one():
    other = {**OLD, "name": "other"}
    pairs = compare(facts(BASELINE, OLD, other), facts(BASELINE, other, NEW))
    assert [(gain["first"], gain["second"]) for gain in pairs] == [
        ("tiny", "tiny"),
        ("other", "other"),
    ]
    pairs = compare(facts(BASELINE, OLD), facts(BASELINE, other, {**NEW, "name": "third"}))
    assert [(gain["first"], gain["second"]) for gain in pairs] == [
        ("tiny", "other"),
        ("tiny", "third"),
    ]
    lone = facts(BASELINE, {**OLD, "name": "x"}, {**OLD, "name": "y"})
    fails(lambda: compare(lone, facts(BASELINE, OLD, other)), CallError, "share no network")


def test_infinite_values_do_not_count(tmp_path):
    equal = json.loads(json.dumps(NEW))
    equal["images"][0]["psnr"] = None  # what JSON tells of infinity
    (gain,) = compare(facts(BASELINE, OLD), facts(BASELINE, equal))
    assert [row["psnr"] for row in gain["images"]] == [pytest.approx(0.1), pytest.approx(0.2), None]
    assert gain["mean"]["psnr"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "Set14"},
        {"setting": "x2"},
        {"channel": "rgb"},
        {"border": 0},
        {"seed": 1},
        {"inputs": "made"},
    ],
)
def test_reports_of_different_benchmarks(changes):
    second = facts(BASELINE, NEW, **changes)
    fails(lambda: compare(facts(BASELINE, OLD), second), CallError, "differ in", *changes)


def test_reports_of_different_images():
    fewer = result("tiny", {"a": 1.0, "b": 2.0}, seconds=1.0)
    fails(
        lambda: compare(facts(BASELINE, OLD), facts(BASELINE, fewer)),
        CallError,
        "different images",
        "such as c",
    )


def test_files_that_are_no_reports(tmp_path):
    path = tmp_path / "a.json"
    fails(lambda: read_report(path), CallError, path, "cannot be read", "mambair bench --json")
    for text in ("not JSON", "[1]", '{"a": 1}', "", "\xff"):
        path.write_text(text, "latin-1")
        fails(lambda: read_report(path), CallError, path, "mambair bench --json")
    path.write_text(json.dumps(facts(BASELINE, OLD)))
    assert read_report(path)["dataset"] == "Set5"


def without(report, *place):
    """A copy of a report that lacks what lies at this place."""
    copy = json.loads(json.dumps(report))
    part = copy
    for step in place[:-1]:
        part = part[step]
    del part[place[-1]]
    return copy


@pytest.mark.parametrize(
    "report",
    [
        {"results": [], "setting": "x4"},
        {**facts(), "results": None},
        {**facts(), "results": [BASELINE, "tiny"]},
        {**facts(), "results": [BASELINE, {**OLD, "images": 3}]},
        {**facts(), "results": [BASELINE, {**OLD, "mean": 3}]},
        *(
            without(facts(BASELINE, OLD), key)
            for key in ("dataset", "channel", "border", "inputs", "seed", "results")
        ),
        *(
            without(facts(BASELINE, OLD), "results", 1, key)
            for key in ("name", "images", "mean", "seconds", "peak_memory")
        ),
        *(
            without(facts(BASELINE, OLD), "results", 1, "images", 2, key)
            for key in ("image", "psnr")
        ),
    ],
)
def test_reports_that_are_not_whole(tmp_path, report):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(report))
    fails(lambda: read_report(path), CallError, path, "not a whole one", "mambair bench --json")
