"""How long something takes: the one place that measures durations."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ...system import runtime

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The result of one call, and its seconds (wall time)."""
    began = time.perf_counter()
    result = function()
    return result, time.perf_counter() - began


def median_seconds(
    function: Callable[[], object],
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
    patience: float = math.inf,
) -> float:
    """Median seconds of a call.

    Args:
        function: what is measured.
        repeats: how often it is called.
        clock: `time.perf_counter` for wall time, `time.process_time` for the work of all threads.
        warm_up: call it once before, which does not count.
        patience: seconds in all, after which it is not called again.
    """
    if warm_up:
        function()
    gc.collect()
    durations: list[float] = []
    while len(durations) < repeats and sum(durations) <= patience:
        began = clock()
        function()
        durations.append(clock() - began)
    return statistics.median(durations)


def work_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median process time of a call, after one to warm up."""
    return median_seconds(function, repeats, clock=time.process_time)


def gpu_seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds that each call keeps the current GPU busy or waiting; all are queued at once."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


@contextmanager
def single_thread() -> Iterator[None]:
    """PyTorch on one thread, with memory that is kept for reuse, as all bars on the CPU ask for."""
    runtime.keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
