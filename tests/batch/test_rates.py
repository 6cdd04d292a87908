import json

import pytest

from mambair_cli.batch import rates
from mambair_cli.batch.rates import keep_rate, ran_here, read_rate
from mambair_cli.models.catalog import model_named


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAMBAIR_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rates.json"


def test_a_rate_is_kept_for_a_model_and_a_machine(cache, monkeypatch):
    assert read_rate("tiny-x4", "numba", "cpu") is None
    assert not ran_here()
    keep_rate("tiny-x4", "numba", "cpu", 100_000, 4.0)
    assert read_rate("tiny-x4", "numba", "cpu") == 25_000
    assert ran_here()
    assert not ran_here("triton")
    assert read_rate("tiny-x4", "triton", "cuda") is None
    keep_rate("tiny-x4", "numba", "cpu", 100_000, 2.0)
    assert read_rate("tiny-x4", "numba", "cpu") == 50_000
    monkeypatch.setattr(rates.platform, "node", lambda: "another")
    assert read_rate("tiny-x4", "numba", "cpu") is None
    assert not ran_here()


def test_short_runs_tell_nothing(cache):
    keep_rate("tiny-x4", "numba", "cpu", 9_999, 1.0)
    assert not cache.exists()


def test_another_model_tells_by_its_multiply_adds():
    keep_rate("tiny-x4", "numba", "cpu", 100_000, 1.0)
    tiny, large = model_named("tiny-x4"), model_named("mambair-classic-x4")
    expected = 100_000 * tiny.gmacs / large.gmacs
    assert read_rate("mambair-classic-x4", "numba", "cpu") == pytest.approx(expected)
    double = model_named("tiny-x2")
    expected = 100_000 * (tiny.gmacs * 16) / (double.gmacs * 4)
    assert read_rate("tiny-x2", "numba", "cpu") == pytest.approx(expected)
    assert read_rate("net.pth", "numba", "cpu") is None


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": "b"}', '{"tiny-x4 numba cpu x": -1}'])
def test_a_damaged_file_costs_nothing(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert read_rate("tiny-x4", "numba", "cpu") is None
    keep_rate("tiny-x4", "numba", "cpu", 100_000, 1.0)
    assert list(json.loads(cache.read_text()).values()) == [100_000]


def test_a_cache_that_cannot_be_written_costs_nothing(cache, monkeypatch):
    cache.parent.write_text("a file")
    keep_rate("tiny-x4", "numba", "cpu", 100_000, 1.0)
    assert read_rate("tiny-x4", "numba", "cpu") is None
