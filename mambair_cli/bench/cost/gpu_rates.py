"""Measure the most that a GPU can do: memory traffic, exponentials, multiply-adds."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from .gpu_cases import Rates
from .timing import gpu_seconds

CHAINS = 64
"""Of a lane, independent of each other, so that none waits for the one before."""
REPEATS = 1024
"""Links of a chain."""
WARPS = 32
"""Of a processor."""
COPIED = 2**28
"""Numbers."""


@triton.jit
def exponentials(OUT, repeats, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute x = 2^-x again and again."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = i * 1e-6
    for _ in range(repeats):
        x = tl.exp2(-x)
    tl.store(OUT + i, x)


@triton.jit
def multiply_adds(OUT, repeats, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute x = a x + a again and again."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, factor = i * 1e-6, 0.5 + repeats * 1e-9
    for _ in range(repeats):
        x = x * factor + factor
    tl.store(OUT + i, x)


def seconds(function: Callable[[], object]) -> float:
    """Median time of ten calls on the current GPU, after one to warm up."""
    function()
    return statistics.median(gpu_seconds(function, 10))


def measure_rates() -> Rates:
    """Measure the rates of the current GPU."""
    source = torch.ones(COPIED, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    block = CHAINS * triton.runtime.driver.active.get_current_target().warp_size
    programs = torch.cuda.get_device_properties(source.device).multi_processor_count * WARPS
    out = torch.empty(programs * block, device="cuda")

    def rate(kernel: Any) -> float:
        took = seconds(lambda: kernel[programs,](out, REPEATS, BLOCK=block, num_warps=1))
        return out.numel() * REPEATS / took

    return Rates(copied, rate(exponentials), rate(multiply_adds))
