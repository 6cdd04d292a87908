import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from calls import DATA, LONG, check_bad, each_call, works
from calls import fails as failing
from reports import report as build
from reports import result

from mambair_cli.bench.cost import gpu, memory, speed
from mambair_cli.bench.cost.rows import Row
from mambair_cli.bench.quality import fetch_sets, perceptual, protocols, report, tilers
from mambair_cli.bench.quality.results import Report
from mambair_cli.commands import bench
from mambair_cli.models.catalog import list_models


@pytest.fixture(autouse=True)
def no_results(tmp_path_factory, monkeypatch):
    """No result of another test is kept."""
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path_factory.mktemp("cache")))


def test_bench(call, pictures):
    facts = json.loads(works(call("bench", "--dataset", pictures, "-s", 2, "--json")))
    assert (facts["dataset"], facts["setting"]) == (pictures, "x2")
    assert [r["name"] for r in facts["results"]] == ["bicubic", "tiny-x2"]
    assert [row["image"] for row in facts["results"][1]["images"]] == ["[red]a", "b b", "c"]
    lines = works(call("bench", "--dataset", pictures, "-s", 2)).splitlines()
    found = Report.from_json(facts)
    assert lines[0] == report.headline(found)
    table = report.images_table(found)[1]
    for row, line in zip(table, lines[2:], strict=False):
        assert line.split() == " ".join(row).split()
    assert lines[3 + len(table)].split()[:3] == ["bicubic", *table[3][1:3]]
    assert lines[4 + len(table)].rstrip().endswith("this run")
    assert any(line.startswith("tiny-x2: numba on cpu, float32") for line in lines)
    assert re.match(
        r"\d+\.\d s, of these 0\.0 s \(0 %\) in networks", lines[5 + len(table)]
    )  # the first call kept them


def test_bench_writes_its_reports(call, pictures):
    options = ["--csv", "r.csv", "--markdown", "r.md", "--html", "r.html", "--save", "out"]
    models = ["-m", "tiny-x2", "-m", "tiny-x4"]
    out = works(
        call("bench", "--dataset", pictures, "-s", 2, *models, "--images", 2, *options, "--json")
    )
    facts = json.loads(out)
    assert Path("r.csv").read_text("utf-8") == report.csv_rows(Report.from_json(facts))
    assert Path("r.md").read_text("utf-8") == report.markdown(Report.from_json(facts))
    assert "data:image/webp;base64," in Path("r.html").read_text("utf-8")
    saved = sorted(path.as_posix() for path in Path("out").rglob("*.png"))
    assert saved == [
        f"out/{pictures}-x2/{name}/{image}.png"
        for name in ("bicubic", "tiny-x2", "tiny-x4")
        for image in ("[red]a", "b b")
    ]


def test_bench_fails_below_a_bar(call, pictures):
    facts = json.loads(works(call("bench", "--dataset", pictures, "-s", 2, "--json")))
    reached = facts["results"][1]["mean"]["psnr"]
    for bar, expected in (
        (reached - 0.01, (0, "")),
        (reached + 0.01, (1, f"mambair: below {reached + 0.01:g} dB: tiny-x2\n")),
    ):
        code, out, err = call(
            "bench", "--dataset", pictures, "-s", 2, "--fail-below", bar, "--json"
        )
        assert (code, err) == expected
        assert json.loads(out)["results"][1]["mean"]["psnr"] == reached


def test_bench_keeps_results_unless_they_shall_be_fresh(call, pictures, monkeypatch):
    arguments = ["bench", "--dataset", pictures, "-s", 2, "--images", 1, "--json"]
    first = json.loads(works(call(*arguments)))
    again = json.loads(works(call(*arguments)))
    assert again["network_seconds"] == 0 < first["network_seconds"]
    assert json.loads(works(call(*arguments, "--fresh")))["network_seconds"] > 0
    other = json.loads(
        works(
            call(
                *arguments, "--tiler", "published", "--ensemble", "--channel", "rgb", "--border", 0
            )
        )
    )
    assert other["network_seconds"] > 0
    assert (other["channel"], other["border"], other["tiler"], other["results"][1]["name"]) == (
        "rgb",
        0,
        "published",
        "tiny-x2+",
    )


