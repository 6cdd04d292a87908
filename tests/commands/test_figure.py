import importlib.util
import re
from pathlib import Path

from calls import DATA, check_bad, each_call, works

from mambair_cli.bench.figures import erf, lam, scaling
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image


def test_figure_erf(call, folder, monkeypatch):
    monkeypatch.setattr(erf, "SIDE", 24)
    for place, side in (("HR/a", 30), ("HR/b", 30), ("LR/X4/ax4", 7), ("LR/X4/bx4", 7)):
        path = Path("set") / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(
            path, Image(read_rgb(DATA / "photo.png")[:side, :40])
        )  # the small ones would be refused
    out = works(
        call(
            "bench",
            "figure",
            "erf",
            "--dataset",
            "set",
            "--images",
            2,
            "-m",
            "tiny-x2",
            "-o",
            "erf.png",
        )
    )
    assert re.fullmatch(r"tiny-x2: 20 % in [\d.]+ %.*, 99 % in [\d.]+ % of the area\n", out)
    assert read_rgb(Path("erf.png")).shape[1] > 500


def test_figure_complexity(call, folder, monkeypatch):
    cost = scaling.Cost("full attention", 64, 2_072_000_000, 0.4372)
    found = [cost, scaling.Cost("full attention", 512, 8_250_000_000_000, None)]
    monkeypatch.setattr(scaling, "costs", lambda device, report: found)
    lines = works(call("bench", "figure", "complexity", "-o", "cost.svg")).splitlines()
    assert lines[0] == "full attention, 64x64: 2.072 G multiply-adds, 437.2 ms"
    assert lines[1].endswith("not measured")
    assert Path("cost.svg").is_file()


def test_figure_lam(call, folder, monkeypatch):
    monkeypatch.setattr(lam, "STEPS", 2)
    arguments = [
        "bench",
        "figure",
        "lam",
        DATA / "osprey.png",
        "-m",
        "tiny-x2",
        "--backend",
        "numba",
        "--side",
        8,
    ]
    out = works(call(*arguments, "-o", "lam.png", "--at", 20, 30))
    assert re.fullmatch(r"tiny-x2: diffusion index \d+\.\d\d\n", out)
    assert works(call(*arguments, "-o", "lam.png")) != out
    assert read_rgb(Path("lam.png")).shape[1] > 500


def test_figure_visual(call, folder):
    arguments = ["bench", "figure", "visual", DATA / "osprey.png", "-s", 2, "-o", "visual.png"]
    lines = works(call(*arguments, "--at", 5, 6, "--side", 20)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["bicubic", "tiny-x2"]
    assert all(re.fullmatch(r".*: \d\d\.\d{3} dB, 0\.\d{4}", line) for line in lines)
    assert (
        works(call(*arguments)).splitlines() == lines
    )  # the spot is found, the scores are of the image


@each_call(
    ("bench  figure  erf  -o  a.jpg", 2, "a.jpg", ".png, .svg, .pdf"),
    ("bench  figure  erf  -o  none/a.png", 2, "no folder"),
    ("bench  figure  erf  -o  a.png  --dataset  nothing", 2, "nothing is no data set"),
    ("bench  figure  erf  -o  a.png  --offline", 1, "B100 is not here", "must not be used"),
    ("bench  figure  lam  missing.png  -o  a.png", 2, "missing.png"),
    ("bench  figure  lam  deep.png  -o  a.png  -m  tiny-x2  -m  tiny-x4", 2, "different scales"),
    ("bench  figure  lam  deep.png  -o  a.png  --side  999", 2, "999", "leaves the image"),
    ("bench  figure  lam  deep.png  -o  a.png  --at  20  20", 2, "20 20", "leaves the image"),
    (
        "bench  figure  visual  deep.png  -o  a.png  -s  2  --at  20  20",
        2,
        "20 20",
        "leaves the image",
    ),
    (
        "bench  figure  visual  deep.png  -o  a.png  --noise  25  -m  tiny-x2",
        2,
        "enlarges 2 times, not 1",
    ),
    ("bench  figure  visual  text.png  -o  a.png", 1, "text.png"),
    ("bench  figure  visual", 2, "mambair bench figure visual --help"),
)
def test_bad_calls(call, bad, line, code, words):
    check_bad(call, bad, line.split("  "), code, words)


def test_without_matplotlib(call, folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "matplotlib" else find(name, *more),
    )
    code, _, err = call("bench", "figure", "complexity", "-o", "a.png")
    assert (code, err) == (
        2,
        "mambair: figures need one more package: pip install 'mambair[bench]'\n",
    )
