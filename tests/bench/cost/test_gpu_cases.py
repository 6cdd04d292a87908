"""What is measured on a GPU and how, without one: the floor, a training step, the clock."""

import pytest
import torch
from gpu_reports import TINY, fast_rates

from mambair_cli.bench.cost import gpu_cases
from mambair_cli.bench.cost.gpu_cases import Cost, Failed, floor

# The floor


def test_the_floor_on_an_h100():
    # 132 processors at 1.98 GHz: 16 exponentials, 128 instructions a clock; 3.35 TB/s.
    h100 = fast_rates(3.35e12, 132 * 16 * 1.98e9, 132 * 128 * 1.98e9)
    assert floor(gpu_cases.NETS["light"], 2**20, h100) == pytest.approx(1.6e-3, rel=0.02)
    assert floor(gpu_cases.NETS["classic"], 2**20, h100) == pytest.approx(12.3e-3, rel=0.02)


def test_the_floor_is_that_of_the_slowest_part():
    config = gpu_cases.NETS["denoise"]  # D = 216, N = 16, R = 12
    assert floor(config, 7, fast_rates(bytes=10)) == pytest.approx(7 * 4 * (2 * 216 + 4 * 44) / 10)
    assert floor(config, 7, fast_rates(exponentials=10)) == pytest.approx(7 * 2 * 4 * 216 * 17 / 10)
    assert floor(config, 7, fast_rates(instructions=10)) == pytest.approx(
        7 * 4 * 216 * (9 * 16 + 2 * 24) / 10
    )


def test_the_nets_are_the_published_ones():
    shapes = {name: (c.inner, c.d_state, c.upscale) for name, c in gpu_cases.NETS.items()}
    assert shapes == {"light": (72, 10, 2), "denoise": (216, 16, 1), "classic": (360, 16, 2)}


# A training step


def test_a_training_step_learns():
    step = gpu_cases.training(TINY, torch.rand(2, 3, 4, 4), "numba")
    model = next(
        c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.nn.Module)
    )
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)


# Measuring


class Event:
    """Of a GPU on which a call takes as long as it says."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def clock(monkeypatch):
    """A GPU whose memory grows by 70 bytes; makes functions that take these seconds in turn."""
    names = {"memory_allocated": 30, "max_memory_allocated": 100}
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", *names):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: names.get(name))
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def taking(*seconds):
        calls = []

        def function():
            calls.append(1)
            Event.now += seconds[min(len(calls), len(seconds)) - 1]

        return function, calls

    return taking


@pytest.mark.parametrize(("seconds", "calls"), [(10, 4), (0.04, 13), (1e-6, 21), (0, 21)])
def test_a_measurement(clock, seconds, calls):
    function, made = clock(100, seconds)
    found = gpu_cases.measure(function)
    assert found == Cost(pytest.approx(seconds), 70)
    assert len(made) == calls  # the first to warm up
    assert str(Cost(0.0123456, 3 * 2**20)) == "12.3 ms, 3 MiB"


def test_a_measurement_is_the_median(clock):
    function, _ = clock(100, 10, 50, 20)
    assert gpu_cases.measure(function).seconds == pytest.approx(20)


def test_a_measurement_that_runs_out_of_memory(clock):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu_cases.measure(fail) == Failed("out of memory")


def test_another_error_is_not_swallowed(clock):
    def fail():
        raise RuntimeError("the kernel")

    with pytest.raises(RuntimeError, match="the kernel"):
        gpu_cases.measure(fail)
