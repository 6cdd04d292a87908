"""`ss2d_scan` as Triton kernels, forward and backward, for NVIDIA and AMD GPUs; nothing needs to be built.

Arrays are flat and channels-last; D channels, N states, R the rank of dt, K directions, L = H * W pixels. A
direction's sequence is cut into chunks of T steps that run side by side, in three passes:

1. every chunk from a zero state: what it ends with, and the sum of its step sizes (`_chunk_ends`);
2. carried over the chunks, since a state decays by exp(A * sum of dt) over a chunk (`_carry`);
3. every chunk again, from its true start (`_outputs`).

A lane is one channel or two (c and c + D/2) of one chunk and holds all their states in registers; lanes run over
chunks and channels, so that any D fills the warps, and neighbouring lanes read neighbouring channels in every
direction. Directions k and k + 2 cut the image into the same chunks: one program does both, and they meet in the
cache. States, step sizes and exponentials are float32 for inputs of any precision.

The backward saves nothing but its inputs. It takes one direction after the other, with short chunks whose steps stay
in registers; no two programs write to the same place, so that its results repeat bit for bit.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

FORWARD_CHUNK = (8, 256)  # shortest and longest, in steps
BACKWARD_CHUNK = 8  # steps, whose states the registers hold
WARPS = 16  # of a processor, which hide each other's latency
CARRY_LANES, CARRY_AHEAD = 128, 16  # lanes of a program, and chunks that are loaded at once
HELD = 44  # numbers of a channel, 2N + R, up to which a lane has registers for two channels
LARGEST_INDEX = 2**31  # from there on, of 64 bits


@triton.jit
def _softplus(v):  # type: ignore[no-untyped-def]
    """max(v,0) + log(1+e) with e = exp(-|v|); log(1+e) = e * a minimax polynomial on [0,1], relative error 3e-7."""
    e = tl.exp2(-tl.abs(v) * LOG2E)
    p = e * -0.008539208663 + 0.04408963217
    p = p * e - 0.1076817135
    p = p * e + 0.1774524147
    p = p * e - 0.2449546283
    p = p * e + 0.3327547977
    p = p * e - 0.499974054
    p = p * e + 0.9999998057
    return tl.maximum(v, 0.0) + e * p


@triton.jit
def _softplus_slope(y):  # type: ignore[no-untyped-def]
    """The derivative of softplus where it is y: 1 - exp(-y), which for small y is exact as a series only."""
    series = y * (1 - y * (0.5 - y * (1 / 6 - y * (1 / 24 - y * (1 / 120)))))
    return tl.where(y < 0.125, series, 1 - tl.exp2(-y * LOG2E))


@triton.jit
def _pair(pairs):  # type: ignore[no-untyped-def]
    """Two neighbouring float32 by one load of 64 bits."""
    both = tl.load(pairs)
    return both.to(tl.int32).to(tl.float32, bitcast=True), (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _lanes(chunks, D, BLOCK: tl.constexpr, CPT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each lane: whether it has work, its chunk and its CPT channels."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    groups = D // CPT
    inside = lane < chunks * groups
    lane = tl.minimum(lane, chunks * groups - 1)
    channels = ()
    for p in tl.static_range(CPT):
        channels = channels + (lane % groups + p * groups,)
    return inside, lane // groups, channels


@triton.jit
def _path(k, chunk, steps, T, H, W):  # type: ignore[no-untyped-def]
    """Of direction k: the first pixel of a chunk of so many steps, what leads to the next, and what is added where
    that is outside of the image. A walk over the end goes on at the start, so that any number of steps is safe."""
    columns = ((k % 2) == 1) & (H > 1)
    back = k >= 2
    first = chunk * T + tl.where(back, steps - 1, 0)  # in row-major or column-major order
    pixel = tl.where(columns, (first % H) * W + first // H, first)
    step = tl.where(columns, W, 1)
    wrap = tl.where(columns, 1 - H * W, -H * W)
    return pixel, tl.where(back, -step, step), tl.where(back, -wrap, wrap)


@triton.jit
def _next(pixel, step, wrap, L):  # type: ignore[no-untyped-def]
    pixel += step
    return tl.where((pixel >= L) | (pixel < 0), pixel + wrap, pixel)


@triton.jit
def _parameters(DT_WEIGHT, DT_BIAS, A_LOG, k, c, D, N: tl.constexpr, R: tl.constexpr, CPT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of dt_weight, dt_bias and A * log2(e) of a lane's channels."""
    weight, bias, rate = (), (), ()
    for p in tl.static_range(CPT):
        row = k * D + c[p]
        for r in tl.static_range(R):
            weight = weight + (tl.load(DT_WEIGHT + row * R + r),)
        for n in tl.static_range(N):
            rate = rate + (-tl.exp2(tl.load(A_LOG + row * N + n) * LOG2E) * LOG2E,)
        bias = bias + (tl.load(DT_BIAS + row),)
    return weight, bias, rate


