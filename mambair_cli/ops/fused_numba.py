"""Kernels of `fused`: whole runs of layers for a few pixels at a time, without gradients, float32,
for CPUs.

What a layer gives the next one stays in the first-level cache; planes of the image go through
memory once. A kernel takes rows first..last of the images on top of each other. It holds TILE
pixels of a row in small buffers.

Names: C channels of the network, D of the scan, S of what is convolved; Cp, Dp, Sp those rounded up
to whole vectors. All arrays are flat. Rows of x, y and of the scan's inputs lie `pitch` pixels
apart. Parameters are padded with zeros.
"""

from collections.abc import Callable

import numpy as np
import torch

from .simd import (
    LANES,
    add,
    fma,
    gelu,
    inline,
    kernel,
    lane_sum,
    load,
    load_channels,
    mul,
    multiply,
    put,
    run_in_threads,
    scalar,
    silu,
    splat,
    store,
    store_channels,
)

TILE = 16
# columns that a convolution takes at a time: three of their rows stay in the second-level cache
STRIP = 128
WHOLE, UNTIL_GATE, FROM_GATE = 0, 1, 2
NO_ACTIVATION, SILU, GELU, GELU_GATE = 0, 1, 2, 3


@inline
def _up(count):  # type: ignore[no-untyped-def]
    return (count + LANES - 1) // LANES * LANES


@inline
def _read(plane, at, pixels, C, tile, Cp):  # type: ignore[no-untyped-def]
    """Copy pixels of a plane to a tile, with zeros in its padding."""
    for t in range(pixels):
        for c in range(0, C, LANES):
            store(tile, t * Cp + c, load_channels(plane, at + t * C + c, min(LANES, C - c)))


@inline
def _write(tile, Cp, pixels, C, plane, at):  # type: ignore[no-untyped-def]
    """Copy pixels of a tile to a plane."""
    for t in range(pixels):
        for c in range(0, C, LANES):
            store_channels(plane, at + t * C + c, load(tile, t * Cp + c), min(LANES, C - c))


@inline
def _normalise(tile, Cp, pixels, C, weight, bias, eps, out):  # type: ignore[no-untyped-def]
    """Layer norm of a tile, whose padding is zero; that of `out` becomes zero.

    Step by step for all pixels, as each step takes long to give its result for one.
    """
    means, scales = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    share, padding = np.float32(1) / np.float32(C), np.float32(Cp - C)
    for t in range(pixels):
        total = load(tile, t * Cp)
        for c in range(LANES, Cp, LANES):
            total = add(total, load(tile, t * Cp + c))
        put(means, t, lane_sum(total) * share)
    for t in range(pixels):
        minus, squares = splat(-scalar(means, t)), splat(np.float32(0))
        for c in range(0, Cp, LANES):
            d = add(load(tile, t * Cp + c), minus)
            squares = fma(d, d, squares)
        put(scales, t, lane_sum(squares))
    for t in range(pixels):
        mean = scalar(means, t)
        # The padding counted as 0 - mean.
        variance = (scalar(scales, t) - mean * mean * padding) * share
        put(scales, t, np.float32(1) / np.sqrt(max(variance, np.float32(0)) + eps))
    for t in range(pixels):
        minus, scale = splat(-scalar(means, t)), splat(scalar(scales, t))
        for c in range(0, Cp, LANES):
            v = mul(add(load(tile, t * Cp + c), minus), scale)
            store(out, t * Cp + c, fma(v, load(weight, c), load(bias, c)))


@inline
def _add_columns(tile, Sp, pixels, sums, at, S):  # type: ignore[no-untyped-def]
    """Add the pixels of a tile to the sums of its channels."""
    for c in range(0, S, LANES):
        total = load(sums, at + c)
        for t in range(pixels):
            total = add(total, load(tile, t * Sp + c))
        store(sums, at + c, total)


