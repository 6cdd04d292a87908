import importlib.util
import math

import pytest
import torch

from mambair_cli.archs.mambair import MambaIR, MambaIRConfig
from mambair_cli.bench.cost import cpu as kernels
from mambair_cli.ops.simd import LANES

# Nothing here looks at a duration.


@pytest.fixture
def untimed(monkeypatch):
    """Reports without timing: small inputs of the same statistics, every duration one second."""
    monkeypatch.setattr(kernels, "work_seconds", lambda function, repeats: 1.0)
    inputs = kernels.scan_inputs
    monkeypatch.setattr(kernels, "scan_inputs", lambda side, dtype=torch.float32: inputs(12, dtype))


def error_rows():
    rows = kernels.error_rows()
    assert ["forward" in row.what for row in rows] == [True, False]
    for row in rows:
        assert row.met is (float(row.value) <= float(row.bar.removeprefix("<=")))
    return rows


def test_the_errors_of_the_scan_meet_their_bars(untimed):
    assert all(row.met and float(row.value) > 0 for row in error_rows())


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_a_wrong_scan_misses_its_bars(untimed, monkeypatch, wrong):
    scan = kernels.numba_scan

    def worse(*inputs):
        y = scan(*inputs)
        return y * 1.0001 if wrong == "value" else y + 1e-4 * (y - y.detach())  # the same value

    monkeypatch.setattr(kernels, "numba_scan", worse)
    assert [row.met for row in error_rows()] == [wrong == "gradient", False]


@pytest.mark.parametrize("swinir", [None, torch.nn.Identity()])
def test_every_row_can_be_printed(untimed, monkeypatch, swinir):
    monkeypatch.setattr(kernels, "swinir_light", lambda: swinir)
    rows = [*kernels.error_rows(), *kernels.op_rows(True)]
    rows += [*kernels.net_rows(True), *kernels.tiny_rows(True)]
    assert len({row.what for row in rows}) == len(rows)
    for row in rows:
        facts = row.to_json()
        assert set(facts) == {"what", "value", "bar", "met"}
        assert all(isinstance(facts[key], str) for key in ("what", "value", "bar"))
        assert row.met in (True, False, None)
        assert row.bar or row.met is None


def test_the_bundled_nets_have_to_be_faster_than_light_ones(untimed, monkeypatch):
    rows = kernels.tiny_rows(True)
    assert [row.what.split()[1:4] for row in rows] == [[f"x{s}", "net", "/"] for s in (2, 3, 4)]
    assert not any(row.met for row in rows)  # as all durations are equal

    def seconds(run, repeats):
        net = run.func
        return 4.0 if net.config.embed_dim == kernels.LIGHT.embed_dim else 1.0

    monkeypatch.setattr(kernels, "work_seconds", seconds)
    assert all(row.met and row.value == "4.0 (4000 / 1000 ms)" for row in kernels.tiny_rows(True))


def floor(side, depths):
    config = MambaIRConfig(16, depths, 4, 1.0, "light_c", "pixelshuffledirect", 2)
    with torch.inference_mode():
        return kernels.floor(MambaIR(config).eval(), torch.rand(1, 3, side, side))


def test_the_floor_is_a_time():
    assert 0 < floor(16, (1,)) < math.inf


def test_the_floor_is_the_work_by_the_rates(untimed):
    # With all durations equal, the floor counts: nearly all work is for pixels, and in the blocks.
    assert floor(64, (1,)) / floor(16, (1,)) == pytest.approx(16, rel=0.01)
    one, two, four = (floor(16, (depth,)) for depth in (1, 2, 4))
    assert (four - two) / (two - one) == pytest.approx(2)
    block = two - one
    config = MambaIRConfig(16, (1,), 4, 1.0, "light_c", "pixelshuffledirect", 2)
    updates = 4 * config.inner * config.d_state * 16 * 16
    assert block > 13 * updates / LANES / 2_000_000 / 10


@pytest.mark.parametrize("missing", ["spandrel", "einops"])
def test_without_spandrel_its_row_says_how_to_get_it(untimed, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == missing else find(name, *rest),
    )
    (row,) = (row for row in kernels.net_rows(True) if "SwinIR" in row.what)
    assert row.met is None
    assert "pip install" in row.value


def test_the_report_leaves_the_number_of_threads(monkeypatch):
    seen = []

    def fail():
        seen.append(torch.get_num_threads())
        raise MemoryError

    monkeypatch.setattr(kernels, "error_rows", fail)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(MemoryError):
            kernels.scan_report(True)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
