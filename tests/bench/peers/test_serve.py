import io
import json

import numpy as np
import pytest

from mambair_cli.bench.peers import serve
from mambair_cli.bench.peers.contestants import Contestant


def doubler(threads):
    def enlarge(image):
        if image.size and image.max() == 13:
            raise RuntimeError("out\nof luck")
        return image.repeat(2, 0).repeat(2, 1)

    return enlarge


@pytest.fixture
def served(monkeypatch, capsys):
    """The answers to requests."""
    one = Contestant("toy", False, (), "", doubler, lambda: 0)
    monkeypatch.setattr(serve, "contestants", lambda scale: [one])

    def ask(*requests):
        lines = "".join(f"{json.dumps(request)}\n" for request in requests)
        monkeypatch.setattr(serve.sys, "stdin", io.StringIO(lines))
        serve.main(2, "toy")
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return ask


def test_requests_are_answered_in_turn(served, tmp_path):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.save(tmp_path / "image.npy", image)
    result = tmp_path / "result.npy"
    request = {"image": str(tmp_path / "image.npy")}
    loaded, first, second = served(
        {"threads": 2}, request | {"result": str(result)}, request | {"result": None}
    )
    assert loaded.keys() == {"peak"}
    assert first.keys() == second.keys() == {"seconds", "work", "peak"}
    assert min(first["seconds"], first["work"], first["peak"]) >= 0
    assert np.array_equal(np.load(result), doubler(1)(image))


def test_an_error_is_an_answer_and_the_next_request_is_served(served, tmp_path):
    for name, value in (("good", 1), ("bad", 13)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 2, 3), value, np.uint8))
    _, bad, good = served(
        {"threads": 1},
        *({"image": str(tmp_path / f"{name}.npy"), "result": None} for name in ("bad", "good")),
    )
    assert bad == {"error": "RuntimeError: out"}
    assert "seconds" in good
