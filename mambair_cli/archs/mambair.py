"""MambaIR: A Simple Baseline for Image Restoration with State-Space Model (arXiv:2402.15648), section 3.

All published forms, with the official tensor names. Attribute names are the checkpoint format.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..ops import fused
from .layers import (
    Block,
    ChannelAttention,
    DilatedDepthwise,
    DropPath,
    FullPrecisionConv,
    LayerNorm,
    Pointwise,
    linear,
    pixel_shuffle,
    scale_of_pixel_shuffle,
    to_image,
    to_tokens,
)
from .ss2d import SS2D, scan_floats

ConvBlock = Literal["classic", "light_a", "light_b", "light_c", "attention", "none", "mlp"]
Upsampler = Literal["", "pixelshuffle", "pixelshuffledirect"]
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


@dataclass(frozen=True)
class MambaIRConfig:
    """The shape of a MambaIR net.

    `conv_block` is the convolutional half of a block: `classic`, or the light form of the paper's Table 3
    (`light_a`), of the first release (`light_b`) or of the released weights (`light_c`). The ablations of Table 1
    have its channel attention alone (`attention`), no such half (`none`), or an MLP in its place (`mlp`).
    """

    embed_dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    d_state: int = 16
    expand: float = 2.0
    conv_block: ConvBlock = "classic"
    upsampler: Upsampler = "pixelshuffle"
    upscale: int = 2
    in_chans: int = 3
    resi_connection: Literal["1conv", "3conv"] = "1conv"
    drop_path_rate: float = 0.0
    multiple: ClassVar[int] = 1  # sides that the net takes without padding

    @property
    def inner(self) -> int:
        """D, channels of the scan."""
        return int(self.expand * self.embed_dim + 1e-6)

    def floats_per_pixel(self, backend: str) -> int:
        """Estimate of the floats that the net holds for each pixel of its input at its peak."""
        C, s = self.embed_dim, self.upscale
        tail = {"pixelshuffle": 2 * 64 * s**2, "pixelshuffledirect": 9 * s**2, "": 9}[self.upsampler]
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
        layers = [nn.Conv2d(C, squeezed, 3, padding=1), nn.GELU(), nn.Conv2d(squeezed, C, 3, padding=1), attention]
    return nn.Sequential(OrderedDict(cab=nn.Sequential(*layers)))


def _residual_conv(form: str, C: int) -> nn.Module:
    if form == "1conv":
        return nn.Conv2d(C, C, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(C, C // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(C // 4, C // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(C // 4, C, 3, padding=1),
    )


class VSSBlock(Block):
    """Residual State-Space Block, RSSB (section 3.3, equations 4 and 5).

    Args:
        C: channels.
        inner: D, channels of the scan.
        d_state: N, states a channel.
        conv_block: the form of the convolutional half.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, C: int, inner: int, d_state: int, conv_block: ConvBlock = "classic", drop_path: float = 0.0):
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
        u = torch.addcmul(self.drop_path(self.self_attention(self.ln_1(tokens))), tokens, self.skip_scale)
        if not self.has_conv_blk:
            return u
        branch = to_tokens(self.conv_blk(to_image(self.ln_2(u))))
        return torch.addcmul(branch, u, self.skip_scale2)

    def _fused(self, tokens: Tensor) -> Tensor:
        """The same by the kernels of `ops.fused`."""
        ss2d, (norm1, norm) = self.self_attention, (linear(m) for m in (self.ln_1, self.self_attention.out_norm))
        into_x, into_z = ss2d.in_proj.weight.chunk(2)
        scanned = fused.scan(
            tokens, norm1, (into_x, None), linear(ss2d.conv2d), ss2d.x_proj_weight, ss2d.scan_parameters()
        )
        rest = scanned, (norm1, (into_z, None), norm), linear(ss2d.out_proj), self.skip_scale
        if not self.has_conv_blk:
            return fused.leave(tokens, *rest)[0]
        layers: list[Any] = list(self.conv_blk.get_submodule("cab").children())
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
        return fused.blend(v, layers[-1].of_means(means), u, self.skip_scale2)

    def start_as_identity(self) -> None:
        """Begin by giving the tokens on as they are: for a fresh block in a net that was trained without it."""
        layers: list[nn.Module] = [self.self_attention.out_proj]
        if self.has_conv_blk:
            convolutions = self.conv_blk.get_submodule("cab").children()
            layers += [layer for layer in convolutions if isinstance(layer, nn.Conv2d)][-1:]
        for parameter in (p for layer in layers for p in layer.parameters()):
            nn.init.zeros_(parameter)


