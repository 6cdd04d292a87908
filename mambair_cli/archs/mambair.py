"""MambaIR: A Simple Baseline for Image Restoration with State-Space Model (arXiv:2402.15648), section 3.

All published forms, with the official tensor names. Attribute names are the checkpoint format.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .layers import (
    ChannelAttention,
    DilatedDepthwise,
    DropPath,
    FullPrecisionConv,
    LayerNorm,
    Pointwise,
    to_image,
    to_tokens,
)
from .ss2d import SS2D

ConvBlock = Literal["classic", "light_a", "light_b", "light_c"]
Upsampler = Literal["", "pixelshuffle", "pixelshuffledirect"]
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


@dataclass(frozen=True)
class MambaIRConfig:
    """The shape of a MambaIR net.

    `conv_block` is the convolutional half of a block: `classic`, or the light form of the paper's Table 3
    (`light_a`), of the first release (`light_b`) or of the released weights (`light_c`).
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

    @property
    def inner(self) -> int:
        """D, channels of the scan."""
        return int(self.expand * self.embed_dim + 1e-6)


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


class VSSBlock(nn.Module):
    """Residual State-Space Block, RSSB (section 3.3, equations 4 and 5)."""

    def __init__(self, config: MambaIRConfig, drop_path: float):
        super().__init__()
        C = config.embed_dim
        self.skip_scale = nn.Parameter(torch.ones(C))
        self.skip_scale2 = nn.Parameter(torch.ones(C))
        self.ln_1 = LayerNorm(C)
        self.self_attention = SS2D(C, config.inner, config.d_state)
        self.drop_path = DropPath(drop_path)
        self.conv_blk = _conv_block(config.conv_block, C)
        self.ln_2 = LayerNorm(C)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        u = torch.addcmul(self.drop_path(self.self_attention(self.ln_1(tokens))), tokens, self.skip_scale)
        branch = to_tokens(self.conv_blk(to_image(self.ln_2(u))))
        return torch.addcmul(branch, u, self.skip_scale2)


class ResidualGroup(nn.Module):
    """Residual State-Space Group, RSSG: blocks, a convolution, and the group's input (section 3.2)."""

    def __init__(self, config: MambaIRConfig, drop_paths: list[float]):
        super().__init__()
        blocks = nn.Sequential(*(VSSBlock(config, rate) for rate in drop_paths))
        self.residual_group = nn.Sequential(OrderedDict(blocks=blocks))
        self.conv = _residual_conv(config.resi_connection, config.embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        return to_tokens(self.conv(to_image(self.residual_group(tokens)))) + tokens


def _upsampler(config: MambaIRConfig) -> nn.Sequential:
    s = config.upscale
    if config.upsampler == "pixelshuffledirect":
        last = FullPrecisionConv(config.embed_dim, config.in_chans * s * s, 3, padding=1)
        return nn.Sequential(last, nn.PixelShuffle(s))
    if s & (s - 1) == 0:
        steps = [2] * int(math.log2(s))
    elif s == 3:
        steps = [3]
    else:
        raise ValueError(f"no upsampler of this network reaches x{s}")
    return nn.Sequential(
        *(layer for r in steps for layer in (nn.Conv2d(64, 64 * r * r, 3, padding=1), nn.PixelShuffle(r)))
    )


class MambaIR(nn.Module):
    """The network: shallow features, groups of state-space blocks, reconstruction.

    Without upsampler the output is the input plus what the net adds (denoising, JPEG artefacts).
    """

    mean: Tensor
    conv_before_upsample: nn.Sequential
    upsample: nn.Sequential
    conv_last: nn.Conv2d

    def __init__(self, config: MambaIRConfig):
        super().__init__()
        self.config = config
        C, channels = config.embed_dim, config.in_chans
        mean = torch.tensor(RGB_MEAN if channels == 3 else [0.0] * channels)
        self.register_buffer("mean", mean.view(1, channels, 1, 1), persistent=False)
        self.conv_first = FullPrecisionConv(channels, C, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=LayerNorm(C)))
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths)).split(list(config.depths))
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

    def start_as_bilinear(self) -> None:
        """Set the outer layers so that the untrained net enlarges bilinearly (`pixelshuffledirect` only).

        The first channels carry the image itself through; training starts from there and learns faster.
        """
        channels, s = self.config.in_chans, self.config.upscale
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
    first, a_logs, cab = (
        state.get(key)
        for key in ("conv_first.weight", f"{block}.self_attention.A_logs", f"{block}.conv_blk.cab.0.weight")
    )
    if first is None or a_logs is None or cab is None:
        return None
    C, in_chans = first.shape[:2]
    positions = [key.split(".") for key in state if key.startswith("layers.") and key.endswith(".skip_scale")]
    groups = [int(p[1]) for p in positions]
    depths = tuple(groups.count(i) for i in range(len(set(groups))))
    if 0 in depths:
        raise ValueError("its groups of layers are not numbered from 0 on")

    forms: dict[tuple[int, ...], ConvBlock] = {
        (C // 3, C, 3, 3): "classic",
        (C // 6, C, 3, 3): "light_b",
        (C // 2, C, 1, 1): "light_c",
        (C, 1, 3, 3): "light_a",
    }
    if tuple(cab.shape) not in forms:
        raise ValueError(f"its convolution block starts with a weight of shape {tuple(cab.shape)}")

    upsampler: Upsampler = ""
    upscale = 1
    if "conv_before_upsample.0.weight" in state:
        upsampler = "pixelshuffle"
        steps = [state[key] for i in (0, 2, 4) if (key := f"upsample.{i}.weight") in state]
        upscale = math.prod(math.isqrt(weight.shape[0] // 64) for weight in steps)
    elif "upsample.0.weight" in state:
        upsampler = "pixelshuffledirect"
        upscale = math.isqrt(state["upsample.0.weight"].shape[0] // in_chans)
    return MambaIRConfig(
        embed_dim=C,
        depths=depths,
        d_state=a_logs.shape[1],
        expand=a_logs.shape[0] / 4 / C,
        conv_block=forms[tuple(cab.shape)],
        upsampler=upsampler,
        upscale=upscale,
        in_chans=in_chans,
        resi_connection="1conv" if "conv_after_body.weight" in state else "3conv",
    )
