import io
import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from calls import TAIL, Terminal, plain_lines, write_tiled_photo
from doubler import Doubler
from folders import make

from mambair_cli import ops
from mambair_cli.commands.terminal import (
    BackendNames,
    DtypeNames,
    as_flags,
    print_table,
    progress_bar,
    say,
    show,
    visible,
)
from mambair_cli.restore import upscaler
from mambair_cli.system.devices import resolve_dtype


def test_progress_on_a_terminal(folder):
    write_tiled_photo(Path("[red]x.png"))
    terminal = Terminal("upscale", "[red]x.png", "-s", "2", "-o", "out.png", "--tile", "96")
    assert terminal.end() == 0
    *bars, last = re.split(r"[\r\n]+", plain_lines(terminal.shown))
    assert re.fullmatch(f"out.png: 384x288 -> 768x576, looks clean: tiny-x2, {TAIL[:-2]}", last)
    first, *bars = bars
    assert first == "mambair: upscale [red]x.png"
    compiling = r"compiling kernels for this processor, once, about \d+ s"
    labels = rf"(starting|loading the network|{compiling}|\[red\]x\.png)"
    bar = rf"{labels} [━╸╺ ]+ +(?P<share>\d+)% (?P<time>\S+)"
    steps = [re.fullmatch(bar, line) for line in bars if line]
    assert all(steps), bars
    assert {step[1] for step in steps} >= {"starting", "[red]x.png"}
    shares = [int(step["share"]) for step in steps]
    assert shares == sorted(shares)
    assert shares[0] < 100 == shares[-1]
    assert any(
        re.fullmatch(r"\d+:\d\d:\d\d", step["time"]) for step in steps if int(step["share"]) < 100
    )


class Stream(io.StringIO):
    def isatty(self):
        return True


def test_progress_of_a_folder_on_a_terminal(call, empty_folder, monkeypatch):
    make("in/a.png", "in/two\nlines.png", f"in/{'x' * 200}.png")
    Path("in/bad.png").touch()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out, err = Stream(), Stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(upscaler, "Upscaler", lambda *_: Doubler(lambda image: time.sleep(0.15)))
    assert call("upscale", "in", "-o", "out")[0] == 1
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", err.getvalue())
    assert re.search(r"1 of 4: a\.png +[━╸╺ ]+ +\d+% \S+", shown)
    assert re.search(r"of 4: two\\nlines\.png [━╸╺ ]+", shown)
    assert re.search(r"4 of 4: x+… [━╸╺ ]+", shown)
    assert shown.count("mambair: in/bad.png: the file is empty") == 1
    assert "1 of 4" not in out.getvalue()
    monkeypatch.setenv("RANK", "1")
    with progress_bar(False) as report:
        report(0.5, "nothing is shown")
    assert "nothing" not in err.getvalue()


@pytest.fixture
def narrow(monkeypatch):
    """The lines of a table on a terminal of 40 columns."""

    def lines(header, row):
        shown = Stream()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setattr(sys, "stdout", shown)
        print_table(header, [row])
        return plain_lines(shown.getvalue()).splitlines()[1:]

    return lines


def test_a_narrow_table_keeps_the_names_of_models_whole(narrow):
    name, path = "mambair-light-c-x2", f"/home/{'long' * 10}/file.safetensors"
    lines = narrow(("name", "file"), (name, path))
    assert lines[0].split()[0] == name
    assert "".join("".join(lines).removeprefix(f" {name}").split()) == path


def test_a_narrow_table_loses_no_column_for_a_long_first_one(narrow):
    lines = narrow(("image", "PSNR", "SSIM"), ("a" * 78, "31.612", "0.8869"))
    assert "".join(line.split()[0] for line in lines) == "a" * 78
    assert lines[0].split()[1:] == ["31.612", "0.8869"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`tile_overlap` cannot be negative", "--tile-overlap cannot be negative"),
        ("out of memory; give `tile=64`", "out of memory; give --tile 64"),
        ("name a folder with `output`, or", "name a folder with -o, or"),
        ("(`model`)", "(-m)"),
        ("a`tile`.png: no such file", "a`tile`.png: no such file"),
        ("run `mambair models list`", "run `mambair models list`"),
    ],
)
def test_fields_of_the_core_become_flags(message, shown, capsys):
    assert as_flags(message) == shown
    say(message)
    assert capsys.readouterr().err == f"mambair: {shown}\n"


def test_the_choices_are_those_of_the_core():
    assert {str(name) for name in BackendNames} == {"auto", *(b.name for b in ops.BACKENDS)}
    for name in DtypeNames:
        assert resolve_dtype(name, torch.device("cpu")).is_floating_point
    assert f"{DtypeNames.FP16} {json.dumps(DtypeNames.FP16)}" == 'fp16 "fp16"'


def test_control_characters_are_shown(capsys):
    say("a\x1b[31mb\nc\x07\x9b\u202e")
    show("a\rb\x7f\u2028\t")
    print_table(("name",), [("a\x1b]0;x\x07b",)])
    out, err = capsys.readouterr()
    assert err == r"mambair: a\x1b[31mb\nc\x07\x9b\u202e" + "\n"
    assert out.splitlines()[0] == r"a\rb\x7f\u2028\t"
    assert r"a\x1b]0;x\x07b" in out
    assert visible("Gr\u00fc\u00dfe \U0001f468\u200d\U0001f469 \u65e5\u672c") == (
        "Gr\u00fc\u00dfe \U0001f468\u200d\U0001f469 \u65e5\u672c"
    )


def test_nothing_is_said_where_stderr_is_closed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    say("something")
    monkeypatch.undo()
    assert capsys.readouterr() == ("", "")
