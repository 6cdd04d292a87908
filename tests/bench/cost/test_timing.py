"""Durations, by clocks that tests turn."""

import itertools
import time

import pytest
import torch

from mambair_cli.bench.cost.timing import median_seconds, single_thread, timed, work_seconds


@pytest.fixture
def clock(monkeypatch):
    """Both clocks stand still; makes functions that take these seconds in turn."""
    now = [0.0]
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: now[0])

    def taking(*seconds):
        durations = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        calls = []

        def function():
            calls.append(next(durations))
            now[0] += calls[-1]
            return len(calls)

        return function, calls

    return taking


def test_one_call(clock):
    function, calls = clock(2.5)
    assert timed(function) == (1, 2.5)
    assert calls == [2.5]


def test_the_median_without_the_first_call(clock):
    function, calls = clock(100, 10, 50, 20)
    assert median_seconds(function, 3, clock=time.perf_counter) == 20
    assert len(calls) == 4
    function, calls = clock(7, 100)
    assert median_seconds(function, 1, clock=time.perf_counter, warm_up=False) == 7
    assert len(calls) == 1


@pytest.mark.parametrize(("patience", "calls"), [(0.0, 1), (5.0, 3), (100.0, 4)])
def test_what_takes_long_is_not_repeated(clock, patience, calls):
    function, made = clock(2)
    median_seconds(function, 4, clock=time.perf_counter, warm_up=False, patience=patience)
    assert len(made) == calls


def test_work_is_not_waiting():
    assert work_seconds(lambda: time.sleep(0.2), 1) < 0.1


def test_one_thread_for_a_while():
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def stop():
        with single_thread():
            assert torch.get_num_threads() == 1
            raise ValueError("stop")

    try:
        with pytest.raises(ValueError, match="stop"):
            stop()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