@triton.jit
def _step_sizes(dts, weight, bias, inside, R: tl.constexpr, CPT: tl.constexpr):  # type: ignore[no-untyped-def]
    """dt of a lane's channels; 0, which leaves a state as it is, beyond the end of a chunk."""
    total = bias
    for r in tl.static_range(0, R, 2):
        first, second = _pair(dts + r // 2)
        new = ()
        for p in tl.static_range(CPT):
            new = new + (total[p] + weight[p * R + r] * first + weight[p * R + r + 1] * second,)
        total = new
    dt = ()
    for p in tl.static_range(CPT):
        dt = dt + (tl.where(inside, _softplus(total[p]), 0.0),)
    return dt


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.full([BLOCK], 0.0, tl.float32),)
    return zeros


@triton.jit
def _chunk_ends(  # type: ignore[no-untyped-def]
    X, X_DBL, DT_WEIGHT, DT_BIAS, A_LOG, GY, ENDS, SUMS, ADJOINTS, DT,
    H, W, D, T, chunks, first_k,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, CPT: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """ENDS (B,k,chunks,N,D): states after each chunk from zero. SUMS (B,k,chunks,D): sums of dt.

    For the backward also DT (B,L,D): step sizes, and ADJOINTS, as ENDS: what each chunk hands to the one before it,
    sum over its steps t of exp(A * sum of dt up to t) C_t gy_t.
    """
    k = tl.program_id(1) + first_k
    b = tl.program_id(2).to(tl.int64)
    L = H * W
    inside, chunk, c = _lanes(chunks, D, BLOCK, CPT)
    steps = tl.minimum(L - chunk * T, T)
    pixel, step, wrap = _path(k, chunk, steps, T, H, W)
    weight, bias, rate = _parameters(DT_WEIGHT, DT_BIAS, A_LOG, k, c, D, N, R, CPT)
    PAIRS: tl.constexpr = (R + 2 * N) // 2
    X += b * L * D
    X_DBL += (b * L * K + k) * PAIRS
    if BACKWARD:
        GY += b * L * D
        DT += b * L * D
        decayed = ()
        for _ in tl.static_range(N * CPT):
            decayed = decayed + (tl.full([BLOCK], 1.0, tl.float32),)
        adjoint = _zeros(N * CPT, BLOCK)
    h, total = _zeros(N * CPT, BLOCK), _zeros(CPT, BLOCK)  # states n and n + 1 of a channel side by side
    for t in range(T):
        x_dbl = X_DBL + pixel.to(INDEX) * (K * PAIRS)
        at = pixel.to(INDEX) * D
        dt = _step_sizes(x_dbl, weight, bias, t < steps, R, CPT)
        inflow, new_total, gy = (), (), ()
        for p in tl.static_range(CPT):
            inflow = inflow + (dt[p] * tl.load(X + at + c[p]).to(tl.float32),)
            new_total = new_total + (total[p] + dt[p],)
            if BACKWARD:
                used = inside & (t < steps)
                tl.store(DT + at + c[p], dt[p], mask=used)
                gy = gy + (tl.load(GY + at + c[p], mask=used, other=0.0).to(tl.float32),)
        total = new_total
        new_h, new_decayed, new_adjoint = (), (), ()
        for n in tl.static_range(0, N, 2):
            B0, B1 = _pair(x_dbl + (R + n) // 2)
            for p in tl.static_range(CPT):
                decay0, decay1 = tl.exp2(dt[p] * rate[p * N + n]), tl.exp2(dt[p] * rate[p * N + n + 1])
                h0 = h[n * CPT + 2 * p] * decay0 + inflow[p] * B0
                h1 = h[n * CPT + 2 * p + 1] * decay1 + inflow[p] * B1
                new_h = new_h + (h0, h1)
                if BACKWARD:
                    C0, C1 = _pair(x_dbl + (R + N + n) // 2)
                    decay0, decay1 = decayed[n * CPT + 2 * p] * decay0, decayed[n * CPT + 2 * p + 1] * decay1
                    new_decayed = new_decayed + (decay0, decay1)
                    m0 = adjoint[n * CPT + 2 * p] + decay0 * C0 * gy[p]
                    m1 = adjoint[n * CPT + 2 * p + 1] + decay1 * C1 * gy[p]
                    new_adjoint = new_adjoint + (m0, m1)
        h = new_h
        if BACKWARD:
            decayed, adjoint = new_decayed, new_adjoint
        pixel = _next(pixel, step, wrap, L)
    place = (b * tl.num_programs(1) + tl.program_id(1)) * chunks + chunk
    for p in tl.static_range(CPT):
        tl.store(SUMS + place * D + c[p], total[p], mask=inside)
        for n in tl.static_range(N):
            state = (place * N + n) * D + c[p]
            tl.store(ENDS + state, h[n // 2 * 2 * CPT + 2 * p + n % 2], mask=inside)
            if BACKWARD:
                tl.store(ADJOINTS + state, adjoint[n // 2 * 2 * CPT + 2 * p + n % 2], mask=inside)


@triton.jit
def _carry(ENDS, SUMS, A_LOG, D, chunks, first_k, flip, N: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """In place: what each chunk ends with from zero becomes what it starts with; against the direction if `flip`."""
    k = tl.program_id(1) + first_k
    b = tl.program_id(2).to(tl.int64)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # n * D + c
    inside = lane < N * D
    c = lane % D
    a_log = tl.load(A_LOG + (k * D + c) * N + lane // D, mask=inside, other=0.0)
    rate = -tl.exp2(a_log * LOG2E) * LOG2E
    forth = (k >= 2) == (flip != 0)
    place = (b * tl.num_programs(1) + tl.program_id(1)) * chunks
    state = tl.full([BLOCK], 0.0, tl.float32)
    for i in range(0, chunks, AHEAD):
        ends, decays = (), ()
        for j in tl.static_range(AHEAD):  # all loads before the first store, or each would wait for the last
            used = inside & (i + j < chunks)
            chunk = place + tl.where(forth, i + j, chunks - 1 - i - j)
            ends = ends + (tl.load(ENDS + chunk * N * D + lane, mask=used, other=0.0),)
            decays = decays + (tl.exp2(rate * tl.load(SUMS + chunk * D + c, mask=used, other=0.0)),)
        for j in tl.static_range(AHEAD):
            chunk = place + tl.where(forth, i + j, chunks - 1 - i - j)
            tl.store(ENDS + chunk * N * D + lane, state, mask=inside & (i + j < chunks))
            state = state * decays[j] + ends[j]


@triton.jit
def _outputs(  # type: ignore[no-untyped-def]
    X, X_DBL, DT_WEIGHT, DT_BIAS, A_LOG, SKIP, STARTS, Y,
    H, W, D, T, chunks, pair,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, CPT: tl.constexpr, BLOCK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Directions pair and pair + 2 (K = 1: the one) from the states in STARTS (B,K,chunks,N,D), added in Y (B,L,D)."""
    b = tl.program_id(1).to(tl.int64)
    L = H * W
    inside, chunk, c = _lanes(chunks, D, BLOCK, CPT)
    steps = tl.minimum(L - chunk * T, T)
    PAIRS: tl.constexpr = (R + 2 * N) // 2
    X += b * L * D
    Y += b * L * D
    for k in range(pair, K, 2):
        pixel, step, wrap = _path(k, chunk, steps, T, H, W)
        weight, bias, rate = _parameters(DT_WEIGHT, DT_BIAS, A_LOG, k, c, D, N, R, CPT)
        XK = X_DBL + (b * L * K + k) * PAIRS
        place = (b * K + k) * chunks + chunk
        skip, h = (), ()
        for p in tl.static_range(CPT):
            skip = skip + (tl.load(SKIP + k * D + c[p]),)
        for n in tl.static_range(0, N, 2):
            for p in tl.static_range(CPT):
                start = STARTS + (place * N + n) * D + c[p]
                h = h + (tl.load(start), tl.load(start + D))
        for t in range(T):
            used = inside & (t < steps)
            x_dbl = XK + pixel.to(INDEX) * (K * PAIRS)
            at = pixel.to(INDEX) * D
            dt = _step_sizes(x_dbl, weight, bias, t < steps, R, CPT)
            inflow, y = (), ()
            for p in tl.static_range(CPT):
                x = tl.load(X + at + c[p]).to(tl.float32)
                inflow = inflow + (dt[p] * x,)
                y = y + (skip[p] * x + tl.load(Y + at + c[p], mask=used & (k > 0), other=0.0),)
            new_h = ()
            for n in tl.static_range(0, N, 2):
                B0, B1 = _pair(x_dbl + (R + n) // 2)
                C0, C1 = _pair(x_dbl + (R + N + n) // 2)
                new_y = ()
                for p in tl.static_range(CPT):
                    h0 = h[n * CPT + 2 * p] * tl.exp2(dt[p] * rate[p * N + n]) + inflow[p] * B0
                    h1 = h[n * CPT + 2 * p + 1] * tl.exp2(dt[p] * rate[p * N + n + 1]) + inflow[p] * B1
                    new_h = new_h + (h0, h1)
                    new_y = new_y + (y[p] + h0 * C0 + h1 * C1,)
                y = new_y
            h = new_h
            for p in tl.static_range(CPT):
                tl.store(Y + at + c[p], y[p], mask=used)
            pixel = _next(pixel, step, wrap, L)
        tl.debug_barrier()  # the next direction reads what this one wrote


@triton.jit
def _gradients(  # type: ignore[no-untyped-def]
    X, X_DBL, A_LOG, GY, DT, STARTS, ADJOINTS, G_X, G_X_DBL, G_STATE, G_DT, chunks, k,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, D: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Gradients of one direction, whose sequence lies in order (REVERSE: backwards) in memory; a chunk a program.

    With m_t the adjoint of h_t as step t hands it on to step t-1, and l_t = C_t gy_t + m_{t+1}: m_t = exp(dt_t A) l_t,
    d/dB_t = sum over channels of l_t dt_t x_t, d/dC_t of gy_t h_t, d/dx_t = dt_t sum over states of l_t B_t,
    d/d(dt_t) = sum over states of A m_t h_{t-1} + x_t l_t B_t, d/dA = sum over t of dt_t m_t h_{t-1}.

    A pair of states runs through all channels before the next pair: what sums over channels, the gradients of B and C,
    stays in the lanes until then and crosses them once; what sums over states is added up in G_STATE and G_DT (B,L,D).
    At the end G_X (B,L,D) has grown by this direction's share, DT (B,L,D) holds the gradient before the softplus,
    G_X_DBL (B,L,R+2N) that of B and C, and STARTS (B,chunks,N,D) each chunk's share of A_log's.
    """
    program = tl.program_id(1).to(tl.int64) * chunks + tl.program_id(0)
    PAIRS: tl.constexpr = (R + 2 * N) // 2
    X_DBL += (program * T * K + k) * PAIRS
    G_X_DBL += program * T * PAIRS * 2
    lanes = tl.arange(0, BLOCK)
    for n in range(0, N, 2):
        g_B, g_C = _zeros(2 * T, BLOCK), _zeros(2 * T, BLOCK)  # of the steps from last to first
        for first in range(0, D, BLOCK):
            inside = first + lanes < D
            c = tl.minimum(first + lanes, D - 1)
            A0 = -tl.exp2(tl.load(A_LOG + (k * D + c) * N + n) * LOG2E)
            A1 = -tl.exp2(tl.load(A_LOG + (k * D + c) * N + n + 1) * LOG2E)
            state = (program * N + n) * D + c
            at = program * T * D + c
            h0, h1 = tl.load(STARTS + state), tl.load(STARTS + state + D)
            h, decays = (h0, h1), ()
            for t in tl.static_range(T):
                step = T - 1 - t if REVERSE else t
                dt = tl.load(DT + at + step * D, mask=inside, other=0.0)
                inflow = dt * tl.load(X + at + step * D).to(tl.float32)
                B0, B1 = _pair(X_DBL + step * K * PAIRS + (R + n) // 2)
                decay0, decay1 = tl.exp2(dt * (A0 * LOG2E)), tl.exp2(dt * (A1 * LOG2E))
                h0, h1 = h0 * decay0 + inflow * B0, h1 * decay1 + inflow * B1
                h, decays = h + (h0, h1), decays + (decay0, decay1)
            m0, m1 = tl.load(ADJOINTS + state), tl.load(ADJOINTS + state + D)
            g_A0, g_A1 = tl.full([BLOCK], 0.0, tl.float32), tl.full([BLOCK], 0.0, tl.float32)
            new_g_B, new_g_C = (), ()
            for t in tl.static_range(T - 1, -1, -1):
                step = T - 1 - t if REVERSE else t
                dt = tl.load(DT + at + step * D, mask=inside, other=0.0)
                gy = tl.load(GY + at + step * D, mask=inside, other=0.0).to(tl.float32)
                inflow = dt * tl.load(X + at + step * D).to(tl.float32)
                B0, B1 = _pair(X_DBL + step * K * PAIRS + (R + n) // 2)
                C0, C1 = _pair(X_DBL + step * K * PAIRS + (R + N + n) // 2)
                l0, l1 = C0 * gy + m0, C1 * gy + m1
                new_g_B = new_g_B + (g_B[2 * (T - 1 - t)] + l0 * inflow, g_B[2 * (T - 1 - t) + 1] + l1 * inflow)
                new_g_C = new_g_C + (g_C[2 * (T - 1 - t)] + gy * h[2 * t + 2], g_C[2 * (T - 1 - t) + 1] + gy * h[2 * t + 3])
                m0, m1 = decays[2 * t] * l0, decays[2 * t + 1] * l1
                q0, q1 = m0 * h[2 * t], m1 * h[2 * t + 1]
                g_A0, g_A1 = g_A0 + dt * q0, g_A1 + dt * q1
                again = inside & (n > 0)
                g_state = tl.load(G_STATE + at + step * D, mask=again, other=0.0) + (l0 * B0 + l1 * B1)
                g_dt = tl.load(G_DT + at + step * D, mask=again, other=0.0) + (A0 * q0 + A1 * q1)
                tl.store(G_STATE + at + step * D, g_state, mask=inside)
                tl.store(G_DT + at + step * D, g_dt, mask=inside)
            g_B, g_C = new_g_B, new_g_C
            tl.store(STARTS + state, g_A0 * A0, mask=inside)
            tl.store(STARTS + state + D, g_A1 * A1, mask=inside)
        for t in tl.static_range(T):
            step = T - 1 - t if REVERSE else t
            g_x_dbl = G_X_DBL + step * PAIRS * 2 + R + n
            tl.store(g_x_dbl, tl.sum(g_B[2 * (T - 1 - t)]))
            tl.store(g_x_dbl + 1, tl.sum(g_B[2 * (T - 1 - t) + 1]))
            tl.store(g_x_dbl + N, tl.sum(g_C[2 * (T - 1 - t)]))
            tl.store(g_x_dbl + N + 1, tl.sum(g_C[2 * (T - 1 - t) + 1]))
    for first in range(0, D, BLOCK):
        inside = first + lanes < D
        at = program * T * D + first + lanes
        for _ in range(T):
            dt = tl.load(DT + at, mask=inside, other=0.0)
            g_state = tl.load(G_STATE + at, mask=inside, other=0.0)
            x = tl.load(X + at, mask=inside, other=0.0).to(tl.float32)
            g_dt = tl.load(G_DT + at, mask=inside, other=0.0) + x * g_state
            tl.store(G_X + at, tl.load(G_X + at, mask=inside, other=0.0) + dt * g_state, mask=inside)
            tl.store(DT + at, g_dt * _softplus_slope(dt), mask=inside)
            at += D


def _hardware(device: torch.device) -> tuple[int, int]:
    """Processors of a GPU, and threads of a warp (64 on AMD's data centre GPUs); for Triton's interpreter, any."""
    if device.type != "cuda":
        return 1, 64
    target = triton.runtime.driver.active.get_current_target()
    return torch.cuda.get_device_properties(device).multi_processor_count, target.warp_size


def _chunk_length(lane_steps: int, processors: int, lanes: int) -> int:
    """The longest chunk, a power of two, of which there are enough to fill the GPU."""
    filled = max(1, lane_steps // (processors * WARPS * lanes))
    return min(FORWARD_CHUNK[1], max(FORWARD_CHUNK[0], 1 << (filled.bit_length() - 1)))


def _inputs(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor) -> list[Tensor]:
    """As the kernels take them: contiguous; all but x float32, with R and N even; x_dbl as pairs of numbers."""
    R, N = dt_weight.shape[2], A_log.shape[1]
    x_dbl = x_dbl.float().contiguous()
    if R % 2 or N % 2:
        dts, B, C = x_dbl.split([R, N, N], -1)
        x_dbl = torch.cat([F.pad(dts, (0, R % 2)), F.pad(B, (0, N % 2)), F.pad(C, (0, N % 2))], -1)
        dt_weight, A_log = F.pad(dt_weight, (0, R % 2)), F.pad(A_log, (0, N % 2))
    elif x_dbl.storage_offset() % 2:
        x_dbl = x_dbl.clone()
    return [x.contiguous(), x_dbl.view(torch.int64), *(v.float().contiguous() for v in (dt_weight, dt_bias, A_log))]


def _constants(pixels: int, dt_weight: Tensor, A_log: Tensor, lanes: int) -> dict[str, Any]:
    """What the kernels are compiled for, with images of so many pixels."""
    (K, channels, R), N = dt_weight.shape, A_log.shape[1]
    index = tl.int32 if pixels * max(channels, K * (R + 2 * N)) < LARGEST_INDEX else tl.int64
    return {"N": N, "R": R, "K": K, "BLOCK": lanes, "INDEX": index, "num_warps": 1}


def _carry_over(ends: Tensor, sums: Tensor, A_log: Tensor, first_k: int, flip: bool) -> None:
    batch, K, chunks, N, channels = ends.shape
    grid = (triton.cdiv(N * channels, CARRY_LANES), K, batch)
    constants = {"N": N, "BLOCK": CARRY_LANES, "AHEAD": CARRY_AHEAD, "num_warps": 4}
    _carry[grid](ends, sums, A_log, channels, chunks, first_k, int(flip), **constants)


def forward(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor, save: bool
) -> tuple[Tensor, Tensor]:
    """Y (B,H,W,D) as `scan.ss2d_scan`; nothing is saved for the backward, so the second result is empty."""
    dtype = x.dtype
    with torch.cuda.device_of(x):
        inputs = x, x_dbl, dt_weight, dt_bias, A_log = _inputs(x, x_dbl, dt_weight, dt_bias, A_log)
        batch, H, W, channels = x.shape
        processors, lanes = _hardware(x.device)
        constants = _constants(H * W, dt_weight, A_log, lanes)
        K, N = constants["K"], constants["N"]
        per_lane = constants["CPT"] = 2 if channels % 2 == 0 and 2 * N + constants["R"] <= HELD else 1
        T = _chunk_length(batch * H * W * channels // per_lane, processors, lanes)
        chunks = triton.cdiv(H * W, T)
        programs = triton.cdiv(chunks * channels // per_lane, lanes)
        sizes = (H, W, channels, T, chunks)
        starts = x.new_empty(batch, K, chunks, N, channels, dtype=torch.float32)
        if chunks == 1:
            starts.zero_()
        else:
            sums = x.new_empty(batch, K, chunks, channels, dtype=torch.float32)
            _chunk_ends[programs, K, batch](*inputs, x, starts, sums, x, x, *sizes, 0, **constants, BACKWARD=False)
            _carry_over(starts, sums, A_log, 0, False)
        y = torch.empty_like(x, dtype=torch.float32)
        for pair in range(min(K, 2)):
            _outputs[programs, batch](*inputs, D.float().contiguous(), starts, y, *sizes, pair, **constants)
        return y.to(dtype), x.new_empty(state_count())


def state_count(*_: object) -> int:
    """Numbers that the forward saves for the backward."""
    return 0


def _sequence(image: Tensor, columns: bool) -> Tensor:
    """(B,H,W,...) -> (B,L,...), row-major or column-major, then zeros up to whole chunks of the backward."""
    sequence = (image.transpose(1, 2) if columns else image).flatten(1, 2)
    missing = -sequence.shape[1] % BACKWARD_CHUNK
    return F.pad(sequence, (0, 0) * (sequence.ndim - 2) + (0, missing)) if missing else sequence.contiguous()


def _image(sequence: Tensor, H: int, W: int, columns: bool) -> Tensor:
    """(B,L,...) -> (B,H,W,...), a view: the inverse of `_sequence`."""
    image = sequence[:, : H * W]
    return image.unflatten(1, (W, H)).transpose(1, 2) if columns else image.unflatten(1, (H, W))


def _direction_gradients(
    k: int, gy: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, g_x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_dbl (B,L,R+2N), dt_weight (D,R), dt_bias (D) and A_log (D,N) of direction k alone.

    gy, x (B,L,D) and x_dbl lie in the order of direction k, or in the reverse of it; g_x (B,L,D) is added to.
    """
    batch, L, channels = x.shape
    _, lanes = _hardware(x.device)
    constants = _constants(L, dt_weight, A_log, lanes)
    N, R, K, T = constants["N"], constants["R"], constants["K"], BACKWARD_CHUNK
    chunks = L // T
    single = {"dtype": torch.float32, "device": x.device}
    ends, adjoints = torch.empty(2, batch, 1, chunks, N, channels, **single)
    sums = torch.empty(batch, 1, chunks, channels, **single)
    dt, g_state, g_dt = torch.empty(3, batch, L, channels, **single)
    g_x_dbl = torch.empty(batch, L, R + 2 * N, **single)
    inputs = (x, x_dbl, dt_weight, dt_bias, A_log)
    sizes = (1, L, channels, T, chunks, k)
    programs = triton.cdiv(chunks * channels, lanes)
    _chunk_ends[programs, 1, batch](*inputs, gy, ends, sums, adjoints, dt, *sizes, **constants, CPT=1, BACKWARD=True)
    _carry_over(ends, sums, A_log, k, False)
    _carry_over(adjoints, sums, A_log, k, True)
    arrays = (x, x_dbl, A_log, gy, dt, ends, adjoints, g_x, g_x_dbl, g_state, g_dt, chunks, k)
    del constants["INDEX"]
    _gradients[chunks, batch](*arrays, **constants, D=channels, T=T, REVERSE=k >= 2)
    dts = x_dbl.view(torch.float32)[:, :, k, :R]
    g_x_dbl[:, :, :R] = dt @ dt_weight[k]
    return g_x_dbl, dt.flatten(0, 1).t() @ dts.flatten(0, 1), dt.sum((0, 1)), ends.sum((0, 1, 2)).t()


def backward(
    gy: Tensor, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor, D: Tensor, _: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the six inputs of `forward`, in their types, from that of y (B,H,W,D)."""
    dtypes = [v.dtype for v in (x, x_dbl, dt_weight, dt_bias, A_log, D)]
    R, N = dt_weight.shape[2], A_log.shape[1]
    with torch.cuda.device_of(x):
        x, x_dbl, dt_weight, dt_bias, A_log = _inputs(x, x_dbl, dt_weight, dt_bias, A_log)
        _, H, W, channels = x.shape
        K, _, even_R = dt_weight.shape
        even_N = A_log.shape[1]
        g_x = gy.float() * D.float().view(K, channels).sum(0)
        g_x_dbl = x.new_empty(*x_dbl.shape[:4], even_R + 2 * even_N, dtype=torch.float32)
        g_weight, g_bias, g_A_log = (torch.empty_like(v) for v in (dt_weight, dt_bias, A_log.view(K, channels, -1)))
        for columns in range(min(K, 2)):
            sequences = [_sequence(v, bool(columns)) for v in (gy, x, x_dbl)]
            g_sequence = torch.zeros_like(sequences[1], dtype=torch.float32)
            for k in range(columns, K, 2):
                found = _direction_gradients(k, *sequences, dt_weight, dt_bias, A_log, g_sequence)
                g_x_dbl[:, :, :, k] = _image(found[0], H, W, bool(columns))
                g_weight[k], g_bias[k], g_A_log[k] = found[1:]
            g_x += _image(g_sequence, H, W, bool(columns))
        g_D = (gy.float() * x.float()).sum((0, 1, 2)).repeat(K)
        if (even_R, even_N) != (R, N):
            g_dts, g_B, g_C = g_x_dbl.split([even_R, even_N, even_N], -1)
            g_x_dbl = torch.cat([g_dts[..., :R], g_B[..., :N], g_C[..., :N]], -1)
        gradients = (g_x, g_x_dbl, g_weight[..., :R], g_bias, g_A_log[..., :N].flatten(0, 1), g_D)
        return tuple(g.to(dtype).contiguous() for g, dtype in zip(gradients, dtypes, strict=True))


def try_out() -> None:
    """Run the forward on a few pixels of the current GPU; raises what keeps it from compiling or running."""
    sizes = ((1, 1, 16, 2), (1, 1, 16, 1, 6), (1, 2, 2), (1, 2), (2, 2), (2,))
    forward(*(torch.zeros(size, device="cuda") for size in sizes), False)
    torch.cuda.synchronize()
