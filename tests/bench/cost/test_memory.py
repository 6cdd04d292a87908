import pytest
from failing import fails

from mambair_cli.bench.cost import memory
from mambair_cli.errors import RestorationError


def test_rows_of_a_model_of_a_limit_and_of_commands(monkeypatch):
    asked = []
    monkeypatch.setattr(
        memory, "measure", lambda probe: asked.append(probe) or {"tiles": len(asked)}
    )
    monkeypatch.setattr(memory, "command", lambda height, limit: {"height": height, "limit": limit})
    rows = memory.memory("tiny-x2")
    assert rows[7:] == [{"height": height, "limit": 1500 * 2**20} for height in (1250, 12500)]
    rows = rows[:7]
    assert [row["tiles"] for row in rows] == list(range(1, 8))
    assert [(row["model"], row["limit"]) for row in rows] == [("tiny-x2", 0)] * 3 + [
        ("stand-in", 2**30)
    ] * 4
    assert [row["megapixels"] for row in rows] == [128**2 / 2**20, 0.0625, 0.25, 1, 4, 16, 64]
    assert [probe.height * probe.width / 2**20 for probe in asked] == [
        row["megapixels"] for row in rows
    ]


def test_a_command_is_measured(monkeypatch, capfd):
    monkeypatch.setattr(memory, "COMMAND_WIDTH", 200)
    row = memory.command(100, 2 * 2**30)
    assert (row["megapixels"], row["limit"], row["model"]) == (
        0.02,
        2**31,
        "stand-in, whole command",
    )
    assert 2**27 < row["process"] < 2**31
    assert row["seconds"] > 0.5
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("limit", [1, 2**20])
def test_a_command_that_fails(monkeypatch, limit):
    monkeypatch.setattr(memory, "COMMAND_WIDTH", 200)
    fails(lambda: memory.command(100, limit), RestorationError, "100 x 200")
