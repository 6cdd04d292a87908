import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calls import fails, program
from doubler import Doubler
from folders import make, pixels_of

from mambair_cli.commands import watch
from mambair_cli.restore import upscaler

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture
def call(call, monkeypatch):
    monkeypatch.setattr(upscaler, "Upscaler", lambda choice, options: Doubler())
    return call


def test_it_ends_on_an_interrupt(call, monkeypatch):
    make("in/a.png")
    Path("in/bad.png").write_bytes(b"no image")

    def looks(folder):
        yield from (True, False)
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "looks", looks)
    code, out, err = call("watch", "in", "-o", "out", "-s", 2, "--log", "log.jsonl")
    assert code == 0
    first, last = out.splitlines()
    assert first.startswith("out/a.png: ")
    assert last == "out/: 1 restored, 1 failed"
    assert err.startswith("mambair: watching in; Ctrl-C ends it\nmambair: in/bad.png: not an image")
    lines = [json.loads(line) for line in Path("log.jsonl").read_text("utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["start", "file", "file", "end"]
    code, out, _ = call("watch", "in", "-o", "out", "-s", 2, "-q")
    assert (code, out) == (0, "out/: 0 restored, 1 skipped as finished, 1 failed\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("no -o out", "no: no such folder"),
        ("in -o out --task denoise -s 2", "denoise does not enlarge"),
        ("in -o out --task nonsense", "--task"),
        ("in", "--output"),
    ],
)
def test_bad_calls(call, words, told):
    Path("in").mkdir()
    fails(call("watch", *words.split()), 2, told)


def test_without_watchfiles(call, monkeypatch):
    Path("in").mkdir()
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    fails(call("watch", "in", "-o", "out", "-q"), 1, "pip install 'mambair[watch]'")


def test_changes_are_seen():
    pytest.importorskip("watchfiles")
    Path("in").mkdir()
    looks = watch.looks(Path("in").resolve())
    assert next(looks)
    assert not next(looks)
    Path("in/a.txt").write_text("x")
    assert any(next(looks) for _ in range(5))


PROGRAM = """
import sys
sys.argv = ["mambair", *sys.argv[1:]]
from doubler import Doubler
from mambair_cli import cli
from mambair_cli.restore import upscaler
upscaler.Upscaler = lambda choice, options: Doubler()
cli.main()
"""


def test_a_whole_run():
    """In a process of its own, with a photo that arrives in parts, and Ctrl-C."""
    pytest.importorskip("watchfiles")
    Path("in").mkdir()
    start = program("watch", "in", "-o", "out", "-s", "2")
    start["args"][1:3] = ["-c", PROGRAM]
    start["env"]["PYTHONPATH"] += ":" + str(Path(__file__).parents[1])
    make("a.png", size=64)
    data = Path("a.png").read_bytes()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(**start, **pipes)
    signal.signal(signal.SIGINT, previous)
    assert "watching in" in process.stderr.readline()
    with Path("in/a.png").open("wb", 0) as file:
        for begin in range(0, len(data), 5000):
            file.write(data[begin : begin + 5000])
            time.sleep(0.3)
    assert process.stdout.readline().startswith("out/a.png: ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "out/: 1 restored\n", "")
    assert pixels_of(0, 64).shape == (64, 64, 3)
    assert Path("out/a.png").is_file()
