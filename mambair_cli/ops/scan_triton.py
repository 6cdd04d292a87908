"""`ss2d_scan` as Triton kernels, forward and backward, for NVIDIA and AMD GPUs; nothing needs to be
built.

A direction's sequence is cut into chunks of T steps that run side by side, in three passes
(`triton_kernels`):

1. every chunk from a zero state: what it ends with, and the sum of its step sizes (`chunk_ends`);
2. carried over the chunks, since a state decays by exp(A * sum of dt) over a chunk (`carry`);
3. every chunk again, from its true start (`outputs`).

A lane is one channel or two (c and c + D/2) of one chunk and holds all their states in registers;
lanes run over chunks and channels, so that any D fills the warps, and neighbouring lanes read
neighbouring channels in every direction. Directions k and k + 2 cut the image into the same chunks:
one program does both, and they meet in the cache. States, step sizes and exponentials are float32
for inputs of any precision.

The backward saves nothing but its inputs. It takes one direction after the other, with short chunks
whose steps stay in registers; no two programs write to the same place, so that its results repeat
bit for bit.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .triton_kernels import carry, chunk_ends, gradients, outputs

# shortest and longest, in steps
FORWARD_CHUNK = (8, 256)
# steps, whose states the registers hold
BACKWARD_CHUNK = 8
# of a processor, which hide each other's latency
WARPS = 16
# of a program, and chunks that are loaded at once
CARRY_WARPS, CARRY_AHEAD = 4, 16
# numbers of a channel, 2N + R, up to which a lane has registers for two channels
HELD = 44
# from there on, of 64 bits
LARGEST_INDEX = 2**31


@lru_cache
def _hardware(device: torch.device) -> tuple[int, int]:
    """Processors of a GPU, and threads of a warp (64 on AMD's data centre GPUs); for Triton's
    interpreter, any.
    """
    if device.type != "cuda":
        return 1, 64
    target = triton.runtime.driver.active.get_current_target()
    return torch.cuda.get_device_properties(device).multi_processor_count, target.warp_size


def _chunk_length(lane_steps: int, processors: int, lanes: int) -> int:
    """The longest chunk, a power of two, of which there are enough to fill the GPU."""
    filled = max(1, lane_steps // (processors * WARPS * lanes))
    return min(FORWARD_CHUNK[1], max(FORWARD_CHUNK[0], 1 << (filled.bit_length() - 1)))


def _inputs(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor
) -> list[Tensor]:
    """As the kernels take them: contiguous; all but x float32, with R and N even; x_dbl as pairs of
    numbers.
    """
    R, N = dt_weight.shape[2], A_log.shape[1]
    x_dbl = x_dbl.float().contiguous()
    if R % 2 or N % 2:
        dts, B, C = x_dbl.split([R, N, N], -1)
        x_dbl = torch.cat([F.pad(dts, (0, R % 2)), F.pad(B, (0, N % 2)), F.pad(C, (0, N % 2))], -1)
        dt_weight, A_log = F.pad(dt_weight, (0, R % 2)), F.pad(A_log, (0, N % 2))
    elif x_dbl.storage_offset() % 2:
        x_dbl = x_dbl.clone()
    return [
        x.contiguous(),
        x_dbl.view(torch.int64),
        *(v.float().contiguous() for v in (dt_weight, dt_bias, A_log)),
    ]


def _constants(pixels: int, dt_weight: Tensor, A_log: Tensor, lanes: int) -> dict[str, Any]:
    """What the kernels are compiled for, with images of so many pixels."""
    (K, channels, R), N = dt_weight.shape, A_log.shape[1]
    index = tl.int32 if pixels * max(channels, K * (R + 2 * N)) < LARGEST_INDEX else tl.int64
    return {"N": N, "R": R, "K": K, "BLOCK": lanes, "INDEX": index, "num_warps": 1}


def _carry_over(ends: Tensor, sums: Tensor, A_log: Tensor, first_k: int, flip: bool) -> None:
    batch, K, chunks, N, channels = ends.shape
    block = CARRY_WARPS * _hardware(ends.device)[1]
    constants = {"N": N, "BLOCK": block, "AHEAD": CARRY_AHEAD, "num_warps": CARRY_WARPS}
    programs = triton.cdiv(N * channels, block)
    carry[programs, K, batch](ends, sums, A_log, channels, chunks, first_k, int(flip), **constants)


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Y (B,H,W,D) as `scan.ss2d_scan`; nothing is saved for the backward, so the second result is
    empty.
    """
    dtype = x.dtype
    with torch.cuda.device_of(x):
        inputs = x, x_dbl, dt_weight, dt_bias, A_log = _inputs(x, x_dbl, dt_weight, dt_bias, A_log)
        batch, H, W, channels = x.shape
        processors, lanes = _hardware(x.device)
        constants = _constants(H * W, dt_weight, A_log, lanes)
        K, N = constants["K"], constants["N"]
        per_lane = constants["PER_LANE"] = (
            2 if channels % 2 == 0 and 2 * N + constants["R"] <= HELD else 1
        )
        T = _chunk_length(batch * H * W * channels // per_lane, processors, lanes)
        chunks = triton.cdiv(H * W, T)
        programs = triton.cdiv(chunks * channels // per_lane, lanes)
        sizes = (H, W, channels, T, chunks)
        starts = x.new_empty(batch, K, chunks, N, channels, dtype=torch.float32)
        if chunks == 1:
            starts.zero_()
        else:
            sums = x.new_empty(batch, K, chunks, channels, dtype=torch.float32)
            chunk_ends[programs, K, batch](
                *inputs, x, starts, sums, x, x, *sizes, 0, **constants, BACKWARD=False
            )
            _carry_over(starts, sums, A_log, 0, False)
        y = torch.empty_like(x, dtype=torch.float32)
        for pair in range(min(K, 2)):
            outputs[programs, batch](
                *inputs, D.float().contiguous(), starts, y, *sizes, pair, **constants
            )
        return y.to(dtype), x.new_empty(state_count())


def state_count(*_: object) -> int:
    """Numbers that the forward saves for the backward."""
    return 0


def _sequence(image: Tensor, columns: bool) -> Tensor:
    """(B,H,W,...) -> (B,L,...), row-major or column-major, then zeros up to whole chunks of the
    backward.
    """
    sequence = (image.transpose(1, 2) if columns else image).flatten(1, 2)
    missing = -sequence.shape[1] % BACKWARD_CHUNK
    return (
        F.pad(sequence, (0, 0) * (sequence.ndim - 2) + (0, missing))
        if missing
        else sequence.contiguous()
    )


def _image(sequence: Tensor, H: int, W: int, columns: bool) -> Tensor:
    """(B,L,...) -> (B,H,W,...), a view: the inverse of `_sequence`."""
    image = sequence[:, : H * W]
    return image.unflatten(1, (W, H)).transpose(1, 2) if columns else image.unflatten(1, (H, W))


def _direction_gradients(
    k: int,
    gy: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    g_x: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x_dbl (B,L,R+2N), dt_weight (D,R), dt_bias (D) and A_log (D,N) of direction k
    alone.

    gy, x (B,L,D) and x_dbl lie in the order of direction k, or in the reverse of it; g_x (B,L,D) is
    added to.
    """

    def empty(*size: int) -> Tensor:
        return x.new_empty(size, dtype=torch.float32)

    batch, L, channels = x.shape
    _, lanes = _hardware(x.device)
    constants = _constants(L, dt_weight, A_log, lanes)
    N, R, T = constants["N"], constants["R"], BACKWARD_CHUNK
    chunks = L // T
    ends, adjoints = empty(batch, 1, chunks, N, channels), empty(batch, 1, chunks, N, channels)
    sums = empty(batch, 1, chunks, channels)
    dt, g_state, g_dt = (
        empty(batch, L, channels),
        empty(batch, L, channels),
        empty(batch, L, channels),
    )
    g_x_dbl = empty(batch, L, R + 2 * N)
    arrays: tuple[Tensor, ...] = (x, x_dbl, dt_weight, dt_bias, A_log, gy, ends, sums, adjoints, dt)
    programs = triton.cdiv(chunks * channels, lanes)
    # a sequence is an image of one row
    chunk_ends[programs, 1, batch](
        *arrays, 1, L, channels, T, chunks, k, **constants, PER_LANE=1, BACKWARD=True
    )
    _carry_over(ends, sums, A_log, k, False)
    _carry_over(adjoints, sums, A_log, k, True)
    del constants["INDEX"]
    arrays = (x, x_dbl, A_log, gy, dt, ends, adjoints, g_x, g_x_dbl, g_state, g_dt)
    gradients[chunks, batch](*arrays, chunks, k, **constants, D=channels, T=T, REVERSE=k >= 2)
    dts = x_dbl.view(torch.float32)[:, :, k, :R]
    g_x_dbl[:, :, :R] = dt @ dt_weight[k]
    return (
        g_x_dbl,
        dt.flatten(0, 1).t() @ dts.flatten(0, 1),
        dt.sum((0, 1)),
        ends.sum((0, 1, 2)).t(),
    )


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
    """Gradients of the six inputs of `forward`, in their types, from that of y (B,H,W,D)."""
    dtypes = [v.dtype for v in (x, x_dbl, dt_weight, dt_bias, A_log, D)]
    R, N = dt_weight.shape[2], A_log.shape[1]
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        x, x_dbl, dt_weight, dt_bias, A_log = _inputs(x, x_dbl, dt_weight, dt_bias, A_log)
        _, H, W, channels = x.shape
        K, even_R, even_N = dt_weight.shape[0], dt_weight.shape[2], A_log.shape[1]
        g_x = gy.float() * D.float().view(K, channels).sum(0)
        g_x_dbl = torch.empty_like(x_dbl.view(torch.float32))
        g_weight, g_bias, g_A_log = (
            torch.empty_like(v) for v in (dt_weight, dt_bias, A_log.view(K, channels, -1))
        )
        for columns in (False, True)[: min(K, 2)]:
            gy_order, x_order, x_dbl_order = (_sequence(v, columns) for v in (gy, x, x_dbl))
            g_x_order = torch.zeros_like(x_order, dtype=torch.float32)
            for k in range(columns, K, 2):
                g_x_dbl_order, g_weight[k], g_bias[k], g_A_log[k] = _direction_gradients(
                    k, gy_order, x_order, x_dbl_order, dt_weight, dt_bias, A_log, g_x_order
                )
                g_x_dbl[:, :, :, k] = _image(g_x_dbl_order, H, W, columns)
            g_x += _image(g_x_order, H, W, columns)
        g_D = (gy.float() * x.float()).sum((0, 1, 2)).repeat(K)
        g_dts, g_B, g_C = g_x_dbl.split([even_R, even_N, even_N], -1)
        if (even_R, even_N) != (R, N):
            g_x_dbl = torch.cat([g_dts[..., :R], g_B[..., :N], g_C[..., :N]], -1)
        found = (g_x, g_x_dbl, g_weight[..., :R], g_bias, g_A_log[..., :N].flatten(0, 1), g_D)
        return tuple(g.to(dtype).contiguous() for g, dtype in zip(found, dtypes, strict=True))


def try_out() -> None:
    """Run the forward on a few pixels of the current GPU; raises what keeps it from compiling or
    running.
    """
    sizes = ((1, 1, 16, 2), (1, 1, 16, 1, 6), (1, 2, 2), (1, 2), (2, 2), (2,))
    x, x_dbl, dt_weight, dt_bias, A_log, D = (torch.zeros(size, device="cuda") for size in sizes)
    forward(x, x_dbl, dt_weight, dt_bias, A_log, D, False)
    torch.cuda.synchronize()