@pytest.mark.parametrize(
    ("task", "model", "arguments"),
    [
        ("denoise", "tiny-denoise", ("--noise", 25, "--seed", 3)),
        ("dejpeg", "tiny-dejpeg", ("--jpeg", 10)),
        ("derain", "tiny-derain", ("--clean", "derain")),
    ],
)
def test_bench_of_other_tasks(call, pictures, task, model, arguments):
    """The options reach the protocol, and the bundled model of the task is taken."""
    facts = json.loads(
        works(call("bench", "--dataset", pictures, "--images", 1, *arguments, "--json"))
    )
    assert (facts["task"], facts["results"][1]["name"]) == (task, model)
    assert facts["seed"] == (3 if task == "denoise" else None)


def test_bench_of_pairs_that_are_none(call, pictures):
    failing(call("bench", "--dataset", pictures, "--pairs", "derain"), 2, "no inputs")


def test_bench_needs_no_extra(call, pictures, monkeypatch):
    """As after README's first command: nothing but the dependencies is there."""
    for name in ("skimage", "scipy", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    facts = json.loads(works(call("bench", "--dataset", pictures, "-s", 2, "--json")))
    assert {"psnr", "ssim"} == facts["results"][1]["mean"].keys()


def test_bench_download(call, monkeypatch):
    asked = []
    monkeypatch.setattr(
        fetch_sets,
        "fetch_set",
        lambda row, tell, progress: asked.append(row.name) or Path("cache/Kodak24"),
    )
    assert works(call("bench", "download", "Kodak24")) == "cache/Kodak24\n"
    assert asked == ["Kodak24"]


def test_bench_compare(call, folder):
    baseline = result("bicubic", {"[red]a": 28.0, "b": 30.0})
    for name, gain in (("A", 0.0), ("B", 0.252)):
        network = result(
            f"net{name}", {"[red]a": 31 + gain, "b": 33 + 2 * gain}, seconds=2.0 + gain
        )
        Path(f"{name}.json").write_text(json.dumps(build(baseline, network).to_json()))
    (gain,) = json.loads(works(call("bench", "compare", "A.json", "B.json", "--json")))
    assert gain["mean"]["psnr"] == pytest.approx(0.378)
    lines = [
        line.split() for line in works(call("bench", "compare", "A.json", "B.json")).splitlines()
    ]
    assert lines[0] == ["netB", "-", "netA", "PSNR", "SSIM"]
    assert lines[1] == ["[red]a", "+0.2520", "+0.0025"]
    assert lines[3] == ["mean", "+0.3780", "+0.0038"]
    assert lines[4] == ["time", "x1.13,", "peak", "memory", "x1.00"]


def test_bench_speed(call, monkeypatch):
    row = speed.SpeedRow("tiny-x2", "numba", False, "cpu", 64, 64, 0.12345, 7.534, 1.0, 2**28)
    asked = []

    def measured(models, backends, device, dtype, sides, progress):
        asked.append((models, tuple(backends), device, dtype, sides))
        return [row]

    monkeypatch.setattr(speed, "speed", measured)
    assert json.loads(works(call("bench", "speed", "-m", "tiny-x2", "--quick", "--json"))) == [
        {
            "model": "tiny-x2",
            "backend": "numba",
            "graphs": False,
            "device": "cpu",
            "width": 64,
            "height": 64,
            "seconds": 0.12345,
            "seconds_per_megapixel": 7.534,
            "growth": 1.0,
            "process": 2**28,
        }
    ]
    lines = works(
        call("bench", "speed", "--backend", "numba", "--device", "cpu", "--dtype", "fp32")
    ).splitlines()
    assert lines[1].split() == ["tiny-x2", "numba", "cpu", "64x64", "0.123", "7.53", "1.00", "256"]
    bundled = [model.name for model in list_models() if model.bundled]
    assert asked == [
        (["tiny-x2"], (), "auto", "auto", speed.QUICK_SIDES),
        (bundled, ("numba",), "cpu", "fp32", speed.SIDES),
    ]


def test_bench_tiling(call, pictures):
    rows = json.loads(
        works(call("bench", "tiling", DATA / "osprey.png", "-m", "tiny-x2", "--json"))
    )
    assert all(
        {"tile", "overlap", "tiles", "max", "mean", "psnr", "border", "inside"} == row.keys()
        for row in rows
    )
    assert len(rows) > 3
    # All tiles hold this one whole: it equals the untiled result, and JSON has no infinite PSNR.
    *_, last = json.loads(works(call("bench", "tiling", "set/c.png", "--json")))
    assert (last["max"], last["psnr"]) == (0, None)
    lines = works(call("bench", "tiling", "set/c.png")).splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[-1].split() == ["256", "64", "1", "0.00", "0.0000", "inf", "0.00", "0.00"]


def test_bench_memory(call, monkeypatch):
    row = memory.MemoryRow("tiny-x2", 0.25, 2**30, 3, 2**29, 2**28, 3 * 2**28, 1.26)
    free, asked = replace(row, limit=0), []
    monkeypatch.setattr(
        memory, "memory", lambda name, how: asked.append((name, how)) or [row, free]
    )
    facts = {
        "model": "tiny-x2",
        "megapixels": 0.25,
        "limit": 2**30,
        "tiles": 3,
        "predicted": 2**29,
        "measured": 2**28,
        "process": 3 * 2**28,
        "seconds": 1.26,
    }
    out = works(call("bench", "memory", "-m", "tiny-x2", "--json"))
    assert json.loads(out) == [facts, facts | {"limit": 0}]
    lines = works(call("bench", "memory")).splitlines()
    assert asked == [("tiny-x2", bench._upscale_command), ("tiny-x4", bench._upscale_command)]
    assert lines[1].split() == ["tiny-x2", "0.25", "3", "512", "256", "2.00", "768", "1024", "1.3"]
    assert lines[2].split() == ["tiny-x2", "0.25", "3", "512", "256", "2.00", "768", "none", "1.3"]


def test_bench_folder(call, monkeypatch, capsys):
    from mambair_cli.batch.manifest import Record
    from mambair_cli.batch.restore_files import Outcome, Plan, Request
    from mambair_cli.bench.cost import folder
    from mambair_cli.models.choice import Choice
    from mambair_cli.models.tasks import TASKS

    def report(quick, summary):
        plan = Plan(Request(TASKS["upscale"], ("in",)), Choice(), [], Path("out"), 2)
        summary(plan, Outcome(1, [Record("in/a.png", "out/a.png", "ok")]))
        return [Row(f"quick: {quick}", "1.0 ms", "<= 10 ms", True)]

    monkeypatch.setattr(folder, "folder_report", report)
    lines = works(call("bench", "folder", "--quick")).splitlines()
    assert [line.split() for line in lines] == [
        ["what", "measured", "bar"],
        ["quick:", "True", "1.0", "ms", "<=", "10", "ms", "met"],
    ]
    assert json.loads(works(call("bench", "folder", "--json")))[0]["what"] == "quick: False"


def test_choices_are_those_of_the_core():
    def values(choice):
        return sorted(member.value for member in choice)

    assert values(bench.Tiler) == sorted(get_args(tilers.Tiler))
    assert values(bench.Channel) == sorted(get_args(protocols.Channel))
    assert values(bench.PairTask) == sorted(protocols.PAIRED)
    assert values(bench.CleanTask) == sorted(protocols.CLEAN)
    assert values(bench.Metric) == sorted(perceptual.METRICS)


@pytest.mark.parametrize(
    ("command", "report"),
    [
        ("scan", "mambair_cli.bench.cost.cpu.scan_report"),
        ("train", "mambair_cli.bench.cost.train_step.step_report"),
    ],
)
def test_bars(call, monkeypatch, command, report):
    rows = [
        Row("[red]one", "1.5 (3 / 2 ms)", "<= 2", True),
        Row("two", "3.0", "<= 2", False),
        Row("three", "4"),
    ]
    asked = []
    monkeypatch.setattr(report, lambda quick: asked.append(quick) or rows)
    assert json.loads(works(call("bench", command, "--quick", "--json"))) == [
        {"what": "[red]one", "value": "1.5 (3 / 2 ms)", "bar": "<= 2", "met": True},
        {"what": "two", "value": "3.0", "bar": "<= 2", "met": False},
        {"what": "three", "value": "4", "bar": "", "met": None},
    ]
    lines = works(call("bench", command)).splitlines()
    assert asked == [True, False]
    assert [line.split() for line in lines] == [
        ["what", "measured", "bar"],
        ["[red]one", "1.5", "(3", "/", "2", "ms)", "<=", "2", "met"],
        ["two", "3.0", "<=", "2", "MISSED"],
        ["three", "4"],
    ]


def test_bench_scan_on_a_gpu(call, monkeypatch):
    row, asked = Row("core", "3.5", ">= 3", True), []
    monkeypatch.setattr(gpu, "scan_report", lambda *given: asked.append(given) or [row])
    lines = works(call("bench", "scan", "--device", "cuda:1", "--quick")).splitlines()
    assert lines[1].split() == ["core", "3.5", ">=", "3", "met"]
    assert asked == [("cuda:1", True)]


@each_call(
    ("bench", 2, "--dataset", "mambair bench --help"),
    ("bench  --dataset  missing", 2, "missing is no data set and not a folder", "Set5"),
    ("bench  --dataset  Manga109", 2, "Manga109 is not in", "manga109.org", "MAMBAIR_DATA"),
    ("bench  --dataset  Set5  --offline", 1, "must not be used", "EDSR", "MAMBAIR_DATA"),
    ("bench  download  Set5  --offline", 1, "must not be used", "EDSR", "MAMBAIR_DATA"),
    ("bench  --dataset  Set5  --data-root  missing", 2, "missing is not a folder"),
    ("bench  --dataset  empty  -s  2  --noise  25", 2, "exclude each other"),
    ("bench  --dataset  .  -s  2  --tiler  64", 2, "--tiler", "'64'"),
    ("bench  --dataset  .  -s  5", 2, "--scale", "mambair bench --help"),
    ("bench  --dataset  .  --channel  z", 2, "--channel", "'z'"),
    ("bench  --dataset  .  -s  2  --html  missing/r.html", 2, "missing/r.html", "no folder"),
    ("bench  --dataset  .  -s  2", 1, "not an image"),
    ("bench  download  Manga109", 2, "Manga109 cannot be fetched", "manga109.org"),
    ("bench  download  nothing", 2, "nothing is no data set"),
    ("bench  compare  missing.json  missing.json", 2, "missing.json", "printed as JSON"),
    ("bench  compare  recipe.toml  recipe.toml", 2, "recipe.toml", "printed as JSON"),
    ("bench  speed  --backend  nothing", 2, "no back end is called 'nothing'"),
    ("bench  speed  -m  missing.pth  --quick", 1, "missing.pth"),
    ("bench  --dataset  empty", 2, "empty holds no image"),
    (f"bench  --dataset  {LONG}", 1, LONG, "too long"),
    ("bench  tiling  missing.png", 2, "missing.png: no such file"),
    ("bench  tiling", 2, "IMAGE", "mambair bench tiling --help"),
    ("bench  scan  --device  gpu", 2, "'gpu'", "cuda:N"),
    ("bench  nonsense", 2, "'nonsense'", "mambair bench --help"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)
