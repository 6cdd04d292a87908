import json

import pytest
from failing import fails

from mambair_cli.commands.run_log import run_log
from mambair_cli.errors import CallError


def test_lines_are_appended_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    for number in (1, 2):
        with run_log(path) as write:
            write("file", {"number": number})
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            assert [line["number"] for line in lines] == list(range(1, number + 1))
    assert set(lines[0]) == {"time", "event", "number"}


def test_without_a_file_or_in_another_process_nothing_is_written(tmp_path, monkeypatch):
    with run_log(None) as write:
        write("file", {})
    monkeypatch.setenv("RANK", "1")
    with run_log(tmp_path / "log.jsonl") as write:
        write("file", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["no/log.jsonl", ""])
def test_a_place_that_cannot_be_written(tmp_path, name):
    def log():
        with run_log(tmp_path / name):
            pass

    fails(log, CallError, "cannot be written")
