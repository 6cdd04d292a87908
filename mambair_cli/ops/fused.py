"""Runs of layers of the networks' blocks in one pass over the memory, on a CPU and without
gradients.

PyTorch's operations, one after the other, read and write each plane of the image about fifty times
a block; these functions do the same with half of that. `takes` says where they can be used; the
modules remain the definition.

Tokens are (B,H,W,C) float32, contiguous. A `Linear` is the weight (M,C) and the bias (M) of a
pointwise product, a `Norm` the weight (C) and the bias (C) of a layer norm.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pixelwise import EPS
from .scan import resolve_backend

Linear = tuple[Tensor, Tensor | None]
Norm = tuple[Tensor, Tensor]
Array = NDArray[np.float32]


def takes(tokens: Tensor, backend: str) -> bool:
    """Whether these functions can compute a block of these tokens, beside a scan on this back end."""
    plain = tokens.device.type == "cpu" and tokens.dtype == torch.float32 and tokens.is_contiguous()
    # A mode, as that which counts operations, wants to see PyTorch's.
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if not plain or watched or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return tokens.numel() > 0 and resolve_backend(backend, "cpu").name == "numba"


def _flat(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy().reshape(-1)


def _up(count: int) -> int:
    from .simd import LANES

    return -(-count // LANES) * LANES


def _padded(vector: Tensor) -> Array:
    return np.pad(_flat(vector), (0, _up(len(vector)) - len(vector)))


def _packed(linear: Linear) -> tuple[Array, ...]:
    from .simd import pack

    weight, bias = linear
    return pack(weight.detach().flatten(1).numpy(), None if bias is None else bias.detach().numpy())


def _taps(weight: Tensor, bias: Tensor | None) -> tuple[Array, Array]:
    """A 3x3 depthwise kernel (C,1,3,3) and its bias, a padded line for each tap."""
    C = len(weight)
    taps = np.pad(weight.detach().reshape(C, 9).numpy().T, ((0, 0), (0, _up(C) - C)))
    return taps.reshape(-1), np.zeros(_up(C), np.float32) if bias is None else _padded(bias)


def _plane(*shape: int) -> Tensor:
    """Memory for a plane; kernels may read, but not use, a vector behind its end."""
    count = int(np.prod(shape))
    return torch.empty(count + 16)[:count].view(shape)


def _read_behind(plane: Tensor) -> Array:
    """A plane of `_plane` with the vector behind its end."""
    count = plane.numel()
    return plane.as_strided((count + 16,), (1,), plane.storage_offset()).numpy()


@dataclass
class Scanned:
    """The planes of rows and of columns that a scan wrote, (P,B,H,pitch,D); their sum is y."""

    planes: Tensor

    def arguments(self) -> tuple[Array, int]:
        """The planes for the kernels, and where the second begins."""
        return self.planes.numpy().reshape(-1), self.planes[0].numel()


def scan(
    tokens: Tensor,
    norm: Norm,
    into: Linear,
    conv: Linear,
    x_proj: Tensor,
    parameters: tuple[Tensor, ...],
) -> Scanned:
    """Layer norm, product, depthwise 3x3 convolution, SiLU and selective scan in four directions.

    Args:
        tokens: (B,H,W,C).
        norm: of C channels.
        into: from C to D channels.
        conv: kernel (D,1,3,3) and bias.
        x_proj: (4,R+2N,D).
        parameters: dt_weight, dt_bias, A_log and D of `ss2d_scan`.
    """
    from . import fused_numba, scan_numba

    B, H, W, C = tokens.shape
    K, _, D = x_proj.shape
    R, N = parameters[0].shape[2], parameters[2].shape[1]
    M, Np = scan_numba.record_length(R, N), N + N % 2
    into_records = torch.zeros(K, M, D)
    into_records[:, : R + N], into_records[:, R + Np : R + Np + N] = (
        x_proj[:, : R + N],
        x_proj[:, R + N :],
    )
    # Rows a multiple of 1 KiB apart would share few places in the caches, which walks along columns
    # need.
    pitch = W + 1 if W * D % 256 == 0 else W
    x, out, records = (
        _plane(B, H, pitch, D),
        torch.empty(B, H, pitch, D),
        torch.empty(K, B, H, pitch, M),
    )
    enter, project = fused_numba._enter(), fused_numba._project()
    given = _flat(tokens), *map(_padded, norm), *_packed(into), _read_behind(x)
    fused_numba.run_rows(lambda i, j: enter(*given, EPS, W, pitch, C, D, i, j), B * H)
    arrays = (
        _read_behind(x),
        *_taps(*conv),
        *_packed((into_records.flatten(0, 1), None)),
        _flat(out),
        _flat(records),
    )
    apart = B * H * pitch * M
    fused_numba.run_rows(lambda i, j: project(*arrays, H, W, pitch, D, M, apart, i, j), B * H)
    return Scanned(scan_numba.forward_planes(out, records, torch.Size((B, H, W, D)), *parameters))


def _leave(
    part: int,
    tokens: Tensor,
    scanned: Scanned,
    D: int,
    gate: tuple[Norm, Linear, Norm] | None,
    factors: tuple[Array, Array] | None,
    out: Linear | None,
    skip: Tensor | None,
    then: tuple[Norm, Linear | None] | None,
) -> tuple[Tensor, Tensor, Array]:
    from . import fused_numba

    B, H, W, C = tokens.shape
    none = np.zeros(_up(max(C, D)), np.float32)
    nones: tuple[Array, ...] = none, none
    norm1, gates, norm = nones, nones, nones
    if gate is not None:
        norm1, gates, norm = (
            tuple(map(_padded, gate[0])),
            _packed(gate[1]),
            tuple(map(_padded, gate[2])),
        )
    S, norm2, linear = 0, nones, nones
    if then is not None:
        norm2 = tuple(map(_padded, then[0]))
        S = -1 if then[1] is None else len(then[1][0])
        linear = nones if then[1] is None else _packed(then[1])
    y, second = scanned.arguments()
    pitch = scanned.planes.shape[3]
    u = torch.empty_like(tokens) if out is not None else torch.empty(0)
    hidden = _plane(B, H, W, C if S < 0 else S)
    sums = np.zeros(B * H * _up(D) if part == fused_numba.UNTIL_GATE else 0, np.float32)
    run = fused_numba._leave()
    arrays = (
        _flat(tokens), *norm1, *gates, y, *norm, *(factors or nones), *(nones if out is None else _packed(out)),
        none if skip is None else _padded(skip), _flat(u), *norm2, *linear, _flat(hidden), sums,
    )  # fmt: skip
    fused_numba.run_rows(
        lambda i, j: run(*arrays, EPS, H, W, pitch, C, D, S, second, part, i, j), B * H
    )
    return u, hidden, sums


def leave(
    tokens: Tensor,
    scanned: Scanned,
    gate: tuple[Norm, Linear, Norm],
    out: Linear,
    skip: Tensor,
    then: tuple[Norm, Linear | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Product of the gated, normalised y + tokens * skip, called u; then what follows on it.

    Args:
        tokens: (B,H,W,C).
        scanned: y, of D channels.
        gate: the norm and the product of the tokens that give the gate, whose SiLU y's norm, the
            third, is times.
        out: from D to C channels.
        skip: (C).
        then: a norm of u, and a product of that to S channels or None.

    Returns:
        u (B,H,W,C) and what follows, (B,H,W,S), (B,H,W,C) or empty.
    """
    D = out[0].shape[1]
    return _leave(0, tokens, scanned, D, gate, None, out, skip, then)[:2]


