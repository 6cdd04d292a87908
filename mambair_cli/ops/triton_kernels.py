"""The kernels of `scan_triton`, where the method is told.

Arrays are flat and channels-last; D channels, N states, R the rank of dt, K directions, L = H * W
pixels. X_DBL holds its numbers in pairs, as integers of 64 bits that one load fetches; so R and N
are even.

A program has BLOCK lanes, one a thread, of one warp (`carry`: of several); a lane reads back only
what it wrote itself. What a lane holds of several channels, states or steps is a tuple of blocks
rather than a block of two dimensions, which the compiler would spread over the lanes.

Sizes of the image and numbers of directions are not specialised: Triton would compile another
binary wherever one of them is 1 or a multiple of 16, and none would be faster.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(v):
    """Compute softplus as max(v,0) + log(1+e) with e = exp(-|v|).

    log(1+e) is e times a minimax polynomial on [0,1], with a relative error of 3e-7.
    """
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
def softplus_slope(y):
    """Compute the derivative of softplus where its value is y: 1 - exp(-y).

    For small y only the series is exact.
    """
    series = y * (1 - y * (0.5 - y * (1 / 6 - y * (1 / 24 - y * (1 / 120)))))
    return tl.where(y < 0.125, series, 1 - tl.exp2(-y * LOG2E))


@triton.jit
def _pair(pairs):
    """Load two neighbouring float32 at once, as 64 bits."""
    both = tl.load(pairs)
    return both.to(tl.int32).to(tl.float32, bitcast=True), (both >> 32).to(tl.int32).to(
        tl.float32, bitcast=True
    )


@triton.jit
def _lanes(chunks, D, BLOCK: tl.constexpr, PER_LANE: tl.constexpr):
    """Return for each lane whether it has work, its chunk and its PER_LANE channels."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    groups = D // PER_LANE
    inside = lane < chunks * groups
    lane = tl.minimum(lane, chunks * groups - 1)
    channels = ()
    for p in tl.static_range(PER_LANE):
        channels = channels + (lane % groups + p * groups,)
    return inside, lane // groups, channels


