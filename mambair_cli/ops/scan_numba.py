"""The numba back end of `ss2d_scan`: SIMD over channels, forward and backward, float32, for CPUs.

Design and measurements: channels lie on the vector lanes; a direction walks its sequence in chunks
of CHUNK steps. For a chunk, the low-rank step sizes, B and C of all steps are copied to a small
buffer that every channel block shares; softplus runs first; then two states at a time run along the
chunk with state and decay rate in registers. Column directions step over rows of pixels: nothing is
transposed. Directions k and k + 2 (forth and back) share an output plane, so that the plane of the
rows and that of the columns can be written by two threads without a race.

Names: D channels, Dp channels rounded up to whole vectors, N states, Np states rounded up to even,
R rank of the step size, K directions, M = R + 2N values per pixel and direction in x_dbl, Mp its
padded copy R + 2Np, L pixels. All arrays are flat: two-dimensional indexing costs up to 6x here.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .simd import (
    LANES,
    add,
    exp2,
    exp2_of_product,
    fma,
    inline,
    kernel,
    lane_sum,
    load,
    load_channels,
    mul,
    multiply,
    pack,
    prefetch,
    put,
    run_in_threads,
    scalar,
    sigmoid,
    softplus,
    splat,
    store,
    store_channels,
)

CHUNK = 32
# of a chunk that the forward scan takes at a time: what it holds has to stay in the nearest cache
STEPS = 16
# channels that are scanned together
GROUP = 80
LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)


@inline
def _chunk_count(H, W, k):  # type: ignore[no-untyped-def]
    return W * ((H + CHUNK - 1) // CHUNK) if k & 1 else (H * W + CHUNK - 1) // CHUNK


@inline
def _walk(H, W, pitch, k):  # type: ignore[no-untyped-def]
    """How direction k walks the image: lines, steps in a line, pixels from one step to the next."""
    if k & 1:
        lines, steps, stride = W, H, pitch
    elif pitch == W:
        lines, steps, stride = 1, H * W, 1
    else:
        lines, steps, stride = H, W, 1
    return lines, steps, -stride if k >= 2 else stride


@inline
def _line_start(H, W, pitch, k, line):  # type: ignore[no-untyped-def]
    """First pixel of the `line`-th line of direction k."""
    last = (H - 1) * pitch + W - 1
    if k & 1:
        return last - line if k >= 2 else line
    return last - line * pitch if k >= 2 else line * pitch


@inline
def _gather(x_dbl, source, skip, steps, ahead, R, N, Rp, Np, buffer):  # type: ignore[no-untyped-def]
    """Copy (dts, B, C) of a chunk's steps to `buffer`; the padding of B and C stays zero."""
    M = R + 2 * N
    target = 0
    for _ in range(steps):
        for j in range(R):
            put(buffer, target + j, scalar(x_dbl, source + j))
        for j in range(N):
            put(buffer, target + Rp + j, scalar(x_dbl, source + R + j))
            put(buffer, target + Rp + Np + j, scalar(x_dbl, source + R + N + j))
        for j in range(0, M, 16):
            prefetch(x_dbl, source + ahead + j)
        source += skip
        target += Rp + 2 * Np


@inline
def _gather_records(records, source, skip, steps, ahead, M, buffer):  # type: ignore[no-untyped-def]
    """Copy the records of M values, whole vectors, of a chunk's steps to `buffer`."""
    target = 0
    for _ in range(steps):
        for j in range(0, M, LANES):
            store(buffer, target + j, load(records, source + j))
        for j in range(0, M, 16):
            prefetch(records, source + ahead + j)
        source += skip
        target += M


@inline
def _step_size(buffer, j, Rp, weight, w, Dp, bias, z0):  # type: ignore[no-untyped-def]
    """Weight @ dts + bias of a step, one channel block: the step size before softplus."""
    z = load(bias, z0)
    for r in range(0, Rp, 2):
        z = fma(splat(scalar(buffer, j + r)), load(weight, w + r * Dp), z)
        z = fma(splat(scalar(buffer, j + r + 1)), load(weight, w + (r + 1) * Dp), z)
    return z


