"""Kernel of `attention`: SIMD over the queries of a window, float32, without gradients, for CPUs.

A block of 2 LANES queries at a time: its scores with all keys, four keys at once; their
exponentials; the sums of values, six channels at once. Keys and values are broadcast, so no lane is
idle whatever the number of channels is. A window's pixels are read and written where they lie.
Arrays are flat.

Names: n pixels of a window, d channels of a head, C of all heads.
"""

import itertools
import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attention import across_edges
from .simd import (
    LANES,
    add,
    div,
    exp2,
    fma,
    inline,
    kernel,
    load,
    maximum,
    mul,
    put,
    run_in_threads,
    scalar,
    splat,
    store,
)

BLOCK = 2 * LANES
# Channels of values that are summed at once.
VALUES = 6
LOG2E = np.float32(1.4426950408889634)


@inline
def _pixels(window, H, W, side, shift, pixels):  # type: ignore[no-untyped-def]
    """Write where the pixels of a window lie; returns whether it is in the last column, twice
    whether in the last row.
    """
    rows, columns = H // side, W // side
    image, y, x = window // (rows * columns), window // columns % rows, window % columns
    for i in range(side):
        row = (image * H + (y * side + i + shift) % H) * W
        for j in range(side):
            pixels[i * side + j] = row + (x * side + j + shift) % W
    return 2 * (y == rows - 1) + (x == columns - 1)


@inline
def _biased(bias, apart, b, a, edge):  # type: ignore[no-untyped-def]
    return add(load(bias, b), load(apart, a)) if edge else load(bias, b)


@inline
def _scores(queries, keys, bias, b0, apart, a0, edge, scores, n, d):  # type: ignore[no-untyped-def]
    """Scores of a block of queries with all keys; returns the largest one of each query."""
    most0, most1 = splat(np.float32(-np.inf)), splat(np.float32(-np.inf))
    for j in range(0, n, 4):
        s00 = _biased(bias, apart, b0, a0, edge)
        s01 = _biased(bias, apart, b0 + LANES, a0 + LANES, edge)
        b0, a0 = b0 + n, a0 + n
        s10 = _biased(bias, apart, b0, a0, edge)
        s11 = _biased(bias, apart, b0 + LANES, a0 + LANES, edge)
        b0, a0 = b0 + n, a0 + n
        s20 = _biased(bias, apart, b0, a0, edge)
        s21 = _biased(bias, apart, b0 + LANES, a0 + LANES, edge)
        b0, a0 = b0 + n, a0 + n
        s30 = _biased(bias, apart, b0, a0, edge)
        s31 = _biased(bias, apart, b0 + LANES, a0 + LANES, edge)
        b0, a0 = b0 + n, a0 + n
        for c in range(d):
            q0, q1 = load(queries, c * BLOCK), load(queries, c * BLOCK + LANES)
            k = splat(scalar(keys, j * d + c))
            s00, s01 = fma(q0, k, s00), fma(q1, k, s01)
            k = splat(scalar(keys, (j + 1) * d + c))
            s10, s11 = fma(q0, k, s10), fma(q1, k, s11)
            k = splat(scalar(keys, (j + 2) * d + c))
            s20, s21 = fma(q0, k, s20), fma(q1, k, s21)
            k = splat(scalar(keys, (j + 3) * d + c))
            s30, s31 = fma(q0, k, s30), fma(q1, k, s31)
        t = j * BLOCK
        store(scores, t, s00)
        store(scores, t + LANES, s01)
        store(scores, t + BLOCK, s10)
        store(scores, t + BLOCK + LANES, s11)
        store(scores, t + 2 * BLOCK, s20)
        store(scores, t + 2 * BLOCK + LANES, s21)
        store(scores, t + 3 * BLOCK, s30)
        store(scores, t + 3 * BLOCK + LANES, s31)
        most0 = maximum(most0, maximum(maximum(s00, s10), maximum(s20, s30)))
        most1 = maximum(most1, maximum(maximum(s01, s11), maximum(s21, s31)))
    return most0, most1


@inline
def _weights(scores, most0, most1, n):  # type: ignore[no-untyped-def]
    """Replace scores by powers of 2 of how far they are below the largest; returns one over the
    sums.
    """
    minus0, minus1 = mul(most0, splat(np.float32(-1))), mul(most1, splat(np.float32(-1)))
    total0, total1 = splat(np.float32(0)), splat(np.float32(0))
    for t in range(0, n * BLOCK, BLOCK):
        p0 = exp2(add(load(scores, t), minus0))
        p1 = exp2(add(load(scores, t + LANES), minus1))
        store(scores, t, p0)
        store(scores, t + LANES, p1)
        total0, total1 = add(total0, p0), add(total1, p1)
    one = splat(np.float32(1))
    return div(one, total0), div(one, total1)