@triton.jit
def _path(k, chunk, steps, T, H, W):
    """Return the path of direction k through a chunk of so many steps.

    It is the first pixel, what leads from one to the next, and what is added if that lies outside
    the image. A walk over the end goes on at the start, so any number of steps is safe.
    """
    columns = ((k % 2) == 1) & (H > 1)
    back = k >= 2
    # in row-major or column-major order
    first = chunk * T + tl.where(back, steps - 1, 0)
    pixel = tl.where(columns, (first % H) * W + first // H, first)
    step = tl.where(columns, W, 1)
    wrap = tl.where(columns, 1 - H * W, -H * W)
    return pixel, tl.where(back, -step, step), tl.where(back, -wrap, wrap)


@triton.jit
def _next(pixel, step, wrap, L):
    pixel += step
    return tl.where((pixel >= L) | (pixel < 0), pixel + wrap, pixel)


@triton.jit
def _parameters(
    DT_WEIGHT, DT_BIAS, A_LOG, k, c, D, N: tl.constexpr, R: tl.constexpr, PER_LANE: tl.constexpr
):
    """Load the rows of dt_weight, dt_bias and A * log2(e) for a lane's channels."""
    weight, bias, rate = (), (), ()
    for p in tl.static_range(PER_LANE):
        row = k * D + c[p]
        for r in tl.static_range(R):
            weight = weight + (tl.load(DT_WEIGHT + row * R + r),)
        for n in tl.static_range(N):
            rate = rate + (-tl.exp2(tl.load(A_LOG + row * N + n) * LOG2E) * LOG2E,)
        bias = bias + (tl.load(DT_BIAS + row),)
    return weight, bias, rate


@triton.jit
def _step_sizes(dts, weight, bias, inside, R: tl.constexpr, PER_LANE: tl.constexpr):
    """Compute the step sizes of a lane's channels.

    Beyond the end of a chunk they are 0, which leaves a state as it is.
    """
    total = bias
    for r in tl.static_range(0, R, 2):
        first, second = _pair(dts + r // 2)
        new = ()
        for p in tl.static_range(PER_LANE):
            new = new + (total[p] + weight[p * R + r] * first + weight[p * R + r + 1] * second,)
        total = new
    dt = ()
    for p in tl.static_range(PER_LANE):
        dt = dt + (tl.where(inside, softplus(total[p]), 0.0),)
    return dt


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros = zeros + (tl.full([BLOCK], 0.0, tl.float32),)
    return zeros


@triton.jit(do_not_specialize=["H", "W", "T", "chunks", "first_k"])
def chunk_ends(
    X, X_DBL, DT_WEIGHT, DT_BIAS, A_LOG, GY, ENDS, SUMS, ADJOINTS, DT,
    H, W, D, T, chunks, first_k,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, PER_LANE: tl.constexpr, BLOCK: tl.constexpr,
    INDEX: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Compute ENDS (B,k,chunks,N,D): states after each chunk from zero. SUMS (B,k,chunks,D): sums of dt.

    For the backward, whose chunks are whole, also DT (B,L,D): step sizes, and ADJOINTS, as ENDS:
    what each chunk hands to the one before it, sum over its steps t of exp(A * sum of dt up to t)
    C_t gy_t.
    """
    k = tl.program_id(1) + first_k
    b = tl.program_id(2).to(tl.int64)
    L = H * W
    inside, chunk, c = _lanes(chunks, D, BLOCK, PER_LANE)
    steps = tl.minimum(L - chunk * T, T)
    pixel, step, wrap = _path(k, chunk, steps, T, H, W)
    weight, bias, rate = _parameters(DT_WEIGHT, DT_BIAS, A_LOG, k, c, D, N, R, PER_LANE)
    PAIRS: tl.constexpr = (R + 2 * N) // 2
    X += b * L * D
    X_DBL += (b * L * K + k) * PAIRS
    if BACKWARD:
        GY += b * L * D
        DT += b * L * D
        decayed = ()
        for _ in tl.static_range(N * PER_LANE):
            decayed = decayed + (tl.full([BLOCK], 1.0, tl.float32),)
        adjoint = _zeros(N * PER_LANE, BLOCK)
    # states n and n + 1 of a channel side by side
    h, total = (
        _zeros(N * PER_LANE, BLOCK),
        _zeros(PER_LANE, BLOCK),
    )
    for t in range(T):
        x_dbl = X_DBL + pixel.to(INDEX) * (K * PAIRS)
        at = pixel.to(INDEX) * D
        dt = _step_sizes(x_dbl, weight, bias, t < steps, R, PER_LANE)
        inflow, new_total, gy = (), (), ()
        for p in tl.static_range(PER_LANE):
            inflow = inflow + (dt[p] * tl.load(X + at + c[p]).to(tl.float32),)
            new_total = new_total + (total[p] + dt[p],)
            if BACKWARD:
                tl.store(DT + at + c[p], dt[p], mask=inside)
                gy = gy + (tl.load(GY + at + c[p]).to(tl.float32),)
        total = new_total
        new_h, new_decayed, new_adjoint = (), (), ()
        for n in tl.static_range(0, N, 2):
            B0, B1 = _pair(x_dbl + (R + n) // 2)
            for p in tl.static_range(PER_LANE):
                decay0, decay1 = (
                    tl.exp2(dt[p] * rate[p * N + n]),
                    tl.exp2(dt[p] * rate[p * N + n + 1]),
                )
                h0 = h[n * PER_LANE + 2 * p] * decay0 + inflow[p] * B0
                h1 = h[n * PER_LANE + 2 * p + 1] * decay1 + inflow[p] * B1
                new_h = new_h + (h0, h1)
                if BACKWARD:
                    C0, C1 = _pair(x_dbl + (R + N + n) // 2)
                    decay0, decay1 = (
                        decayed[n * PER_LANE + 2 * p] * decay0,
                        decayed[n * PER_LANE + 2 * p + 1] * decay1,
                    )
                    new_decayed = new_decayed + (decay0, decay1)
                    m0 = adjoint[n * PER_LANE + 2 * p] + decay0 * C0 * gy[p]
                    m1 = adjoint[n * PER_LANE + 2 * p + 1] + decay1 * C1 * gy[p]
                    new_adjoint = new_adjoint + (m0, m1)
        h = new_h
        if BACKWARD:
            decayed, adjoint = new_decayed, new_adjoint
        pixel = _next(pixel, step, wrap, L)
    place = (b * tl.num_programs(1) + tl.program_id(1)) * chunks + chunk
    for p in tl.static_range(PER_LANE):
        tl.store(SUMS + place * D + c[p], total[p], mask=inside)
        for n in tl.static_range(N):
            state = (place * N + n) * D + c[p]
            tl.store(ENDS + state, h[n // 2 * 2 * PER_LANE + 2 * p + n % 2], mask=inside)
            if BACKWARD:
                tl.store(
                    ADJOINTS + state, adjoint[n // 2 * 2 * PER_LANE + 2 * p + n % 2], mask=inside
                )


@triton.jit(do_not_specialize=["chunks", "first_k", "flip"])
def carry(
    ENDS,
    SUMS,
    A_LOG,
    D,
    chunks,
    first_k,
    flip,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Turn in place what each chunk ends with, from zero, into what it starts with.

    The chunks are walked against the direction if `flip`.
    """
    k = tl.program_id(1) + first_k
    b = tl.program_id(2).to(tl.int64)
    # n * D + c
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = lane < N * D
    c = lane % D
    a_log = tl.load(A_LOG + (k * D + c) * N + lane // D, mask=inside, other=0.0)
    rate = -tl.exp2(a_log * LOG2E) * LOG2E
    forth = (k >= 2) == (flip != 0)
    place = (b * tl.num_programs(1) + tl.program_id(1)) * chunks
    state = tl.full([BLOCK], 0.0, tl.float32)
    for i in range(0, chunks, AHEAD):
        ends, decays = (), ()
        # all loads before the first store, or each would wait for the last
        for j in tl.static_range(AHEAD):
            used = inside & (i + j < chunks)
            chunk = place + tl.where(forth, i + j, chunks - 1 - i - j)
            ends = ends + (tl.load(ENDS + chunk * N * D + lane, mask=used, other=0.0),)
            decays = decays + (tl.exp2(rate * tl.load(SUMS + chunk * D + c, mask=used, other=0.0)),)
        for j in tl.static_range(AHEAD):
            chunk = place + tl.where(forth, i + j, chunks - 1 - i - j)
            tl.store(ENDS + chunk * N * D + lane, state, mask=inside & (i + j < chunks))
            state = state * decays[j] + ends[j]


@triton.jit(do_not_specialize=["H", "W", "T", "chunks", "pair"])
def outputs(
    X, X_DBL, DT_WEIGHT, DT_BIAS, A_LOG, SKIP, STARTS, Y,
    H, W, D, T, chunks, pair,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, PER_LANE: tl.constexpr, BLOCK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """Add up directions pair and pair + 2 (K = 1: the one direction) in Y (B,L,D).

    They start from the states in STARTS (B,K,chunks,N,D).
    """
    b = tl.program_id(1).to(tl.int64)
    L = H * W
    inside, chunk, c = _lanes(chunks, D, BLOCK, PER_LANE)
    steps = tl.minimum(L - chunk * T, T)
    PAIRS: tl.constexpr = (R + 2 * N) // 2
    X += b * L * D
    Y += b * L * D
    for k in range(pair, K, 2):
        pixel, step, wrap = _path(k, chunk, steps, T, H, W)
        weight, bias, rate = _parameters(DT_WEIGHT, DT_BIAS, A_LOG, k, c, D, N, R, PER_LANE)
        X_DBL_K = X_DBL + (b * L * K + k) * PAIRS
        place = (b * K + k) * chunks + chunk
        skip, h = (), ()
        for p in tl.static_range(PER_LANE):
            skip = skip + (tl.load(SKIP + k * D + c[p]),)
        for n in tl.static_range(0, N, 2):
            for p in tl.static_range(PER_LANE):
                start = STARTS + (place * N + n) * D + c[p]
                h = h + (tl.load(start), tl.load(start + D))
        for t in range(T):
            used = inside & (t < steps)
            x_dbl = X_DBL_K + pixel.to(INDEX) * (K * PAIRS)
            at = pixel.to(INDEX) * D
            dt = _step_sizes(x_dbl, weight, bias, t < steps, R, PER_LANE)
            inflow, y = (), ()
            for p in tl.static_range(PER_LANE):
                x = tl.load(X + at + c[p]).to(tl.float32)
                inflow = inflow + (dt[p] * x,)
                y = y + (skip[p] * x + tl.load(Y + at + c[p], mask=used & (k > 0), other=0.0),)
            new_h = ()
            for n in tl.static_range(0, N, 2):
                B0, B1 = _pair(x_dbl + (R + n) // 2)
                C0, C1 = _pair(x_dbl + (R + N + n) // 2)
                new_y = ()
                for p in tl.static_range(PER_LANE):
                    h0 = h[n * PER_LANE + 2 * p] * tl.exp2(dt[p] * rate[p * N + n]) + inflow[p] * B0
                    h1 = (
                        h[n * PER_LANE + 2 * p + 1] * tl.exp2(dt[p] * rate[p * N + n + 1])
                        + inflow[p] * B1
                    )
                    new_h = new_h + (h0, h1)
                    new_y = new_y + (y[p] + h0 * C0 + h1 * C1,)
                y = new_y
            h = new_h
            for p in tl.static_range(PER_LANE):
                tl.store(Y + at + c[p], y[p], mask=used)
            pixel = _next(pixel, step, wrap, L)


@triton.jit(do_not_specialize=["chunks", "k"])
def gradients(
    X, X_DBL, A_LOG, GY, DT, STARTS, ADJOINTS, G_X, G_X_DBL, G_STATE, G_DT, chunks, k,
    N: tl.constexpr, R: tl.constexpr, K: tl.constexpr, D: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of one direction, one chunk in each program.

    Its sequence lies in order in memory (REVERSE: backwards).

    With m_t the adjoint of h_t as step t hands it on to step t-1, and l_t = C_t gy_t + m_{t+1}: m_t
    = exp(dt_t A) l_t, d/dB_t = sum over channels of l_t dt_t x_t, d/dC_t of gy_t h_t, d/dx_t = dt_t
    sum over states of l_t B_t, d/d(dt_t) = sum over states of A m_t h_{t-1} + x_t l_t B_t, d/dA =
    sum over t of dt_t m_t h_{t-1}.

    A pair of states runs through all channels before the next pair: what sums over channels, the
    gradients of B and C, stays in the lanes until then and crosses them once; what sums over states
    is added up in G_STATE and G_DT (B,L,D). At the end G_X (B,L,D) has grown by this direction's
    share, DT (B,L,D) holds the gradient before the softplus, G_X_DBL (B,L,R+2N) that of B and C,
    and STARTS (B,chunks,N,D) each chunk's share of A_log's.
    """
    program = tl.program_id(1).to(tl.int64) * chunks + tl.program_id(0)
    PAIRS: tl.constexpr = (R + 2 * N) // 2
    X_DBL += (program * T * K + k) * PAIRS
    G_X_DBL += program * T * PAIRS * 2
    lanes = tl.arange(0, BLOCK)
    for n in range(0, N, 2):
        # of the steps from last to first
        g_B, g_C = _zeros(2 * T, BLOCK), _zeros(2 * T, BLOCK)
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
                new_g_B = new_g_B + (g_B[2 * (T - 1 - t)] + l0 * inflow,)
                new_g_B = new_g_B + (g_B[2 * (T - 1 - t) + 1] + l1 * inflow,)
                new_g_C = new_g_C + (g_C[2 * (T - 1 - t)] + gy * h[2 * t + 2],)
                new_g_C = new_g_C + (g_C[2 * (T - 1 - t) + 1] + gy * h[2 * t + 3],)
                m0, m1 = decays[2 * t] * l0, decays[2 * t + 1] * l1
                q0, q1 = m0 * h[2 * t], m1 * h[2 * t + 1]
                g_A0, g_A1 = g_A0 + dt * q0, g_A1 + dt * q1
                again = inside & (n > 0)
                g_state = tl.load(G_STATE + at + step * D, mask=again, other=0.0) + (
                    l0 * B0 + l1 * B1
                )
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
            tl.store(
                G_X + at, tl.load(G_X + at, mask=inside, other=0.0) + dt * g_state, mask=inside
            )
            tl.store(DT + at, g_dt * softplus_slope(dt), mask=inside)
            at += D