@inline
def _inputs(x, p, ahead, step, steps, D, D_sum, c0, width, dt, dtx, out, y):  # type: ignore[no-untyped-def]
    """Softplus of the step sizes of a chunk in dt; times x in dtx; D x in out. Asks for the next
    chunk's x and y.
    """
    for t in range(steps):
        for c in range(0, width, 16):
            prefetch(x, p + ahead + c)
            prefetch(y, p + ahead + c)
        for c in range(0, width, LANES):
            i = t * width + c
            d = softplus(load(dt, i))
            xv = load_channels(x, p + c, min(LANES, D - c0 - c))
            store(dt, i, d)
            store(dtx, i, mul(d, xv))
            store(out, i, mul(load(D_sum, c0 + c), xv))
        p += step


@inline
def _two_states(h, i, A2, a, Dp, buffer, j, M, Np, dt, dtx, out, c, width, steps):  # type: ignore[no-untyped-def]
    """Two states of a channel block along a chunk; adds C h to out."""
    h0, h1 = load(h, i), load(h, i + LANES)
    a0, a1 = load(A2, a), load(A2, a + Dp)
    for _ in range(steps):
        d, u = load(dt, c), load(dtx, c)
        h0 = fma(exp2_of_product(d, a0), h0, mul(u, splat(scalar(buffer, j))))
        h1 = fma(exp2_of_product(d, a1), h1, mul(u, splat(scalar(buffer, j + 1))))
        v = fma(h0, splat(scalar(buffer, j + Np)), load(out, c))
        store(out, c, fma(h1, splat(scalar(buffer, j + Np + 1)), v))
        j += M
        c += width
    store(h, i, h0)
    store(h, i + LANES, h1)


