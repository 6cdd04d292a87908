"""SS2D, the 2-D selective-scan module (MambaIR, section 3.5; VMamba)."""

import math

import torch
from torch import Tensor, nn

from ..ops import silu, ss2d_scan
from .layers import LayerNorm, pointwise, to_image, to_tokens

DIRECTIONS = 4


class SS2D(nn.Module):
    """Gated selective scan of an image in four directions. Tensor names are the checkpoint format.

    Args:
        width: C, channels in and out.
        inner: D, channels of the scan.
        d_state: N, states a channel.
    """

    def __init__(self, width: int, inner: int, d_state: int):
        super().__init__()
        K, self.rank = DIRECTIONS, math.ceil(width / 16)
        self.backend = "auto"
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(K, self.rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(K, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(K, inner))
        self.A_logs = nn.Parameter(torch.empty(K * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(K * inner))
        self.out_norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.reset_scan()

    def reset_scan(self) -> None:
        """Initialise the scan as Mamba does: A = -1..-N, steps log-uniform in [1e-3, 1e-1]."""
        inner, d_state = self.dt_projs_bias.shape[1], self.A_logs.shape[1]
        with torch.no_grad():
            for weight, fan_in in ((self.x_proj_weight, inner), (self.dt_projs_weight, self.rank)):
                weight.uniform_(-(fan_in**-0.5), fan_in**-0.5)
            steps = torch.empty_like(self.dt_projs_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_()
            self.dt_projs_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus gives `steps`
            self.A_logs.copy_(torch.log(torch.arange(1.0, d_state + 1)).expand_as(self.A_logs))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        # Two products instead of one that is split: both halves come out contiguous.
        into_x, into_z = self.in_proj.weight.chunk(2)
        x = to_tokens(self.conv2d(to_image(pointwise(tokens, into_x))))  # (B,H,W,D)
        x = silu(x, backend=self.backend)
        x_dbl = pointwise(x, self.x_proj_weight.flatten(0, 1))
        y = ss2d_scan(
            x,
            x_dbl.unflatten(-1, (DIRECTIONS, -1)),  # (B,H,W,K,R+2N)
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.A_logs,
            self.Ds,
            backend=self.backend,
        )
        return pointwise(self.out_norm(y, pointwise(tokens, into_z)), self.out_proj.weight)


def use_backend(network: nn.Module, name: str) -> None:
    """Let all scans of a network, and the kernels around them, run on one back end."""
    for module in network.modules():
        if isinstance(module, (SS2D, LayerNorm)):
            module.backend = name
