"""Kernels of `pixelwise`: SIMD over the channels of a pixel, float32, without gradients, for CPUs.

Arrays are flat; C is the number of channels.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .simd import (
    LANES,
    add,
    fma,
    inline,
    kernel,
    lane_sum,
    load,
    load_channels,
    mul,
    run_in_threads,
    sigmoid,
    splat,
    store_channels,
)


@inline
def _moments(x, p, C, inside, eps):  # type: ignore[no-untyped-def]
    """Return the mean of C values from p on, and 1 / sqrt(variance + eps).

    `inside` is 1 up to C, then 0.
    """
    total, squares = splat(np.float32(0)), splat(np.float32(0))
    for c in range(0, C, LANES):
        total = add(total, load_channels(x, p + c, min(LANES, C - c)))
    mean = lane_sum(total) / np.float32(C)
    minus = splat(-mean)
    for c in range(0, C, LANES):
        d = fma(minus, load(inside, c), load_channels(x, p + c, min(LANES, C - c)))
        squares = fma(d, d, squares)
    return mean, np.float32(1) / np.sqrt(lane_sum(squares) / np.float32(C) + eps)


@kernel("f4[::1]," * 5 + "b1,f4,i8,i8,i8")
def _layer_norm(x, z, weight, bias, out, gated, eps, C, first, last):  # type: ignore[no-untyped-def]
    """Normalise pixels first..last of x, and multiply by silu(z) if gated."""
    inside = np.zeros(weight.size, np.float32)
    inside[:C] = 1
    for pixel in range(first, last):
        p = pixel * C
        mean, scale = _moments(x, p, C, inside, eps)
        minus, factor = splat(-mean), splat(scale)
        for c in range(0, C, LANES):
            count = min(LANES, C - c)
            v = mul(add(load_channels(x, p + c, count), minus), factor)
            v = fma(v, load(weight, c), load(bias, c))
            if gated:
                g = load_channels(z, p + c, count)
                v = mul(v, mul(g, sigmoid(g)))
            store_channels(out, p + c, v, count)


@kernel("f4[::1],i8,i8")
def _silu(x, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last, LANES):
        count = min(LANES, last - i)
        v = load_channels(x, i, count)
        store_channels(x, i, mul(v, sigmoid(v)), count)


def compile_kernels() -> None:
    """Compile the kernels, or load them from the cache."""
    _layer_norm()
    _silu()


def _split(work: Callable[[int, int], None], size: int) -> None:
    threads = torch.get_num_threads()
    run_in_threads(work, [(size * t // threads, size * (t + 1) // threads) for t in range(threads)])


def _flat(x: Tensor) -> NDArray[np.float32]:
    return x.detach().numpy().reshape(-1)


def _padded(parameter: Tensor) -> NDArray[np.float32]:
    return np.pad(_flat(parameter), (0, -len(parameter) % LANES))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    """Do what `pixelwise.layer_norm` does, for contiguous float32 tensors."""
    out, run, C = torch.empty_like(x), _layer_norm(), x.shape[-1]
    arrays = (
        _flat(x),
        _flat(x if gate is None else gate),
        _padded(weight),
        _padded(bias),
        _flat(out),
    )
    _split(lambda i, j: run(*arrays, gate is not None, eps, C, i, j), x.numel() // C)
    return out


def silu_(x: Tensor) -> None:
    """Compute x * sigmoid(x) in place, for a contiguous float32 tensor."""
    run, array = _silu(), _flat(x)
    _split(lambda i, j: run(array, i, j), array.size)