class ResidualGroup(nn.Module):
    """Residual State-Space Group, RSSG: blocks, a convolution, and the group's input (section 3.2)."""

    def __init__(self, config: MambaIRConfig, drop_paths: list[float]):
        super().__init__()
        shape = config.embed_dim, config.inner, config.d_state, config.conv_block
        blocks = nn.Sequential(*(VSSBlock(*shape, rate) for rate in drop_paths))
        self.residual_group = nn.Sequential(OrderedDict(blocks=blocks))
        self.conv = _residual_conv(config.resi_connection, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        return to_tokens(self.conv(to_image(self.residual_group(tokens)))) + tokens


def _upsampler(config: MambaIRConfig) -> nn.Sequential:
    if config.upsampler == "pixelshuffle":
        return pixel_shuffle(64, config.upscale)
    s = config.upscale
    last = FullPrecisionConv(config.embed_dim, config.in_chans * s * s, 3, padding=1)
    return nn.Sequential(last, nn.PixelShuffle(s))


class MambaIR(nn.Module):
    """The network: shallow features, groups of state-space blocks, reconstruction.

    Without upsampler the output is the input plus what the net adds (denoising, JPEG artefacts).

    Raises ValueError for a shape that no such net has.
    """

    mean: Tensor
    conv_before_upsample: nn.Sequential
    upsample: nn.Sequential
    conv_last: nn.Conv2d

    def __init__(self, config: MambaIRConfig):
        super().__init__()
        if not config.depths:
            raise ValueError("depths must count the blocks of one group at least, not ()")
        self.config = config
        C, channels = config.embed_dim, config.in_chans
        mean = torch.tensor(RGB_MEAN if channels == 3 else [0.0] * channels)
        self.register_buffer("mean", mean.view(1, channels, 1, 1), persistent=False)
        self.conv_first = FullPrecisionConv(channels, C, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=LayerNorm(C)))
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(list(config.depths))
        self.layers = nn.ModuleList(ResidualGroup(config, r.tolist()) for r in rates)
        self.norm = LayerNorm(C)
        self.conv_after_body = _residual_conv(config.resi_connection, C)
        if config.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(C, 64, 3, padding=1), nn.LeakyReLU(0.01))
            self.conv_last = FullPrecisionConv(64, channels, 3, padding=1)
        elif config.upsampler == "":
            self.conv_last = FullPrecisionConv(C, channels, 3, padding=1)
        if config.upsampler:
            self.upsample = _upsampler(config)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,C,sH,sW), s the upscale (1 without upsampler); not clipped."""
        x = (image - self.mean).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        tokens = self.patch_embed(to_tokens(shallow))
        for group in self.layers:
            tokens = group(tokens)
        deep = self.conv_after_body(to_image(self.norm(tokens))) + shallow
        if self.config.upsampler == "pixelshuffle":
            out = self.conv_last(self.upsample(self.conv_before_upsample(deep)))
        elif self.config.upsampler == "pixelshuffledirect":
            out = self.upsample(deep)
        else:
            out = x + self.conv_last(deep)
        return out + self.mean

    def start_simply(self) -> None:
        """Set the outer layers so that the untrained net gives the input back, or enlarges it bilinearly.

        Training starts from there and learns faster. To enlarge, the first channels carry the image itself
        through; only for `pixelshuffledirect` after one convolution, other upsamplers stay as they are.
        """
        channels, s = self.config.in_chans, self.config.upscale
        if self.config.upsampler == "":
            for parameter in self.conv_last.parameters():
                nn.init.zeros_(parameter)
        if self.config.upsampler != "pixelshuffledirect" or self.config.resi_connection != "1conv":
            return
        position = (torch.arange(s) + 0.5) / s - 0.5  # of the new pixels, in old ones
        taps = (1 - (position[:, None] - torch.tensor([-1.0, 0.0, 1.0])).abs()).clamp(min=0)  # (s,3)
        kernel = taps[:, None, :, None] * taps[None, :, None, :]  # (s,s,3,3)
        tensors = dict(self.named_parameters())
        with torch.no_grad():
            for name in ("conv_first", "conv_after_body"):
                tensors[f"{name}.weight"][:channels] = 0
                tensors[f"{name}.bias"][:channels] = 0
            last = tensors["upsample.0.weight"]
            last.zero_()
            tensors["upsample.0.bias"].zero_()
            for c in range(channels):
                self.conv_first.weight[c, c, 1, 1] = 1
                last[c * s * s : (c + 1) * s * s, c] = kernel.flatten(0, 1)


def detect(state: Mapping[str, Tensor]) -> MambaIRConfig | None:
    """The configuration of a MambaIR state dict, read off its tensors; None for another network's.

    Raises ValueError where the tensors are of this family but of no published form.
    """
    block = "layers.0.residual_group.blocks.0"
    first, a_logs = (state.get(key) for key in ("conv_first.weight", f"{block}.self_attention.A_logs"))
    if first is None or a_logs is None:
        return None
    C, in_chans = first.shape[:2]
    positions = [key.split(".") for key in state if key.startswith("layers.") and key.endswith(".skip_scale")]
    groups = [int(p[1]) for p in positions]
    depths = tuple(groups.count(i) for i in range(len(set(groups))))
    if 0 in depths:
        raise ValueError("its groups of layers are not numbered from 0 on")

    upsampler: Upsampler = ""
    upscale = 1
    if "conv_before_upsample.0.weight" in state:
        upsampler = "pixelshuffle"
        upscale = scale_of_pixel_shuffle(state, "upsample")
    elif "upsample.0.weight" in state:
        upsampler = "pixelshuffledirect"
        upscale = math.isqrt(state["upsample.0.weight"].shape[0] // in_chans)
    return MambaIRConfig(
        embed_dim=C,
        depths=depths,
        d_state=a_logs.shape[1],
        expand=a_logs.shape[0] / 4 / C,
        conv_block=_conv_block_of(state, f"{block}.conv_blk", C),
        upsampler=upsampler,
        upscale=upscale,
        in_chans=in_chans,
        resi_connection="1conv" if "conv_after_body.weight" in state else "3conv",
    )


def _conv_block_of(state: Mapping[str, Tensor], name: str, C: int) -> ConvBlock:
    """The form of the convolutional half that has this name in a state dict. Raises ValueError where it has none."""
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
