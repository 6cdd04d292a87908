import pytest
from failing import fails

from mambair_cli.bench.cost import memory
from mambair_cli.bench.cost.probe import Measured
from mambair_cli.commands.bench import _upscale_command as upscale
from mambair_cli.errors import RestorationError


def test_rows_of_a_model_of_a_limit_and_of_commands(monkeypatch):
    asked = []

    def measure(probe):
        asked.append(probe)
        return [Measured(len(asked), 2, "numba", "cpu", 300, 200, 2**28, 1.5)]

    def command(height, limit, command_line):
        return height, limit, command_line

    monkeypatch.setattr(memory, "measure", measure)
    monkeypatch.setattr(memory, "command", command)
    rows = memory.memory("tiny-x2", upscale)
    assert rows[7:] == [(height, 1500 * 2**20, upscale) for height in (1250, 12500)]
    rows = rows[:7]
    assert [row.tiles for row in rows] == list(range(1, 8))
    assert [(row.model, row.limit) for row in rows] == [("tiny-x2", 0)] * 3 + [
        ("stand-in", 2**30)
    ] * 4
    assert [row.megapixels for row in rows] == [128**2 / 2**20, 0.0625, 0.25, 1, 4, 16, 64]
    assert [probe.height * probe.width / 2**20 for probe in asked] == [
        row.megapixels for row in rows
    ]
    assert rows[0].to_json() == {
        "model": "tiny-x2",
        "megapixels": 128**2 / 2**20,
        "limit": 0,
        "tiles": 1,
        "scale": 2,
        "backend": "numba",
        "device": "cpu",
        "predicted": 300,
        "measured": 200,
        "process": 2**28,
        "seconds": 1.5,
    }


def test_a_command_is_measured(monkeypatch, capfd):
    monkeypatch.setattr(memory, "COMMAND_WIDTH", 200)
    row = memory.command(100, 2 * 2**30, upscale)
    assert (row.megapixels, row.limit, row.model) == (
        0.02,
        2**31,
        "stand-in, whole command",
    )
    assert 2**27 < row.process < 2**31
    assert row.seconds > 0.5
    keys = row.to_json().keys()
    assert keys == {
        "model",
        "megapixels",
        "limit",
        "tiles",
        "predicted",
        "measured",
        "process",
        "seconds",
    }
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("limit", [1, 2**20])
def test_a_command_that_fails(monkeypatch, limit):
    monkeypatch.setattr(memory, "COMMAND_WIDTH", 200)
    fails(lambda: memory.command(100, limit, upscale), RestorationError, "100 x 200")
