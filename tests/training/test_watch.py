import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from failing import fails
from PIL import Image

from mambair_cli.errors import BackendError
from mambair_cli.training import watch as module
from mambair_cli.training.validation import Pair
from mambair_cli.training.watch import (
    CROP,
    LABEL,
    Watch,
    describe,
    in_words,
    read_log,
    side_by_side,
    write_crops,
    write_curves,
)

ENTRY = {
    "iteration": 3,
    "loss": 0.25,
    "lr": 1e-3,
    "it_per_s": 2.0,
    "wait": 0.0,
    "outside": 0.1,
    "skipped": 0,
}


def test_an_entry_in_words():
    assert describe(ENTRY, 243) == "3/243, loss 0.25000, 2.00 it/s, 2 min left"
    later = ENTRY | {"psnr_y": 31.5, "skipped": 2, "loss": None}
    assert describe(later, 3) == "3/3, loss none, 31.500 dB, 2.00 it/s, 0 min left, 2 steps skipped"
    assert describe(ENTRY | {"wait": 0.117}, 3).endswith("0 min left, 12% waiting for data")
    assert "dB" not in describe(ENTRY | {"psnr_y": None}, 3)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 min"),
        (59 * 60, "59 min"),
        (3600 + 5 * 60, "1 h 05 min"),
        (24 * 3600, "1 day 0 h"),
        (52 * 3600 + 59 * 60, "2 days 4 h"),
    ],
)
def test_times_to_come(seconds, words):
    assert in_words(seconds) == words


def test_the_log_is_strict_json(tmp_path):
    """An image that is restored exactly has an infinite PSNR."""
    watch = Watch(tmp_path, 9, 0, tensorboard=False)
    watch.log(ENTRY | {"psnr": math.inf, "loss": None})
    logged = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert (logged["psnr"], logged["loss"], logged["iteration"]) == (None, None, 3)


def test_the_log_goes_on_where_the_run_does(tmp_path, capsys):
    first = Watch(tmp_path, 9, 0, tensorboard=False)
    for i in range(1, 6):
        first.log(ENTRY | {"iteration": i})
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"iteration": 6, "lo')
    assert [entry["iteration"] for entry in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]
    Watch(tmp_path, 9, 3, tensorboard=False).log(ENTRY | {"iteration": 4, "psnr": 30.0})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1/9, loss 0.25000, 2.00 it/s, 0 min left"
    assert lines[-1] == "4/9, loss 0.25000, 30.000 dB, 2.00 it/s, 0 min left"


def test_the_live_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    watch = Watch(tmp_path, 243, 2, tensorboard=False)
    lines = []
    monkeypatch.setattr(
        watch._bar,
        "update",
        lambda task, completed, description: lines.append((completed, description)),
    )
    # seconds
    clock = iter([watch._began + 4, 100, 103, 106])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    watch.tick(3, 0.5)
    watch.log(ENTRY | {"psnr_y": 31.5})
    watch.tick(4, math.nan)
    watch.tick(5, 0.125)
    assert lines == [
        (3, "3/243, loss 0.50000, 0.25 it/s, 16 min left"),
        (3, "3/243, loss 0.25000, 31.500 dB, 2.00 it/s, 2 min left"),
        (4, "4/243, loss none, 31.500 dB, 0.33 it/s, 12 min left"),
        (5, "5/243, loss 0.12500, 31.500 dB, 0.33 it/s, 12 min left"),
    ]
    watch.close()


def test_the_live_line_is_on_stderr(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "log.jsonl").write_text(json.dumps(ENTRY | {"iteration": 2, "psnr_y": 31.5}) + "\n")
    watch = Watch(tmp_path, 243, 2, tensorboard=False)
    watch.tick(3, 0.25)
    watch.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    # one time left, not the bar's own beside it
    assert not re.search(r"-:--:--|\d:\d\d:\d\d", captured.err)
    assert re.search(r"3/243, loss 0\.25000, 31\.500 dB, .* it/s", captured.err)


def test_tensorboard(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = Watch(tmp_path, 9, 0, tensorboard=True)
    watch.log(ENTRY | {"psnr_y": 31.5})
    watch.log(ENTRY | {"iteration": 4, "loss": None})
    watch.show(*some(), 3)
    watch.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "lr", "psnr_y", "wait"} <= set(events.Tags()["scalars"])
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.25)]
    assert [e.step for e in events.Images("validation")] == [3]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    fails(
        lambda: Watch(tmp_path, 9, 0, tensorboard=True),
        BackendError,
        "TensorBoard",
        "mambair[train]",
    )


def some():
    """A dark image, half as large, its result in gray and a bright truth; and a small gray one."""
    low, out, high = (
        np.full((s, s, 3), v, np.uint8) for s, v in ((60, 10), (120, 100), (120, 250))
    )
    gray = np.full((20, 20, 1), 77, np.uint8)
    return [out, gray], [Pair(low, high), Pair(np.full((20, 20, 1), 0.5, np.float32), gray)]


def test_validation_crops_side_by_side(tmp_path):
    picture = side_by_side(*some())
    assert picture.shape == (LABEL + 2 * 2 * CROP, 4 * 2 * CROP, 3)
    labels, rows = picture[:LABEL], picture[LABEL:]
    for i in range(4):
        assert (labels[:, 2 * CROP * i : 2 * CROP * (i + 1)] < 128).any()
    middles = [rows[CROP, (2 * i + 1) * CROP].tolist() for i in range(4)]
    assert middles == [[10] * 3, [10] * 3, [100] * 3, [250] * 3]
    assert rows[2 * CROP + 1, 1].tolist() == [128] * 3
    # nothing
    assert rows[-1, -1].tolist() == [255] * 3
    # Without a scale, bicubic would be the input.
    same = [Pair(pair.high, pair.high) for pair in some()[1]]
    assert side_by_side(some()[0], same).shape[1] == 3 * 2 * CROP
    write_crops(*some(), tmp_path / "crops.png")
    with Image.open(tmp_path / "crops.png") as image:
        assert np.array_equal(np.asarray(image), picture)


def test_curves(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    lines = [
        ENTRY | {"iteration": i, "loss": 1 / i} | ({"psnr_y": 30 + i} if i % 2 else {})
        for i in range(1, 9)
    ]
    lines.append(ENTRY | {"iteration": 9, "loss": None})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (800, 900)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not write_curves(tmp_path / "log.jsonl", tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


def test_damaged_lines_of_a_log_are_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    good = b'{"iteration": 1, "loss": 0.5}'
    damaged = [b"\0\0\0", b"[" * 50_000, b"\xff", b"5", b"{}", b'{"iteration": "x"}', b"null"]
    path.write_bytes(b"\n".join([good, *damaged, good, b'{"iteration": 2, "lo']))
    assert read_log(path) == [{"iteration": 1, "loss": 0.5}] * 2
    assert read_log(tmp_path) == []
