import json
import math
from dataclasses import replace

import pytest
from failing import fails
from reports import report, result

from mambair_cli.bench.quality.compare import compare, comparison_table, read_report
from mambair_cli.errors import CallError

BASELINE = result("bicubic", {"a": 28.0, "b": 30.0, "c": 20.0})
OLD = result("tiny", {"a": 31.0, "b": 32.0, "c": 24.0}, seconds=2.0)
NEW = result("tiny", {"c": 24.3, "a": 31.1, "b": 32.2}, seconds=3.0)


def test_gains_by_image_and_in_the_mean():
    (gain,) = compare(report(BASELINE, OLD), report(BASELINE, NEW))
    assert (gain.first, gain.second) == ("tiny", "tiny")
    assert list(gain.images) == ["a", "b", "c"]
    assert [gains["psnr"] for gains in gain.images.values()] == pytest.approx([0.1, 0.2, 0.3])
    assert gain.mean["psnr"] == pytest.approx(0.2)
    half = 4.302653 * 0.1 / math.sqrt(3)  # of differences, so far narrower than that of either
    assert gain.interval["psnr"] == pytest.approx((0.2 - half, 0.2 + half))
    assert gain.seconds == 1.5
    assert gain.peak_memory == 1


def test_networks_pair_by_name_or_as_the_only_one():
    other = replace(OLD, name="other")
    pairs = compare(report(BASELINE, OLD, other), report(BASELINE, other, NEW))
    assert [(gain.first, gain.second) for gain in pairs] == [
        ("tiny", "tiny"),
        ("other", "other"),
    ]
    pairs = compare(report(BASELINE, OLD), report(BASELINE, other, replace(NEW, name="third")))
    assert [(gain.first, gain.second) for gain in pairs] == [
        ("tiny", "other"),
        ("tiny", "third"),
    ]
    lone = report(BASELINE, replace(OLD, name="x"), replace(OLD, name="y"))
    fails(lambda: compare(lone, report(BASELINE, OLD, other)), CallError, "share no network")


def test_infinite_values_do_not_count(tmp_path):
    facts = json.loads(json.dumps(report(BASELINE, NEW).to_json()))
    facts["results"][1]["images"][0]["psnr"] = None  # what JSON tells of infinity
    (tmp_path / "a.json").write_text(json.dumps(facts))
    (gain,) = compare(report(BASELINE, OLD), read_report(tmp_path / "a.json"))
    assert [gains["psnr"] for gains in gain.images.values()] == [
        pytest.approx(0.1),
        pytest.approx(0.2),
        None,
    ]
    assert gain.mean["psnr"] == pytest.approx(0.15)


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
    second = report(BASELINE, NEW, **changes)
    fails(lambda: compare(report(BASELINE, OLD), second), CallError, "differ in", *changes)


def test_reports_of_different_images():
    fewer = result("tiny", {"a": 1.0, "b": 2.0}, seconds=1.0)
    fails(
        lambda: compare(report(BASELINE, OLD), report(BASELINE, fewer)),
        CallError,
        "different images",
        "such as c",
    )


def test_files_that_are_no_reports(tmp_path):
    path = tmp_path / "a.json"
    fails(lambda: read_report(path), CallError, path, "cannot be read", "printed as JSON")
    for text in ("not JSON", "[1]", '{"a": 1}', "", "\xff"):
        path.write_text(text, "latin-1")
        fails(lambda: read_report(path), CallError, path, "printed as JSON")
    path.write_text(json.dumps(report(BASELINE, OLD).to_json()))
    assert read_report(path) == report(BASELINE, OLD)


FACTS = report(BASELINE, OLD).to_json()
BASELINE_FACTS, OLD_FACTS = FACTS["results"]


def without(*place):
    """A copy of a report that lacks what lies at this place."""
    copy = json.loads(json.dumps(FACTS))
    part = copy
    for step in place[:-1]:
        part = part[step]
    del part[place[-1]]
    return copy


@pytest.mark.parametrize(
    "facts",
    [
        {"results": [], "setting": "x4"},
        FACTS | {"results": None},
        FACTS | {"results": [BASELINE_FACTS, "tiny"]},
        FACTS | {"results": [BASELINE_FACTS, OLD_FACTS | {"images": 3}]},
        FACTS | {"results": [BASELINE_FACTS, OLD_FACTS | {"mean": 3}]},
        *map(without, ("dataset", "channel", "border", "inputs", "seed", "results")),
        *(
            without("results", 1, key)
            for key in ("name", "images", "mean", "seconds", "peak_memory")
        ),
        *(without("results", 1, "images", 2, key) for key in ("image", "psnr")),
    ],
)
def test_reports_that_are_not_whole(tmp_path, facts):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(facts))
    fails(lambda: read_report(path), CallError, path, "not a whole one", "printed as JSON")


def test_gains_as_json():
    (gain,) = compare(report(BASELINE, OLD), report(BASELINE, NEW))
    facts = gain.to_json()
    keys = "first second images mean interval seconds peak_memory"
    assert facts.keys() == set(keys.split())
    assert facts["images"][0].keys() == {"image", "psnr", "ssim"}
    assert json.loads(json.dumps(facts))["images"][2]["image"] == "c"


def test_gains_as_a_table():
    (gain,) = compare(report(BASELINE, OLD), report(BASELINE, NEW))
    header, rows = comparison_table(gain)
    assert header == ("tiny - tiny", "PSNR", "SSIM")
    assert rows == [
        ("a", "+0.1000", "+0.0010"),
        ("b", "+0.2000", "+0.0020"),
        ("c", "+0.3000", "+0.0030"),
        ("mean", "+0.2000", "+0.0020"),
    ]
    names = "abcde"
    old = result("tiny", {name: 30.0 + i for i, name in enumerate(names)}, 1.0)
    new = result("tiny", {name: 30.1 + i for i, name in enumerate(names)}, 1.0)
    _, rows = comparison_table(compare(report(old, old), report(old, new))[0])
    assert rows[-1] == ("95 % of means", "+0.1000 to +0.1000", "+0.0010 to +0.0010")
