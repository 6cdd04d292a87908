"""Modules around the selective scan, and SS2D, the 2-D one (MambaIR, section 3.5; VMamba)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import silu, ss2d_scan
from .complexity import Macs, layer_macs, scan_macs
from .layers import LayerNorm, pointwise, to_image, to_tokens

DIRECTIONS = 4


def reset_scan(x_proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_log: Tensor) -> None:
    """Initialise a scan as Mamba does: A = -1..-N, steps log-uniform in [1e-3, 1e-1].

    Args:
        x_proj: (K,R+2N,D).
        dt_weight: (K,D,R).
        dt_bias: (K,D).
        A_log: (K*D,N).
    """
    # Without values there is nothing to fill, and `arange` would import 900 modules first.
    if A_log.is_meta:
        return
    with torch.no_grad():
        for weight in (x_proj, dt_weight):
            weight.uniform_(-(weight.shape[2] ** -0.5), weight.shape[2] ** -0.5)
        steps = torch.empty_like(dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_()
        # softplus gives `steps`
        dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        A_log.copy_(torch.log(torch.arange(1.0, A_log.shape[1] + 1)).expand_as(A_log))


def scan_floats(width: int, inner: int, d_state: int, backend: str) -> int:
    """How many floats a scanning module of this shape holds for each pixel at its peak."""
    D, N, M = inner, d_state, -(-width // 16) + 2 * d_state
    # x, z, two planes, x_dbl
    floats = 4 * D + 4 * M
    # sequences of x, dt, inputs, B, C; buffers of states
    if backend in ("reference", "mamba-ssm"):
        # twice, as measured: they are changed on the way
        floats += 2 * 4 * (5 * D + 4 * N) + 4 * 4 * N * D // 32
    return floats


class SelectiveScan(nn.Module):
    """The parameters of a selective scan in K directions. Their names are the checkpoint format.

    Args:
        directions: K, 4 or 1 (row-major).
        inner: D, channels of the scan.
        d_state: N, states a channel.
        rank: R, of the step sizes.
    """

    def __init__(self, directions: int, inner: int, d_state: int, rank: int):
        super().__init__()
        K = directions
        self.backend = "auto"
        self.x_proj_weight = nn.Parameter(torch.empty(K, rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(K, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(K, inner))
        self.A_logs = nn.Parameter(torch.empty(K * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(K * inner))

    def reset_scan(self) -> None:
        """Initialise the scan as Mamba does."""
        reset_scan(self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs)

    def scan_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dt_weight, dt_bias, A_log and D of `ss2d_scan`."""
        return self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds

    def selective_scan(self, x: Tensor, x_dbl: Tensor) -> Tensor:
        """`ops.ss2d_scan` of x (B,H,W,D) and x_dbl (B,H,W,K,R+2N) with these parameters."""
        return ss2d_scan(
            x,
            x_dbl,
            *self.scan_parameters(),
            backend=self.backend,
        )

    def scan_macs(self, pixels: int) -> Macs:
        """The multiply-adds of the scan over so many pixels."""
        return scan_macs(self.x_proj_weight, self.dt_projs_weight, self.A_logs, pixels)


class SpatialScan(SelectiveScan):
    """What the modules share that scan an image: depthwise convolution, SiLU, scan in four
    directions.

    A module of this kind adds `conv2d`, 3x3 depthwise, and what stands before and after it.

    Args:
        width: C, channels in and out.
        inner: D, channels of the scan.
        d_state: N, states a channel.
    """

    conv2d: nn.Conv2d

    def __init__(self, width: int, inner: int, d_state: int):
        super().__init__(DIRECTIONS, inner, d_state, math.ceil(width / 16))

    def scan(self, x: Tensor) -> Tensor:
        """(B,H,W,D) -> (B,H,W,D)."""
        x = silu(to_tokens(self.conv2d(to_image(x))), backend=self.backend)
        x_dbl = pointwise(x, self.x_proj_weight.flatten(0, 1))
        # (B,H,W,K,R+2N)
        return self.selective_scan(x, x_dbl.unflatten(-1, (DIRECTIONS, -1)))


class SS2D(SpatialScan):
    """Gated selective scan of an image in four directions. Arguments as `SpatialScan`."""

    def __init__(self, width: int, inner: int, d_state: int):
        super().__init__(width, inner, d_state)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.out_norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset_scan()

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        # Two products instead of one that is split: both halves come out contiguous.
        into_x, into_z = self.in_proj.weight.chunk(2)
        y = self.scan(pointwise(tokens, into_x))
        return pointwise(self.out_norm(y, pointwise(tokens, into_z)), self.out_proj.weight)

    def macs(self, pixels: int) -> Macs:
        """The multiply-adds on so many pixels."""
        return layer_macs(self.modules(), pixels) + self.scan_macs(pixels)


def use_backend(network: nn.Module, name: str) -> None:
    """Let all scans of a network, and the kernels around them, run on one back end."""
    modules: list[Any] = list(network.modules())
    for module in modules:
        if hasattr(module, "backend"):
            module.backend = name