@inline
def _depthwise_edge(x, W, pitch, S, h, H, w, c, count, weight, Sp, step, total):  # type: ignore[no-untyped-def]
    """One pixel of a depthwise convolution, where some of its neighbours lie outside the image."""
    centre = (h * pitch + w) * S + c
    for tap in range(9):
        dy, dx = (tap // 3 - 1) * step, (tap % 3 - 1) * step
        if 0 <= h + dy < H and 0 <= w + dx < W:
            v = load_channels(x, centre + (dy * pitch + dx) * S, count)
            total = fma(v, load(weight, tap * Sp + c), total)
    return total


@inline
def _depthwise(x, H, W, pitch, S, Sp, h, w0, pixels, weight, bias, step, out):  # type: ignore[no-untyped-def]
    """3x3 depthwise convolution of one image for pixels of its row h from w0 on; `step` is the
    dilation.
    """
    first, last = max(w0, step), min(w0 + pixels, W - step)
    if h < step or h >= H - step or last < first:
        first, last = w0 + pixels, w0 + pixels
    up, side = step * pitch * S, step * S
    for c in range(0, S, LANES):
        count = min(LANES, S - c)
        b = load(bias, c)
        for w in range(w0, first):
            store(out, (w - w0) * Sp + c,
                  _depthwise_edge(x, W, pitch, S, h, H, w, c, count, weight, Sp, step, b))  # fmt: skip
        for w in range(last, w0 + pixels):
            store(out, (w - w0) * Sp + c,
                  _depthwise_edge(x, W, pitch, S, h, H, w, c, count, weight, Sp, step, b))  # fmt: skip
        k0, k1, k2 = load(weight, c), load(weight, Sp + c), load(weight, 2 * Sp + c)
        k3, k4, k5 = load(weight, 3 * Sp + c), load(weight, 4 * Sp + c), load(weight, 5 * Sp + c)
        k6, k7, k8 = load(weight, 6 * Sp + c), load(weight, 7 * Sp + c), load(weight, 8 * Sp + c)
        i, o = (h * pitch + first) * S + c, (first - w0) * Sp + c
        for _ in range(first, last):
            # Whole vectors: what follows a pixel's channels is the next pixel, and is not used.
            total = fma(load(x, i - up - side), k0, b)
            total = fma(load(x, i - up), k1, total)
            total = fma(load(x, i - up + side), k2, total)
            total = fma(load(x, i - side), k3, total)
            total = fma(load(x, i), k4, total)
            total = fma(load(x, i + side), k5, total)
            total = fma(load(x, i + up - side), k6, total)
            total = fma(load(x, i + up), k7, total)
            store(out, o, fma(load(x, i + up + side), k8, total))
            i += S
            o += Sp


@inline
def _activate(tile, Sp, pixels, kind):  # type: ignore[no-untyped-def]
    """Apply an activation to a tile, in place."""
    for i in range(0, pixels * Sp, LANES):
        v = load(tile, i)
        store(tile, i, silu(v) if kind == SILU else gelu(v))


@kernel("f4[::1]," * 6 + "f4" + ",i8" * 6)
def _enter(tokens, norm, norm_bias, matrix, bias, x, eps, W, pitch, C, D, first, last):  # type: ignore[no-untyped-def]
    """Layer norm of tokens, times a matrix, to x."""
    Cp, Dp = _up(C), _up(D)
    tile, product = np.zeros(TILE * Cp, np.float32), np.empty(TILE * Dp, np.float32)
    for row in range(first, last):
        for w in range(0, W, TILE):
            pixels = min(TILE, W - w)
            _read(tokens, (row * W + w) * C, pixels, C, tile, Cp)
            _normalise(tile, Cp, pixels, C, norm, norm_bias, eps, tile)
            multiply(tile, Cp, pixels, C, matrix, bias, product, Dp, Dp // LANES)
            _write(product, Dp, pixels, D, x, (row * pitch + w) * D)


@kernel("f4[::1]," * 7 + "i8" + ",i8" * 7)
def _project(  # type: ignore[no-untyped-def]
    x, weight, bias, matrix, none, out, records, H, W, pitch, D, M, apart, first, last
):
    """SiLU of the depthwise convolution of x, to out; that times a matrix, to records: M values for
    each direction.

    The records of a direction begin `apart` after those of the one before.
    """
    Dp, width = _up(D), 4 * M
    tile, product = np.zeros(TILE * Dp, np.float32), np.empty(TILE * width, np.float32)
    for strip in range(0, W, STRIP):
        for row in range(first, last):
            image = row // H * H * pitch * D
            for w in range(strip, min(strip + STRIP, W), TILE):
                pixels, at = min(TILE, W - w), row * pitch + w
                _depthwise(x[image:], H, W, pitch, D, Dp, row % H, w, pixels, weight, bias, 1, tile)
                _activate(tile, Dp, pixels, SILU)
                _write(tile, Dp, pixels, D, out, at * D)
                multiply(tile, Dp, pixels, D, matrix, none, product, width, width // LANES)
                for t in range(pixels):
                    for k in range(4):
                        i, o = t * width + k * M, k * apart + (at + t) * M
                        for j in range(0, M, LANES):
                            store(records, o + j, load(product, i + j))


@inline
def _gate(y, second, at, pixels, D, Dp, norm, norm_bias, eps, z, v):  # type: ignore[no-untyped-def]
    """Layer norm of the sum of both planes of y, times SiLU(z), to v."""
    for t in range(pixels):
        for c in range(0, D, LANES):
            count, i = min(LANES, D - c), at + t * D + c
            store(
                v, t * Dp + c, add(load_channels(y, i, count), load_channels(y, second + i, count))
            )
    _normalise(v, Dp, pixels, D, norm, norm_bias, eps, v)
    for i in range(0, pixels * Dp, LANES):
        store(v, i, mul(load(v, i), silu(load(z, i))))


@kernel("f4[::1]," * 20 + "f4" + ",i8" * 10)
def _leave(  # type: ignore[no-untyped-def]
    tokens, norm1, norm1_bias, gate, gate_bias, y, norm, norm_bias, factors, offsets, matrix, bias, skip, u,
    norm2, norm2_bias, hidden_matrix, hidden_bias, hidden, sums, eps, H, W, pitch, C, D, S, second, part, first, last
):  # fmt: skip
    """What follows the scan, up to the first product of the block's second half, or a part of it.

    v = layer norm of y times SiLU of the gate, which is a matrix times the layer norm of the
    tokens; then u = v times a matrix + tokens * skip; then, where S is not 0, hidden = layer norm
    of u, times a matrix of S outputs, or as it is where S is -1. UNTIL_GATE ends with v in y's
    first plane and the sums of its channels in each row; FROM_GATE starts there with v * factors +
    offsets. y's second plane begins at `second`.
    """
    Cp, Dp, Sp = _up(C), _up(D), _up(max(S, 1))
    tile, normed = np.zeros(TILE * Cp, np.float32), np.zeros(TILE * Cp, np.float32)
    z, v, product = (
        np.zeros(TILE * Dp, np.float32),
        np.zeros(TILE * Dp, np.float32),
        np.empty(TILE * Sp, np.float32),
    )
    for row in range(first, last):
        image = row // H
        for w in range(0, W, TILE):
            pixels, at, i = min(TILE, W - w), (row * W + w) * C, (row * pitch + w) * D
            _read(tokens, at, pixels, C, tile, Cp)
            if part == FROM_GATE:
                for t in range(pixels):
                    for c in range(0, D, LANES):
                        f, o = load(factors, image * Dp + c), load(offsets, image * Dp + c)
                        store(
                            v,
                            t * Dp + c,
                            fma(load_channels(y, i + t * D + c, min(LANES, D - c)), f, o),
                        )
            else:
                _normalise(tile, Cp, pixels, C, norm1, norm1_bias, eps, normed)
                multiply(normed, Cp, pixels, C, gate, gate_bias, z, Dp, Dp // LANES)
                _gate(y, second, i, pixels, D, Dp, norm, norm_bias, eps, z, v)
            if part == UNTIL_GATE:
                _write(v, Dp, pixels, D, y, i)
                _add_columns(v, Dp, pixels, sums, row * Dp, D)
                continue
            multiply(v, Dp, pixels, D, matrix, bias, normed, Cp, Cp // LANES)
            for t in range(pixels):
                for c in range(0, C, LANES):
                    j = t * Cp + c
                    store(tile, j, fma(load(tile, j), load(skip, c), load(normed, j)))
            _write(tile, Cp, pixels, C, u, at)
            if S:
                _normalise(tile, Cp, pixels, C, norm2, norm2_bias, eps, normed)
            if S < 0:
                _write(normed, Cp, pixels, C, hidden, at)
            elif S > 0:
                multiply(
                    normed, Cp, pixels, C, hidden_matrix, hidden_bias, product, Sp, Sp // LANES
                )
                _write(product, Sp, pixels, S, hidden, (row * W + w) * S)


@kernel("f4[::1]," * 8 + "i8" + ",i8" * 8)
def _feed(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    bias,
    matrix,
    out_bias,
    u,
    skip,
    out,
    H,
    W,
    S,
    C,
    taps,
    activation,
    add_u,
    first,
    last,
):
    """Activation of the depthwise convolution of `hidden` (none without taps), times a matrix, + u
    * skip, to out.

    With GELU_GATE the second half of the S channels is multiplied by the GELU of the first.
    """
    half = S // 2 if activation == GELU_GATE else S
    Sp, Hp, Cp = _up(S), _up(half), _up(C)
    tile, product, gated = (
        np.zeros(TILE * Sp + LANES, np.float32),
        np.empty(TILE * Cp, np.float32),
        np.zeros(TILE * Hp, np.float32),
    )
    for strip in range(0, W, STRIP):
        for row in range(first, last):
            image = row // H * H * W * S
            for w in range(strip, min(strip + STRIP, W), TILE):
                pixels, at = min(TILE, W - w), (row * W + w) * C
                if taps:
                    _depthwise(
                        hidden[image:], H, W, W, S, Sp, row % H, w, pixels, weight, bias, 1, tile
                    )
                else:
                    _read(hidden, (row * W + w) * S, pixels, S, tile, Sp)
                if activation == GELU_GATE:
                    for t in range(pixels):
                        for c in range(0, half, LANES):
                            i = t * Sp + c
                            store(gated, t * Hp + c, mul(gelu(load(tile, i)), load(tile, i + half)))
                    multiply(gated, Hp, pixels, half, matrix, out_bias, product, Cp, Cp // LANES)
                else:
                    _activate(tile, Sp, pixels, activation)
                    multiply(tile, Sp, pixels, S, matrix, out_bias, product, Cp, Cp // LANES)
                if add_u:
                    for t in range(pixels):
                        for c in range(0, C, LANES):
                            v = load_channels(u, at + t * C + c, min(LANES, C - c))
                            store(
                                product,
                                t * Cp + c,
                                fma(v, load(skip, c), load(product, t * Cp + c)),
                            )
                _write(product, Cp, pixels, C, out, at)


@kernel("f4[::1]," * 5 + "i8" + ",i8" * 5)
def _convolve(x, weight, bias, out, sums, H, W, C, step, first, last):  # type: ignore[no-untyped-def]
    """3x3 depthwise convolution of x with dilation `step`, to out, and in each row its channels'
    sums.
    """
    Cp = _up(C)
    tile = np.zeros(TILE * Cp, np.float32)
    for strip in range(0, W, STRIP):
        for row in range(first, last):
            image = row // H * H * W * C
            for w in range(strip, min(strip + STRIP, W), TILE):
                pixels = min(TILE, W - w)
                _depthwise(x[image:], H, W, W, C, Cp, row % H, w, pixels, weight, bias, step, tile)
                _add_columns(tile, Cp, pixels, sums, row * Cp, C)
                _write(tile, Cp, pixels, C, out, (row * W + w) * C)


@kernel("f4[::1]," * 5 + "i8" + ",i8" * 4)
def _blend(v, factors, u, skip, out, H, W, C, first, last):  # type: ignore[no-untyped-def]
    """The sum v * factors of its image + u * skip, to out."""
    Cp = _up(C)
    for row in range(first, last):
        f0 = row // H * Cp
        for i in range(row * W * C, (row + 1) * W * C, C):
            for c in range(0, C, LANES):
                count = min(LANES, C - c)
                r = mul(load_channels(u, i + c, count), load(skip, c))
                store_channels(
                    out, i + c, fma(load_channels(v, i + c, count), load(factors, f0 + c), r), count
                )


def run_rows(work: Callable[[int, int], None], rows: int) -> None:
    """Call work(first, last) for all rows, a share for each thread of torch."""
    threads = min(torch.get_num_threads(), rows)
    run_in_threads(work, [(rows * t // threads, rows * (t + 1) // threads) for t in range(threads)])
