"""MambaIR: A Simple Baseline for Image Restoration with State-Space Model (arXiv:2402.15648),
section 3.

All published forms, with the official tensor names. Attribute names are the checkpoint format.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..ops import fused
from .frame import Frame, ResidualConv, Upsampler, read_frame, residual_conv, tail_floats
from .layers import (
    Block,
    ChannelAttention,
    DilatedDepthwise,
    DropPath,
    LayerNorm,
    Padding,
    Pointwise,
    linear,
    to_image,
    to_tokens,
)
from .ss2d import SS2D, scan_floats

ConvBlock = Literal["classic", "light_a", "light_b", "light_c", "attention", "none", "mlp"]


@dataclass(frozen=True)
class MambaIRConfig:
    """The shape of a MambaIR net.

    `conv_block` is the convolutional half of a block: `classic`, or the light form of the paper's
    Table 3 (`light_a`), of the first release (`light_b`) or of the released weights (`light_c`).
    The ablations of Table 1 have its channel attention alone (`attention`), no such half (`none`),
    or an MLP in its place (`mlp`). `limits` of a number's metadata are what a recipe may ask for.
    """

    embed_dim: int = field(default=180, metadata={"limits": (6, 1024)})
    depths: tuple[int, ...] = field(default=(6, 6, 6, 6, 6, 6), metadata={"limits": (1, 100)})
    d_state: int = field(default=16, metadata={"limits": (1, 256)})
    expand: float = field(default=2.0, metadata={"limits": (0.25, 8)})
    conv_block: ConvBlock = "classic"
    upsampler: Upsampler = "pixelshuffle"
    upscale: int = field(default=2, metadata={"limits": (1, 8)})
    in_chans: int = field(default=3, metadata={"limits": (1, 3)})
    resi_connection: ResidualConv = "1conv"
    drop_path_rate: float = field(default=0.0, metadata={"limits": (0, 0.9)})
    # sides that the net takes without padding
    multiple: ClassVar[int] = 1
    padding: ClassVar[Padding] = "reflect"

    @property
    def inner(self) -> int:
        """D, channels of the scan."""
        return int(self.expand * self.embed_dim + 1e-6)

    def floats_per_pixel(self, backend: str) -> int:
        """Estimate of the floats that the net holds for each pixel of its input at its peak."""
        C, tail = self.embed_dim, tail_floats(self.upsampler, self.upscale)
        return 6 * C + max(scan_floats(C, self.inner, self.d_state, backend), 4 * C, tail)


def _conv_block(form: ConvBlock, C: int) -> nn.Module:
    attention = ChannelAttention(C, max(1, C // 30))
    if form == "light_a":
        layers = [nn.Conv2d(C, C, 3, padding=1, groups=C), attention]
    elif form == "light_c":
        half = C // 2
        layers = [
            Pointwise(C, half),
            nn.Conv2d(half, half, 3, padding=1, groups=half),
            nn.GELU(),
            Pointwise(half, C),
            DilatedDepthwise(C),
            attention,
        ]
    elif form == "attention":
        layers = [attention]
    elif form == "mlp":
        layers = [Pointwise(C, 2 * C), nn.GELU(), Pointwise(2 * C, C)]
    else:
        squeezed = C // {"classic": 3, "light_b": 6}[form]
        layers = [
            nn.Conv2d(C, squeezed, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(squeezed, C, 3, padding=1),
            attention,
        ]
    return nn.Sequential(OrderedDict(cab=nn.Sequential(*layers)))


class VSSBlock(Block):
    """Residual State-Space Block, RSSB (section 3.3, equations 4 and 5).

    Args:
        C: channels.
        inner: D, channels of the scan.
        d_state: N, states a channel.
        conv_block: the form of the convolutional half.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        C: int,
        inner: int,
        d_state: int,
        conv_block: ConvBlock = "classic",
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(C))
        self.conv_block = conv_block
        self.has_conv_blk = conv_block != "none"
        if self.has_conv_blk:
            self.skip_scale2 = nn.Parameter(torch.ones(C))
        self.ln_1 = LayerNorm(C)
        self.self_attention = SS2D(C, inner, d_state)
        self.drop_path = DropPath(drop_path)
        if self.has_conv_blk:
            self.conv_blk = _conv_block(conv_block, C)
            self.ln_2 = LayerNorm(C)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        if not self.training and fused.takes(tokens, self.self_attention.backend):
            return self._fused(tokens)
        u = torch.addcmul(
            self.drop_path(self.self_attention(self.ln_1(tokens))), tokens, self.skip_scale
        )
        if not self.has_conv_blk:
            return u
        branch = to_tokens(self.conv_blk(to_image(self.ln_2(u))))
        return torch.addcmul(branch, u, self.skip_scale2)

    def _fused(self, tokens: Tensor) -> Tensor:
        """The same by the kernels of `ops.fused`."""
        ss2d, (norm1, norm) = (
            self.self_attention,
            (linear(m) for m in (self.ln_1, self.self_attention.out_norm)),
        )
        into_x, into_z = ss2d.in_proj.weight.chunk(2)
        scanned = fused.scan(
            tokens,
            norm1,
            (into_x, None),
            linear(ss2d.conv2d),
            ss2d.x_proj_weight,
            ss2d.scan_parameters(),
        )
        rest = scanned, (norm1, (into_z, None), norm), linear(ss2d.out_proj), self.skip_scale
        if not self.has_conv_blk:
            return fused.leave(tokens, *rest)[0]
        layers = list(self.conv_blk.get_submodule("cab").children())
        first = linear(layers[0]) if isinstance(layers[0], Pointwise) else None
        u, v = fused.leave(tokens, *rest, (linear(self.ln_2), first))
        if self.conv_block == "mlp":
            return fused.feed(v, None, "gelu", linear(layers[2]), u, self.skip_scale2)
        if self.conv_block == "light_c":
            v = fused.feed(v, linear(layers[1]), "gelu", linear(layers[3]))
            v, means = fused.convolve(v, linear(layers[4]), dilation=2)
        elif self.conv_block == "light_a":
            v, means = fused.convolve(v, linear(layers[0]), dilation=1)
        else:
            v = to_tokens(nn.Sequential(*layers[:-1])(to_image(v)))
            means = v.mean((1, 2))
        attention = cast(ChannelAttention, layers[-1])
        return fused.blend(v, attention.of_means(means), u, self.skip_scale2)

    def start_as_identity(self) -> None:
        """Begin by giving the tokens on as they are: for a fresh block in a net that was trained
        without it.
        """
        layers: list[nn.Module] = [self.self_attention.out_proj]
        if self.has_conv_blk:
            convolutions = self.conv_blk.get_submodule("cab").children()
            layers += [layer for layer in convolutions if isinstance(layer, nn.Conv2d)][-1:]
        for parameter in (p for layer in layers for p in layer.parameters()):
            nn.init.zeros_(parameter)