def gate_means(tokens: Tensor, scanned: Scanned, gate: tuple[Norm, Linear, Norm]) -> Tensor:
    """The first part of `leave`: the gated, normalised y in the first plane of `scanned`; its means
    (B,D).
    """
    B, H, W, _ = tokens.shape
    D = len(gate[1][0])
    sums = _leave(1, tokens, scanned, D, gate, None, None, None, None)[2]
    return _means(sums, B, H * W, D)


def leave_gated(
    tokens: Tensor,
    scanned: Scanned,
    factors: Tensor,
    offsets: Tensor,
    out: Linear,
    skip: Tensor,
    then: tuple[Norm, Linear | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The rest of `leave` after `gate_means`, with y * factors + offsets, (B,D) each, for y."""
    D = out[0].shape[1]
    pads = tuple(
        np.pad(v.detach().numpy(), ((0, 0), (0, _up(D) - D))).reshape(-1)
        for v in (factors, offsets)
    )
    return _leave(2, tokens, scanned, D, None, (pads[0], pads[1]), out, skip, then)[:2]


def _means(sums: Array, B: int, pixels: int, C: int) -> Tensor:
    """(B,C) of the kernels' sums of rows."""
    rows = sums.reshape(B, -1, _up(C))[:, :, :C]
    return torch.from_numpy((rows.sum(1, dtype=np.float64) / pixels).astype(np.float32))


def feed(
    hidden: Tensor,
    conv: Linear | None,
    activation: str,
    out: Linear,
    u: Tensor | None = None,
    skip: Any = None,
) -> Tensor:
    """Depthwise 3x3 convolution, if any, activation and product; + u * skip, if any.

    Args:
        hidden: (B,H,W,S), from one of these functions.
        conv: kernel (S,1,3,3) and bias.
        activation: `gelu`, or `gate`: the GELU of the first half of the channels times the second.
        out: from S, or S/2, to C channels.
        u: (B,H,W,C).
        skip: (C).

    Returns:
        (B,H,W,C).
    """
    from . import fused_numba

    B, H, W, S = hidden.shape
    C = len(out[0])
    kind = {"gelu": fused_numba.GELU, "gate": fused_numba.GELU_GATE}[activation]
    result, none = _plane(B, H, W, C), np.zeros(_up(max(C, S)), np.float32)
    taps = (none, none) if conv is None else _taps(*conv)
    residual = (none, none) if u is None else (_flat(u), _padded(skip))
    arrays = _read_behind(hidden), *taps, *_packed(out), *residual, _flat(result)
    run = fused_numba._feed()
    flags = conv is not None, kind, u is not None
    fused_numba.run_rows(lambda i, j: run(*arrays, H, W, S, C, *flags, i, j), B * H)
    return result


def convolve(tokens: Tensor, conv: Linear, dilation: int) -> tuple[Tensor, Tensor]:
    """3x3 depthwise convolution (B,H,W,C), of one of these functions' results, and its means (B,C)."""
    from . import fused_numba

    B, H, W, C = tokens.shape
    result, sums = _plane(B, H, W, C), np.zeros(B * H * _up(C), np.float32)
    arrays = _read_behind(tokens), *_taps(*conv), _flat(result), sums
    run = fused_numba._convolve()
    fused_numba.run_rows(lambda i, j: run(*arrays, H, W, C, dilation, i, j), B * H)
    return result, _means(sums, B, H * W, C)


def blend(v: Tensor, factors: Tensor, u: Tensor, skip: Tensor) -> Tensor:
    """The sum v * factors (B,C) + u * skip (C), in the memory of u."""
    from . import fused_numba

    B, H, W, C = u.shape
    pads = np.pad(factors.detach().reshape(B, C).numpy(), ((0, 0), (0, _up(C) - C))).reshape(-1)
    arrays, run = (_flat(v), pads, _flat(u), _padded(skip), _flat(u)), fused_numba._blend()
    fused_numba.run_rows(lambda i, j: run(*arrays, H, W, C, i, j), B * H)
    return u