@inline
def _sums(scores, values, c, width, n, share0, share1, out):  # type: ignore[no-untyped-def]
    """Weighted sums of VALUES channels of the values from c on, to `out`: BLOCK queries a channel."""
    zero = splat(np.float32(0))
    a00, a01, a02, a03, a04, a05 = zero, zero, zero, zero, zero, zero
    a10, a11, a12, a13, a14, a15 = zero, zero, zero, zero, zero, zero
    p = c
    for t in range(0, n * BLOCK, BLOCK):
        p0, p1 = load(scores, t), load(scores, t + LANES)
        v = splat(scalar(values, p))
        a00, a10 = fma(p0, v, a00), fma(p1, v, a10)
        v = splat(scalar(values, p + 1))
        a01, a11 = fma(p0, v, a01), fma(p1, v, a11)
        v = splat(scalar(values, p + 2))
        a02, a12 = fma(p0, v, a02), fma(p1, v, a12)
        v = splat(scalar(values, p + 3))
        a03, a13 = fma(p0, v, a03), fma(p1, v, a13)
        v = splat(scalar(values, p + 4))
        a04, a14 = fma(p0, v, a04), fma(p1, v, a14)
        v = splat(scalar(values, p + 5))
        a05, a15 = fma(p0, v, a05), fma(p1, v, a15)
        p += width
    t = c * BLOCK
    for first, second in ((a00, a10), (a01, a11), (a02, a12), (a03, a13), (a04, a14), (a05, a15)):
        store(out, t, mul(first, share0))
        store(out, t + LANES, mul(second, share1))
        t += BLOCK


@kernel("f4[::1],f4[::1],f4[::1],f4[::1]" + ",i8" * 8)
def _window_attention(qkv, bias, apart, y, H, W, C, h, side, shift, first, last):  # type: ignore[no-untyped-def]
    """Windows first..last. bias: (h,n keys,n queries), apart: (4,n,n), as scores in powers of 2."""
    n, d = side * side, C // h
    width = (d + VALUES - 1) // VALUES * VALUES
    scale = LOG2E / np.float32(math.sqrt(d))
    pixels = np.empty(n, np.int64)
    queries, keys = np.empty(d * BLOCK, np.float32), np.empty(n * d, np.float32)
    values, out = np.zeros(n * width, np.float32), np.empty(width * BLOCK, np.float32)
    scores = np.empty(n * BLOCK, np.float32)
    for window in range(first, last):
        edge = _pixels(window, H, W, side, shift, pixels)
        if not shift:
            edge = 0
        for head in range(h):
            for j in range(n):
                p = pixels[j] * 3 * C + C + head * d
                for c in range(d):
                    put(keys, j * d + c, scalar(qkv, p + c))
                    put(values, j * width + c, scalar(qkv, p + C + c))
            for i in range(0, n, BLOCK):
                for lane in range(BLOCK):
                    p = pixels[i + lane] * 3 * C + head * d
                    for c in range(d):
                        put(queries, c * BLOCK + lane, scalar(qkv, p + c) * scale)
                b0, a0 = head * n * n + i, edge * n * n + i
                most0, most1 = _scores(queries, keys, bias, b0, apart, a0, edge > 0, scores, n, d)
                share0, share1 = _weights(scores, most0, most1, n)
                for c in range(0, width, VALUES):
                    _sums(scores, values, c, width, n, share0, share1, out)
                for lane in range(BLOCK):
                    p = pixels[i + lane] * C + head * d
                    for c in range(d):
                        put(y, p + c, scalar(out, c * BLOCK + lane))


@cache
def _apart(side: int) -> NDArray[np.float32]:
    return LOG2E * across_edges(side).numpy().reshape(-1)


def window_attention(qkv: Tensor, bias: Tensor, shifted: bool) -> Tensor:
    """`attention.window_attention` of contiguous float32."""
    B, H, W, _ = qkv.shape
    h, n, _ = bias.shape
    C, side = qkv.shape[3] // 3, math.isqrt(n)
    y = torch.empty(B, H, W, C)
    powers = (bias.transpose(1, 2) * float(LOG2E)).contiguous()
    x_flat, bias_flat, y_flat = (v.detach().numpy().reshape(-1) for v in (qkv, powers, y))
    shape = H, W, C, h, side, side // 2 if shifted else 0
    run, apart = _window_attention(), _apart(side)
    count, threads = B * H * W // n, torch.get_num_threads()
    bounds = [count * t // threads for t in range(threads + 1)]
    run_in_threads(
        lambda i, j: run(x_flat, bias_flat, apart, y_flat, *shape, i, j),
        list(itertools.pairwise(bounds)),
    )
    return y