class ResidualGroup(nn.Module):
    """Residual State-Space Group, RSSG: blocks, a convolution, the group's input (section 3.2)."""

    def __init__(self, config: MambaIRConfig, drop_paths: list[float]):
        super().__init__()
        shape = config.embed_dim, config.inner, config.d_state, config.conv_block
        blocks = nn.Sequential(*(VSSBlock(*shape, rate) for rate in drop_paths))
        self.residual_group = nn.Sequential(OrderedDict(blocks=blocks))
        self.conv = residual_conv(config.resi_connection, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        return to_tokens(self.conv(to_image(self.residual_group(tokens)))) + tokens


class MambaIR(Frame):
    """The network: the frame around groups of state-space blocks. Raises as `Frame`."""

    def __init__(self, config: MambaIRConfig):
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(
            list(config.depths)
        )
        super().__init__(config, lambda g: ResidualGroup(config, rates[g].tolist()))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)


def detect(state: Mapping[str, Tensor]) -> MambaIRConfig | None:
    """The configuration of a MambaIR state dict, read off its tensors; None for another network's.

    Raises ValueError where the tensors are of this family but of no published form.
    """
    block = "layers.0.residual_group.blocks.0"
    A_logs = state.get(f"{block}.self_attention.A_logs")
    if A_logs is None or "conv_first.weight" not in state:
        return None
    frame = read_frame(state, ".skip_scale")
    C = frame["embed_dim"]
    return MambaIRConfig(
        **frame,
        d_state=A_logs.shape[1],
        expand=A_logs.shape[0] / 4 / C,
        conv_block=_conv_block_of(state, f"{block}.conv_blk", C),
    )


def _conv_block_of(state: Mapping[str, Tensor], name: str, C: int) -> ConvBlock:
    """The form of the convolutional half that has this name in a state dict. Raises ValueError
    where it has none.
    """
    if not any(key.startswith(f"{name}.") for key in state):
        return "none"
    if f"{name}.cab.0.attention.1.weight" in state:
        return "attention"
    forms: dict[tuple[int, ...], ConvBlock] = {
        (C // 3, C, 3, 3): "classic",
        (C // 6, C, 3, 3): "light_b",
        (C // 2, C, 1, 1): "light_c",
        (C, 1, 3, 3): "light_a",
        (2 * C, C, 1, 1): "mlp",
    }
    first = state.get(f"{name}.cab.0.weight")
    if first is None or tuple(first.shape) not in forms:
        found = None if first is None else tuple(first.shape)
        raise ValueError(f"its convolution block starts with a weight of shape {found}")
    return forms[tuple(first.shape)]