@inline
def _forward_direction(  # type: ignore[no-untyped-def]
    x, records, weight, bias, A2, D_sum, y, states, save, H, W, pitch, D, Dp, R, Np, M, k, c0, c1
):
    """Scan direction k for channels c0..c1 (whole blocks) of one image; k < 2 starts y, else adds."""
    width = c1 - c0
    h = np.zeros(width * Np, np.float32)
    buffer = np.zeros(STEPS * M, np.float32)
    size = STEPS * width
    dt, dtx, out = (
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
    )
    skip = D_sum if k == 0 else np.zeros(Dp, np.float32)
    lines, total, stride = _walk(H, W, pitch, k)
    offset = c0 * Np
    for line in range(lines):
        start = _line_start(H, W, pitch, k, line)
        for t0 in range(0, total, STEPS):
            steps = min(STEPS, total - t0)
            pixel = start + t0 * stride
            ahead = stride * STEPS
            if t0 + STEPS >= total and line + 1 < lines:
                ahead = _line_start(H, W, pitch, k, line + 1) - pixel
            _gather_records(records, pixel * M, stride * M, steps, ahead * M, M, buffer)
            if save and t0 % CHUNK == 0:
                for j in range(0, width * Np, LANES):
                    store(states, offset + j, load(h, j))
                offset += Dp * Np
            multiply(buffer, M, steps, R, weight, bias, dt, width, width // LANES)
            p = pixel * D + c0
            _inputs(x, p, ahead * D, stride * D, steps, D, skip, c0, width, dt, dtx, out, y)
            for c in range(0, width, LANES):
                for n in range(0, Np, 2):
                    a = (k * Np + n) * Dp + c0 + c
                    _two_states(
                        h,
                        c * Np + n * LANES,
                        A2,
                        a,
                        Dp,
                        buffer,
                        R + n,
                        M,
                        Np,
                        dt,
                        dtx,
                        out,
                        c,
                        width,
                        steps,
                    )
            for t in range(steps):
                for c in range(0, width, LANES):
                    count = min(LANES, D - c0 - c)
                    v = load(out, t * width + c)
                    store_channels(
                        y, p + c, add(v, load_channels(y, p + c, count)) if k >= 2 else v, count
                    )
                p += stride * D


@kernel("f4[::1]," * 8 + "b1" + ",i8" * 13)
def _forward(  # type: ignore[no-untyped-def]
    x, records, weight, bias, A2, D_sum, planes, states, save, B, H, W, pitch, D, Dp, R, N, K, M, task, c0, c1
):  # fmt: skip
    """One task: image task // 2 (task, if K is 1), rows or columns, channels c0..c1.

    The weights are those of `packed_weight`. Rows of x, of the records and of the planes lie
    `pitch` pixels apart.
    """
    pairs = 2 if K == 4 else 1
    image, pair = task // pairs, task % pairs
    area, Np = H * pitch * D, N + (N & 1)
    first = 0
    for k in range(K):
        length = _chunk_count(H, W, k) * Dp * Np
        if k % 2 == pair:
            begin = image * (states.size // B) + first if save else 0
            _forward_direction(
                x[image * area : (image + 1) * area],
                records[(k * B + image) * H * pitch * M :],
                weight[(k * Dp + c0) * R :], bias[k * Dp + c0 :], A2, D_sum,
                planes[(pair * B + image) * area : (pair * B + image + 1) * area],
                states[begin : begin + length],
                save, H, W, pitch, D, Dp, R, Np, M, k, c0, c1,
            )  # fmt: skip
        first += length


@inline
def _backward_direction(  # type: ignore[no-untyped-def]
    x,
    x_dbl,
    gy,
    weight,
    bias,
    A2,
    D_sum,
    states,
    gx,
    gx_dbl,
    gweight,
    gbias,
    gA,
    H,
    W,
    D,
    Dp,
    R,
    N,
    Np,
    K,
    k,
    c0,
    c1,
):
    """Gradients of `_forward_direction`: chunks in reverse, states recomputed from each chunk's
    start.
    """
    M, Rp = R + 2 * N, R + (R & 1)
    Mp = Rp + 2 * Np
    gh = np.zeros((c1 - c0) * Np, np.float32)
    buffer = np.zeros(CHUNK * Mp + LANES, np.float32)
    gbuffer = np.empty(CHUNK * Mp * LANES, np.float32)
    work = np.empty(10 * CHUNK * LANES, np.float32)
    size = CHUNK * LANES
    dt, dtx, slope = work[0:size], work[size : 2 * size], work[2 * size : 3 * size]
    g, gu, gd = work[3 * size : 4 * size], work[4 * size : 5 * size], work[5 * size : 6 * size]
    decay0, decay1 = work[6 * size : 7 * size], work[7 * size : 8 * size]
    old0, old1 = work[8 * size : 9 * size], work[9 * size : 10 * size]
    lines, total, stride = _walk(H, W, W, k)
    per_line = (total + CHUNK - 1) // CHUNK
    zero = splat(np.float32(0))
    for chunk in range(lines * per_line - 1, -1, -1):
        line, t0 = chunk // per_line, (chunk % per_line) * CHUNK
        steps = min(CHUNK, total - t0)
        pixel = _line_start(H, W, W, k, line) + t0 * stride
        _gather(
            x_dbl,
            pixel * K * M + k * M,
            stride * K * M,
            steps,
            -stride * CHUNK * K * M,
            R,
            N,
            Rp,
            Np,
            buffer,
        )
        for j in range(0, CHUNK * Mp * LANES, LANES):
            store(gbuffer, j, zero)
        for c in range(c0, c1, LANES):
            count = min(LANES, D - c)
            x0 = pixel * D + c
            for t in range(steps):
                p = x0 + t * stride * D
                z = _step_size(buffer, t * Mp, Rp, weight, k * Rp * Dp + c, Dp, bias, k * Dp + c)
                d = softplus(z)
                store(slope, t * LANES, sigmoid(z))
                store(dt, t * LANES, d)
                store(dtx, t * LANES, mul(d, load_channels(x, p, count)))
                store(g, t * LANES, load_channels(gy, p, count))
                store(gu, t * LANES, zero)
                store(gd, t * LANES, zero)
                prefetch(x, p - stride * CHUNK * D)
                prefetch(gy, p - stride * CHUNK * D)
            for n in range(0, Np, 2):
                s0 = chunk * Dp * Np + c * Np + n * LANES
                h0, h1 = load(states, s0), load(states, s0 + LANES)
                i0, i1 = (k * Np + n) * Dp + c, (k * Np + n + 1) * Dp + c
                a0, a1 = load(A2, i0), load(A2, i1)
                for t in range(steps):
                    d, u, j = load(dt, t * LANES), load(dtx, t * LANES), t * Mp + Rp + n
                    e0, e1 = exp2(mul(d, a0)), exp2(mul(d, a1))
                    h0, h1 = mul(e0, h0), mul(e1, h1)
                    store(decay0, t * LANES, e0)
                    store(decay1, t * LANES, e1)
                    store(old0, t * LANES, h0)
                    store(old1, t * LANES, h1)
                    h0 = fma(u, splat(scalar(buffer, j)), h0)
                    h1 = fma(u, splat(scalar(buffer, j + 1)), h1)
                g0 = load(gh, (c - c0) * Np + n * LANES)
                g1 = load(gh, (c - c0) * Np + (n + 1) * LANES)
                ga0, ga1 = zero, zero
                for t in range(steps - 1, -1, -1):
                    d, u, gv, j = (
                        load(dt, t * LANES),
                        load(dtx, t * LANES),
                        load(g, t * LANES),
                        t * Mp + Rp + n,
                    )
                    b0, b1 = splat(scalar(buffer, j)), splat(scalar(buffer, j + 1))
                    g0 = fma(gv, splat(scalar(buffer, j + Np)), g0)
                    g1 = fma(gv, splat(scalar(buffer, j + Np + 1)), g1)
                    q0, q1 = load(old0, t * LANES), load(old1, t * LANES)
                    jb, jc = j * LANES, (j + Np) * LANES
                    store(gbuffer, jb, fma(g0, u, load(gbuffer, jb)))
                    store(gbuffer, jb + LANES, fma(g1, u, load(gbuffer, jb + LANES)))
                    store(gbuffer, jc, fma(gv, fma(u, b0, q0), load(gbuffer, jc)))
                    store(gbuffer, jc + LANES, fma(gv, fma(u, b1, q1), load(gbuffer, jc + LANES)))
                    store(gu, t * LANES, fma(g0, b0, fma(g1, b1, load(gu, t * LANES))))
                    q0, q1 = mul(g0, q0), mul(g1, q1)
                    store(gd, t * LANES, fma(q0, a0, fma(q1, a1, load(gd, t * LANES))))
                    ga0, ga1 = fma(q0, d, ga0), fma(q1, d, ga1)
                    g0, g1 = mul(g0, load(decay0, t * LANES)), mul(g1, load(decay1, t * LANES))
                store(gh, (c - c0) * Np + n * LANES, g0)
                store(gh, (c - c0) * Np + (n + 1) * LANES, g1)
                store(gA, i0, add(ga0, load(gA, i0)))
                store(gA, i1, add(ga1, load(gA, i1)))
            skip = load(D_sum, c)
            gb = zero
            for t in range(steps):
                p = x0 + t * stride * D
                xv = load_channels(x, p, count)
                guv = load(gu, t * LANES)
                gv = mul(guv, load(dt, t * LANES))
                if k >= 2:
                    gv = add(gv, load_channels(gx, p, count))
                elif k == 0:
                    gv = fma(skip, load(g, t * LANES), gv)
                store_channels(gx, p, gv, count)
                gz = mul(fma(load(gd, t * LANES), splat(LN2), mul(guv, xv)), load(slope, t * LANES))
                gb = add(gb, gz)
                store(g, t * LANES, gz)
            store(gbias, k * Dp + c, add(gb, load(gbias, k * Dp + c)))
            for r in range(R):
                wr = (k * Rp + r) * Dp + c
                w, gw = load(weight, wr), load(gweight, wr)
                for t in range(steps):
                    gz, j = load(g, t * LANES), (t * Mp + r) * LANES
                    gw = fma(gz, splat(scalar(buffer, t * Mp + r)), gw)
                    store(gbuffer, j, fma(gz, w, load(gbuffer, j)))
                store(gweight, wr, gw)
        for t in range(steps):
            target = (pixel + t * stride) * K * M + k * M
            for j in range(R):
                put(gx_dbl, target + j, lane_sum(load(gbuffer, (t * Mp + j) * LANES)))
            for j in range(N):
                put(gx_dbl, target + R + j, lane_sum(load(gbuffer, (t * Mp + Rp + j) * LANES)))
                put(
                    gx_dbl,
                    target + R + N + j,
                    lane_sum(load(gbuffer, (t * Mp + Rp + Np + j) * LANES)),
                )


@kernel("f4[::1]," * 13 + "i8" + ",i8" * 10)
def _backward(  # type: ignore[no-untyped-def]
    x,
    x_dbl,
    gy,
    weight,
    bias,
    A2,
    D_sum,
    states,
    gplanes,
    gx_dbl,
    gweight,
    gbias,
    gA,
    B,
    H,
    W,
    D,
    Dp,
    R,
    N,
    K,
    task,
    c0,
    c1,
):
    """One task as in `_forward`; gweight, gbias, gA belong to the image, gx_dbl to the channel
    group.
    """
    pairs = 2 if K == 4 else 1
    image, pair = task // pairs, task % pairs
    L, Rp, Np, M = H * W, R + (R & 1), N + (N & 1), R + 2 * N
    first = image * (states.size // B)
    for k in range(K):
        length = _chunk_count(H, W, k) * Dp * Np
        if k % 2 == pair:
            _backward_direction(
                x[image * L * D : (image + 1) * L * D],
                x_dbl[image * L * K * M : (image + 1) * L * K * M],
                gy[image * L * D : (image + 1) * L * D],
                weight, bias, A2, D_sum, states[first : first + length],
                gplanes[(pair * B + image) * L * D : (pair * B + image + 1) * L * D],
                gx_dbl[image * L * K * M : (image + 1) * L * K * M],
                gweight[image * K * Rp * Dp : (image + 1) * K * Rp * Dp],
                gbias[image * K * Dp : (image + 1) * K * Dp],
                gA[image * K * Np * Dp : (image + 1) * K * Np * Dp],
                H, W, D, Dp, R, N, Np, K, k, c0, c1,
            )  # fmt: skip
        first += length


def _channel_groups(tasks: int, Dp: int) -> int:
    """Into how many groups of channels to cut each task so that every thread has work."""
    return min(-(-torch.get_num_threads() // tasks), Dp // LANES)


def _bounds(groups: int, Dp: int) -> list[int]:
    """Where the channel groups begin, and the end."""
    return [Dp // LANES * g // groups * LANES for g in range(groups + 1)]


def _run(work: Callable[[int, int, int, int], None], tasks: int, groups: int, Dp: int) -> None:
    """Call work(task, c0, c1, group) for all tasks and channel groups."""
    bounds = _bounds(groups, Dp)
    run_in_threads(
        work, [(t, bounds[g], bounds[g + 1], g) for t in range(tasks) for g in range(groups)]
    )


def _flat(value: Tensor) -> np.ndarray:
    return value.detach().float().contiguous().numpy().reshape(-1)


class _Parameters:
    """Shapes and the parameters in the kernels' layout (channels last and padded to whole vectors)."""

    def __init__(
        self, shape: torch.Size, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor
    ):
        self.shape = shape
        channels = shape[-1]
        self.K, _, self.R = dt_weight.shape
        self.N = A_log.shape[1]
        self.Rp, self.Np = self.R + self.R % 2, self.N + self.N % 2
        self.Dp = -(-channels // LANES) * LANES
        self.pairs = 2 if self.K == 4 else 1
        K, pad = self.K, self.Dp - channels
        rates = np.zeros((K, self.Np, self.Dp), np.float32)
        rates[:, : self.N, :channels] = -LOG2E * np.exp(_flat(A_log)).reshape(
            K, channels, -1
        ).swapaxes(1, 2)
        weight = _flat(dt_weight).reshape(K, channels, -1).swapaxes(1, 2)
        self.A2 = rates.reshape(-1)
        self.weight = np.pad(weight, ((0, 0), (0, self.Rp - self.R), (0, pad))).reshape(-1)
        self.bias = np.pad(_flat(dt_bias).reshape(K, channels), ((0, 0), (0, pad))).reshape(-1)
        self.D_sum = np.pad(_flat(D).reshape(K, channels).sum(0), (0, pad))

    def packed_weight(self, groups: int) -> np.ndarray:
        """The weights of the step sizes as `multiply` reads them, for each direction and channel
        group.
        """
        weight, bounds = (
            self.weight.reshape(self.K, self.Rp, self.Dp)[:, : self.R],
            _bounds(groups, self.Dp),
        )
        parts = [pack(w[:, i:j].T, None)[0] for w in weight for i, j in itertools.pairwise(bounds)]
        return np.concatenate(parts)


def state_count(shape: tuple[int, ...], K: int, N: int) -> int:
    """Floats of the states at all chunk starts, for x of `shape` (B,H,W,D)."""
    B, H, W, D = shape
    chunks = sum(W * -(-H // CHUNK) if k & 1 else -(-H * W // CHUNK) for k in range(K))
    return B * chunks * (-(-D // LANES) * LANES) * (N + N % 2)


def compile_forward() -> None:
    """Compile the forward kernel, or load it from the cache. Raises whatever numba raises where it
    cannot.
    """
    _forward()


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The scan and, if `save`, the states at chunk starts that `backward` wants (else an empty
    tensor).
    """
    p = _Parameters(x.shape, dt_weight, dt_bias, A_log, D)
    states = torch.empty(state_count(p.shape, p.K, p.N) if save else 0)
    planes = torch.empty(p.pairs, *p.shape)
    records = torch.zeros(p.K, *p.shape[:3], record_length(p.R, p.N))
    parts = x_dbl.detach().permute(3, 0, 1, 2, 4).split([p.R + p.N, p.N], -1)
    for part, at in zip(parts, (0, p.R + p.Np), strict=True):
        records[..., at : at + part.shape[-1]] = part
    _forward_planes(p, _flat(x), _flat(records), p.shape[2], planes, states, save)
    y = planes[0] if p.pairs == 1 else planes[0].add_(planes[1])
    return y.to(x.dtype), states


def record_length(R: int, N: int) -> int:
    """Values in the record of a pixel and a direction: R of the step size, N of B and of C, each to
    an even number.
    """
    return -(-(R + 2 * (N + N % 2)) // LANES) * LANES


def forward_planes(
    x: Tensor,
    records: Tensor,
    shape: torch.Size,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
) -> Tensor:
    """The scan as planes that are still to be added.

    Args:
        x: (B,H,P,D), float32, contiguous; the first W pixels of a row count.
        records: (K,B,H,P,M), float32, contiguous: dts, B and C, those two each with a zero behind
            it where N is odd, and zeros up to the `record_length`.
        shape: (B,H,W,D).
        dt_weight: as the next three of `ss2d_scan`.
        dt_bias: see dt_weight.
        A_log: see dt_weight.
        D: see dt_weight.

    Returns:
        (2,B,H,P,D), rows and columns; (1,B,H,P,D) for one direction.
    """
    p = _Parameters(shape, dt_weight, dt_bias, A_log, D)
    planes = torch.empty(p.pairs, *x.shape)
    _forward_planes(p, _flat(x), _flat(records), x.shape[2], planes, torch.empty(0), False)
    return planes


def _forward_planes(
    p: _Parameters,
    x: np.ndarray,
    records: np.ndarray,
    pitch: int,
    planes: Tensor,
    states: Tensor,
    save: bool,
) -> None:
    B, H, W, channels = p.shape
    M = record_length(p.R, p.N)
    run, planes_flat, states_flat = _forward(), planes.numpy().reshape(-1), states.numpy()
    # The buffers of a chunk have to stay in the first-level cache.
    groups = max(_channel_groups(B * p.pairs, p.Dp), -(-p.Dp // GROUP))
    weight = p.packed_weight(groups)

    def work(task: int, c0: int, c1: int, group: int) -> None:
        run(x, records, weight, p.bias, p.A2, p.D_sum, planes_flat, states_flat, save,
            B, H, W, pitch, channels, p.Dp, p.R, p.N, p.K, M, task, c0, c1)  # fmt: skip

    _run(work, B * p.pairs, groups, p.Dp)


def backward(
    gy: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    states: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients for the six inputs of the scan, from the gradient of y and the saved states."""
    p = _Parameters(x.shape, dt_weight, dt_bias, A_log, D)
    B, H, W, channels = p.shape
    K, R, N, Np, Dp = p.K, p.R, p.N, p.Np, p.Dp
    run = _backward()
    x_flat, x_dbl_flat, gy_flat, states_flat = _flat(x), _flat(x_dbl), _flat(gy), states.numpy()
    tasks = B * p.pairs
    groups = _channel_groups(tasks, Dp)
    gplanes = torch.empty(p.pairs, *p.shape)
    gx_dbl = torch.empty(groups, *x_dbl.shape)
    gweight = np.zeros((B, K, p.Rp, Dp), np.float32)
    gbias, gA = np.zeros((B, K, Dp), np.float32), np.zeros((B, K, Np, Dp), np.float32)
    gplanes_flat, gx_dbl_flat = gplanes.numpy().reshape(-1), gx_dbl.numpy().reshape(groups, -1)

    def work(task: int, c0: int, c1: int, group: int) -> None:
        run(x_flat, x_dbl_flat, gy_flat, p.weight, p.bias, p.A2, p.D_sum, states_flat, gplanes_flat,
                  gx_dbl_flat[group], gweight.reshape(-1), gbias.reshape(-1), gA.reshape(-1),
                  B, H, W, channels, Dp, R, N, K, task, c0, c1)  # fmt: skip

    _run(work, tasks, groups, Dp)
    gx = gplanes[0] if p.pairs == 1 else gplanes[0].add_(gplanes[1])
    gx_dbl_sum = gx_dbl[0] if groups == 1 else gx_dbl.sum(0)
    # d/dA_log of 2^(dt A2) with A2 = -exp(A_log) log2(e): the factor LN2 A2 = A.
    gA_log = (
        (gA.sum(0) * p.A2.reshape(K, Np, Dp) * LN2)[:, :N, :channels]
        .swapaxes(1, 2)
        .reshape(K * channels, N)
    )
    gD = (gy.float() * x.float()).sum((0, 1, 2)).repeat(K)
    return (
        gx.to(x.dtype),
        gx_dbl_sum.to(x_dbl.dtype),
        torch.from_numpy(
            np.ascontiguousarray(gweight.sum(0)[:, :R].swapaxes(1, 2)[:, :channels])
        ).to(dt_weight.dtype),
        torch.from_numpy(np.ascontiguousarray(gbias.sum(0)[:, :channels])).to(dt_bias.dtype),
        torch.from_numpy(np.ascontiguousarray(gA_log)).to(A_log.dtype),
        gD.to(D.dtype),
    )
