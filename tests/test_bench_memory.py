from mambair_cli.bench import memory


def test_rows_of_a_model_and_of_a_limit(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "measure", lambda probe: asked.append(probe) or {"tiles": len(asked)})
    rows = memory.memory("tiny-x2")
    assert [row["tiles"] for row in rows] == list(range(1, 8))
    assert [(row["model"], row["limit"]) for row in rows] == [("tiny-x2", 0)] * 3 + [("stand-in", 2**30)] * 4
    assert [row["megapixels"] for row in rows] == [128**2 / 2**20, 0.0625, 0.25, 1, 4, 16, 64]
    assert [probe.height * probe.width / 2**20 for probe in asked] == [row["megapixels"] for row in rows]
