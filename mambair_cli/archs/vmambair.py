"""VmambaIR: Visual State Space Model for Image Restoration (arXiv:2403.11423), section 3.

Omni Selective Scan: over the pixels in four directions and over the channels in two. Official
tensor names.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import fused, ss2d_scan
from .complexity import Macs, layer_macs, scan_macs
from .layers import Block, LayerNorm, Pointwise, linear, to_image, to_tokens
from .ss2d import SpatialScan, reset_scan
from .unet import UNet, UNetConfig, channels, read_shape

# of the channel scan's step sizes, where it has an inner width
CHANNEL_RANK = 6


@dataclass(frozen=True)
class VmambaIRConfig(UNetConfig):
    """The shape of a VmambaIR net; the published deraining net as it stands.

    `channel_inner` is the inner width of the channel scan, 1 for the form without convolutions
    around it. `ffn_expand` is the width of the feed-forward network, in widths of the block.
    """

    blocks: tuple[int, int, int, int] = field(default=(3, 5, 7, 9), metadata={"limits": (1, 100)})
    refinement: int = field(default=2, metadata={"limits": (0, 100)})
    expand: float = field(default=1.0, metadata={"limits": (0.25, 8)})
    ffn_expand: float = field(default=2.66, metadata={"limits": (0.25, 16)})
    channel_inner: Literal[1, 2, 4] = 4

    @property
    def adds_channels(self) -> bool:
        """Whether the result c of the channel scan is added to y, as in the first deraining net;
        else y*c + y.
        """
        return self.channel_inner == 4 and self.upscale == 1

    def hidden(self, width: int) -> int:
        """Inner width of the feed-forward network in a block of this width."""
        return channels(self.ffn_expand, width)

    def block_floats(self, width: int, backend: str) -> int:
        """Estimate of the floats that a block of this width holds for each of its pixels at its
        peak.
        """
        return max(super().block_floats(width, backend), 5 * self.hidden(width))


def _norm(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(body=LayerNorm(channels)))


class OmniSelectiveScan(SpatialScan):
    """OSS, the Omni Selective Scan (section 3.3).

    Args:
        C: channels in and out.
        config: of the net.
    """

    def __init__(self, C: int, config: VmambaIRConfig):
        D, N, width = config.inner(C), config.d_state, config.channel_inner
        super().__init__(C, D, N)
        if width not in (1, 2, 4):
            raise ValueError(f"channel_inner must be 1, 2 or 4, not {width}")
        rank = CHANNEL_RANK if width > 1 else math.ceil(C / 16)
        self.adds_channels = config.adds_channels
        self.xc_proj_weight = nn.Parameter(torch.empty(2, rank + 2 * N, width))
        self.dtc_projs_weight = nn.Parameter(torch.empty(2, width, rank))
        self.dtc_projs_bias = nn.Parameter(torch.empty(2, width))
        self.Ac_logs = nn.Parameter(torch.empty(2 * width, N))
        self.Dsc = nn.Parameter(torch.ones(2 * width))
        if width > 1:
            self.conv_cin = nn.Conv2d(1, width, 1)
            self.conv_cout = nn.Conv2d(width, 1, 1)
        self.channel_norm = _norm(D)
        self.in_conv = Pointwise(C, 2 * D)
        self.conv2d = nn.Conv2d(D, D, 3, padding=1, groups=D)
        self.out_norm = _norm(D)
        self.out_conv = Pointwise(D, C)
        self.reset_scan()
        reset_scan(self.xc_proj_weight, self.dtc_projs_weight, self.dtc_projs_bias, self.Ac_logs)

    def channels(self, means: Tensor) -> Tensor:
        """The channel scan, forth and back over the means of all channels: (B,D) -> (B,1,1,D)."""
        # (B,1,L,1), a sequence of length L = D
        x = means[:, None, :, None]
        if self.Dsc.shape[0] > 2:
            # (B,1,L,inner width)
            x = F.linear(x, self.conv_cin.weight.flatten(1), self.conv_cin.bias)
        A_logs, Dsc = self.Ac_logs.chunk(2), self.Dsc.chunk(2)
        scans = []
        for k, sequence in enumerate((x, x.flip(2))):
            x_dbl = F.linear(sequence, self.xc_proj_weight[k])[:, :, :, None]
            weights = (
                self.dtc_projs_weight[k, None],
                self.dtc_projs_bias[k, None],
                A_logs[k],
                Dsc[k],
            )
            scans.append(ss2d_scan(sequence, x_dbl, *weights, backend=self.backend))
        c = scans[0] + scans[1].flip(2)
        if self.Dsc.shape[0] > 2:
            c = F.linear(c, self.conv_cout.weight.flatten(1), self.conv_cout.bias)
        return self.channel_norm(c.transpose(2, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        y = self.scan(self.in_conv.half_of(tokens, 0))
        y = self.out_norm[0](y, self.in_conv.half_of(tokens, 1))
        c = self.channels(y.mean((1, 2)))
        y = y + c if self.adds_channels else torch.addcmul(y, y, c)
        return to_tokens(self.out_conv(to_image(y)))

    def macs(self, pixels: int) -> Macs:
        """The multiply-adds on so many pixels."""
        # D, of the sequence of channels
        length = self.dt_projs_bias.shape[1]
        spatial = (self.in_conv, self.conv2d, self.out_norm[0], self.out_conv)
        found = layer_macs(spatial, pixels) + self.scan_macs(pixels)
        if self.Dsc.shape[0] > 2:
            found += layer_macs((self.conv_cin, self.conv_cout), length)
        found += scan_macs(self.xc_proj_weight, self.dtc_projs_weight, self.Ac_logs, length)
        means = Macs(0, pixels * length)
        return found + layer_macs(self.channel_norm, 1) + means


class EFFN(nn.Module):
    """Efficient feed-forward network: expand, depthwise convolution, GELU gate, project (section
    3.4).
    """

    def __init__(self, C: int, hidden: int):
        super().__init__()
        self.project_in = Pointwise(C, 2 * hidden, bias=False)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = Pointwise(hidden, C, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        # One half of the channels after the other: both come out contiguous, which makes the gate
        # twice as fast.
        gate, value = (
            F.conv2d(
                to_image(self.project_in.half_of(tokens, i)), kernel, padding=1, groups=len(kernel)
            )
            for i, kernel in enumerate(self.dwconv.weight.chunk(2))
        )
        return to_tokens(self.project_out(F.gelu(gate) * value))

    def macs(self, pixels: int) -> Macs:
        """The multiply-adds on so many pixels."""
        return layer_macs(self.modules(), pixels)


class OSSBlock(Block):
    """Omni Selective Scan and feed-forward network, each on the normalised input, added to it."""

    def __init__(self, C: int, config: VmambaIRConfig):
        super().__init__()
        self.norm1 = _norm(C)
        self.attn = OmniSelectiveScan(C, config)
        self.norm2 = _norm(C)
        self.ffn = EFFN(C, config.hidden(C))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        if not self.training and fused.takes(tokens, self.attn.backend):
            return self._fused(tokens)
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.ffn(self.norm2(tokens))

    def start_as_identity(self) -> None:
        """Begin by giving the tokens on as they are, as `mambair.VSSBlock` does."""
        for layer in (self.attn.out_conv, self.ffn.project_out):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def _fused(self, tokens: Tensor) -> Tensor:
        """The same by the kernels of `ops.fused`."""
        attn, ffn = self.attn, self.ffn
        norm1, norm2, norm = (linear(layer[0]) for layer in (self.norm1, self.norm2, attn.out_norm))
        into_x, into_z = attn.in_conv.weight.chunk(2)
        bias_x, bias_z = cast(Tensor, attn.in_conv.bias).chunk(2)
        scanned = fused.scan(
            tokens,
            norm1,
            (into_x, bias_x),
            linear(attn.conv2d),
            attn.x_proj_weight,
            attn.scan_parameters(),
        )
        c = attn.channels(
            fused.gate_means(tokens, scanned, (norm1, (into_z, bias_z), norm))
        ).flatten(1)
        factors, offsets = (
            (torch.ones_like(c), c) if attn.adds_channels else (1 + c, torch.zeros_like(c))
        )
        ones = tokens.new_ones(tokens.shape[-1])
        then = norm2, linear(ffn.project_in)
        u, hidden = fused.leave_gated(
            tokens, scanned, factors, offsets, linear(attn.out_conv), ones, then
        )
        return fused.feed(hidden, linear(ffn.dwconv), "gate", linear(ffn.project_out), u, ones)


class VmambaIR(UNet):
    """A U-Net of Omni Selective Scan blocks."""

    def __init__(self, config: VmambaIRConfig):
        super().__init__(config, lambda C: OSSBlock(C, config))


def detect(state: Mapping[str, Tensor]) -> VmambaIRConfig | None:
    """The configuration of a VmambaIR state dict, by its tensors; None for another network's."""
    if not {"patch_embed.proj.weight", "encoder_level1.0.attn.Ac_logs"} <= state.keys():
        return None
    shape = read_shape(state, "attn.A_logs")
    shape["ffn_expand"] = state["latent.0.ffn.project_out.weight"].shape[1] / (8 * shape["dim"])
    shape["channel_inner"] = state["latent.0.attn.Dsc"].shape[0] // 2
    return VmambaIRConfig(**shape)
