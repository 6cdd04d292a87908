"""The report on a GPU, without one: its counts, and its rows with costs that are given. No duration is looked at."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from failing import fails

from mambair_cli.bench import gpu
from mambair_cli.bench.gpu import Cost, floor
from mambair_cli.errors import BackendError, CallError

CPU = torch.device("cpu")
TINY = replace(gpu.LIGHT, embed_dim=6, depths=(1,), d_state=2)


class Rates:
    def __init__(self, bytes=1e30, exponentials=1e30, instructions=1e30):
        self.bytes, self.exponentials, self.instructions = bytes, exponentials, instructions


# The floor


def test_the_floor_on_an_h100():
    # 132 processors at 1.98 GHz: 16 exponentials, 128 instructions a clock; 3.35 TB/s. As the design has it.
    h100 = Rates(3.35e12, 132 * 16 * 1.98e9, 132 * 128 * 1.98e9)
    assert floor(gpu.NETS["light"], 2**20, h100) == pytest.approx(1.6e-3, rel=0.02)
    assert floor(gpu.NETS["classic"], 2**20, h100) == pytest.approx(12.3e-3, rel=0.02)


def test_the_floor_is_that_of_the_slowest_part():
    config = gpu.NETS["denoise"]  # D = 216, N = 16, R = 12
    assert floor(config, 7, Rates(bytes=10)) == pytest.approx(7 * 4 * (2 * 216 + 4 * 44) / 10)
    assert floor(config, 7, Rates(exponentials=10)) == pytest.approx(7 * 2 * 4 * 216 * 17 / 10)
    assert floor(config, 7, Rates(instructions=10)) == pytest.approx(7 * 4 * 216 * (9 * 16 + 2 * 24) / 10)


def test_the_nets_are_the_published_ones():
    shapes = {name: (c.inner, c.d_state, c.upscale) for name, c in gpu.NETS.items()}
    assert shapes == {"light": (72, 10, 2), "denoise": (216, 16, 1), "classic": (360, 16, 2)}


# Rows


@pytest.fixture
def costs(monkeypatch):
    """Costs that the measurements find, one after the other; each also runs what it should measure, on the CPU."""
    given = []

    def measure(function):
        function()
        return given.pop(0) if given else Cost(1.0, 100)

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "OURS", "numba")
    monkeypatch.setattr(gpu, "PUBLISHED", "reference")
    monkeypatch.setattr(gpu, "NETS", {"light": TINY})
    monkeypatch.setattr(gpu, "LARGE", 6)
    monkeypatch.setattr(gpu, "PATCH", 4)
    monkeypatch.setattr(gpu, "REPEATS", (1, 1))
    return given


def assert_printable(rows):
    assert len({row["what"] for row in rows}) == len(rows)
    for row in rows:
        assert all(isinstance(row[key], str) for key in ("what", "value", "bar"))
        assert row["met"] in (True, False, None)
        assert row["bar"] or row["met"] is None


def row_of(rows, *words):
    (row,) = (row for row in rows if all(word in row["what"] for word in words))
    return row


def test_rows_of_the_scan(costs):
    pair = [Cost(2e-3, 300), Cost(7e-3, 1000), Cost(9e-3, 0)]  # ours, published, vectorised
    costs += [*pair, Cost(1e-3, 0), Cost(4e-3, 0), Cost(6e-3, 0), Cost(8e-3, 0)]  # the scan; forward and backward
    rows = list(gpu._core_rows(CPU, Rates(bytes=36 * 4 * (14 + 4 * 5) / 0.4e-3), ((1, 6),)))
    assert not costs
    assert_printable(rows)
    published = row_of(rows, "light 1x6x6", "forward,", "reference / numba")
    assert (published["value"], published["bar"], published["met"]) == ("3.50 (7 / 2 ms)", ">= 3", True)
    memory = row_of(rows, "memory")
    assert (memory["value"], memory["bar"], memory["met"]) == ("0.30", "<= 0.35", True)
    least = row_of(rows, "floor")
    assert (least["value"], least["bar"], least["met"]) == ("2.50 (1 / 0.4 ms)", "<= 2", False)
    assert row_of(rows, "forward + backward", "reference / numba")["value"] == "1.50 (6 / 4 ms)"
    assert row_of(rows, "forward + backward", "vectorised")["value"] == "2.00 (8 / 4 ms)"


def test_bars_hold_for_their_sides_alone(costs):
    rows = list(gpu._core_rows(CPU, Rates(), ((2, 4), (1, 5), (1, 6))))
    assert_printable(rows)
    barred = [row["what"] for row in rows if row["bar"]]
    assert [re.search(r"\dx\dx\d", what)[0] for what in barred] == ["2x4x4", "1x6x6", "1x6x6", "1x6x6"]


def test_what_cannot_be_measured_says_why(costs, monkeypatch):
    costs += ["out of memory", *[Cost(1e-3, 5)] * 2]
    rows = list(gpu._forward_rows("light", gpu._module(TINY, CPU), torch.rand(1, 6, 6, 7)))
    assert rows[0]["value"] == "out of memory"
    assert row_of(rows, "reference / numba")["value"] == "not measured (out of memory)"
    assert row_of(rows, "reference / numba")["met"] is None
    assert row_of(rows, "reference / numba")["bar"] == ">= 3"
    monkeypatch.setattr(gpu, "PUBLISHED", "mamba-ssm")
    rows = list(gpu._forward_rows("light", gpu._module(TINY, CPU), torch.rand(1, 6, 6, 7)))
    reason = "it runs on NVIDIA and AMD GPUs, not on cpu"
    assert [row["value"] for row in rows if row["what"] == "core light 1x6x6, forward, mamba-ssm"] == [reason]
    assert row_of(rows, "mamba-ssm / numba")["value"] == f"not measured ({reason})"
    assert all("memory" not in row["what"] for row in rows)


def test_rows_of_nets(costs):
    costs += [Cost(1e-3, 2**20), Cost(5e-3, 0)]
    rows = list(gpu._net_rows(CPU, ((1, 6), (2, 4))))
    assert_printable(rows)
    assert row_of(rows, "1x6x6, float32, numba")["value"] == "1 ms, 1 MiB, 0.036 megapixels of input a second"
    ratio = row_of(rows, "1x6x6, float32, reference / numba")
    assert (ratio["value"], ratio["bar"], ratio["met"]) == ("5.00 (5 / 1 ms)", ">= 2.5", True)
    assert row_of(rows, "1x6x6, float16, reference / numba")["met"] is False
    assert row_of(rows, "16x4x4, float32, training step, reference / numba")["value"] == "1.00 (1e+03 / 1e+03 ms)"


def test_a_training_step_learns(costs):
    step = gpu._training(TINY, torch.rand(2, 3, 4, 4), "numba")
    model = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)


def test_errors_against_float64(costs, monkeypatch):
    def rows():
        found = list(gpu._error_rows(CPU))
        assert_printable(found)
        return [(float(row["value"]), row["met"]) for row in found]

    assert all(0 < error < 1e-5 and met for error, met in rows())
    by = gpu._by
    monkeypatch.setattr(gpu, "_by", lambda backend: lambda *inputs: 1.001 * by(backend)(*inputs))
    assert all(error == pytest.approx(1e-3, rel=0.1) and not met for error, met in rows())


# Measuring


@pytest.fixture
def clock(monkeypatch):
    """A GPU on which each call takes 0.2 s and a memory that grows by 70 bytes."""
    now = itertools.count(step=0.2)
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(now))
    names = {"memory_allocated": 30, "max_memory_allocated": 100}
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", *names):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: names.get(name))


def test_a_measurement(clock):
    calls = []
    found = gpu.measure(lambda: calls.append(1))
    assert found == Cost(pytest.approx(0.2), 70)
    assert len(calls) == 1 + gpu.REPEATS[0]
    assert str(Cost(0.0123456, 3 * 2**20)) == "12.3 ms, 3 MiB"


def test_a_measurement_that_runs_out_of_memory(clock):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu.measure(fail) == "out of memory"


def test_another_error_is_not_swallowed(clock):
    def fail():
        raise RuntimeError("the kernel")

    with pytest.raises(RuntimeError, match="the kernel"):
        gpu.measure(fail)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    fails(lambda: gpu.scan_report("cuda", True), BackendError, "'cuda' cannot be used")


def test_other_devices(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    fails(lambda: gpu.scan_report("mps", True), CallError, "cpu or cuda, not mps")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.long
def test_the_whole_report_on_a_gpu():
    rows = gpu.scan_report("cuda", True)
    assert_printable(rows)
    assert all(row["met"] for row in rows if "error" in row["what"])
