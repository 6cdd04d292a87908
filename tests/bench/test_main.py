"""`python -m mambair_cli.bench` without a GPU."""

import json
import sys

import pytest
import torch
from failing import fails
from gpu_reports import assert_printable

from mambair_cli.bench import __main__ as program
from mambair_cli.bench.cost import gpu
from mambair_cli.bench.cost.rows import Row
from mambair_cli.errors import BackendError


@pytest.fixture
def run(gpu_report, monkeypatch, capsys):
    def scan_report(device, quick, cache):
        assert device == "cuda:1"
        return gpu_report((1, 4), *[] if quick else [(1, 6)], cache=cache).rows()

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        try:
            program.main()
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    monkeypatch.setattr(program, "scan_report", scan_report)
    return call


def test_the_program(run, tmp_path, monkeypatch):
    out = tmp_path / "a" / "b"
    code, table, told = run("--out", out, "--device", "cuda:1")
    assert code == 0
    lines = (out / "rows.jsonl").read_text().splitlines()
    rows = [Row(**json.loads(line)) for line in lines]
    assert_printable(rows)
    assert len(table.splitlines()) == len(told.splitlines()) == len(rows) >= 60
    for row, line, note in zip(rows, table.splitlines(), told.splitlines(), strict=True):
        assert line.split() == [
            *f"{row.what} {row.value} {row.bar}".split(),
            *{True: ["met"], False: ["MISSED"], None: []}[row.met],
        ]
        assert note.endswith(f" s  {row.what}: {row.value}")
    assert len(run("--out", out, "--device", "cuda:1", "--quick")[1].splitlines()) < len(rows)
    monkeypatch.setattr(gpu, "measure", lambda function: pytest.fail("it is known"))
    assert run("--out", out, "--device", "cuda:1")[:2] == (0, table)


def test_wrong_calls_of_the_program(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, told = run("--out", tmp_path / "file" / "folder")
    assert (code, out, told.count("\n")) == (2, "", 1)
    assert "name another folder" in told
    assert run()[0] == 2
    (tmp_path / "results.sqlite").write_text("nonsense " * 100)
    code, _, told = run("--out", tmp_path, "--device", "cuda:1")
    assert (code, told.count("\n")) == (1, 1)
    assert "results.sqlite" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    fails(lambda: program.run(tmp_path, "cuda", True), BackendError, "'cuda' cannot be used")
