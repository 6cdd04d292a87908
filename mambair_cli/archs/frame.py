"""The frame around the groups of MambaIR and MambaIRv2, SwinIR's, with official tensor names."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .layers import (
    FullPrecisionConv,
    LayerNorm,
    check_blocks,
    padded,
    pixel_shuffle,
    scale_of_pixel_shuffle,
    to_image,
    to_tokens,
)

Upsampler = Literal["", "pixelshuffle", "pixelshuffledirect"]
ResidualConv = Literal["1conv", "3conv"]
# Of DIV2K.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


def residual_conv(form: ResidualConv, C: int) -> nn.Module:
    """The convolution at the end of a group, and after the last one: (B,C,H,W) -> (B,C,H,W)."""
    if form == "1conv":
        return nn.Conv2d(C, C, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(C, C // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(C // 4, C // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(C // 4, C, 3, padding=1),
    )


def tail_floats(upsampler: Upsampler, scale: int) -> int:
    """Estimate of the floats that the reconstruction holds for each pixel of the input."""
    return {"pixelshuffle": 2 * 64 * scale**2, "pixelshuffledirect": 9 * scale**2, "": 9}[upsampler]


class Frame(nn.Module):
    """Shallow features, groups of blocks, reconstruction.

    Without upsampler the output is the input plus what the net adds (denoising, JPEG artefacts).

    Args:
        config: the shape, with embed_dim, depths, upsampler, upscale, in_chans, resi_connection,
            multiple and padding.
        group: makes the group of a number, (B,H,W,C) -> (B,H,W,C).

    Raises ValueError for a shape that no such net has.
    """

    mean: Tensor
    conv_before_upsample: nn.Sequential
    upsample: nn.Sequential
    conv_last: nn.Conv2d

    def __init__(self, config: Any, group: Callable[[int], nn.Module]):
        super().__init__()
        if not config.depths:
            raise ValueError("depths must count the blocks of one group at least, not ()")
        self.config = config
        C, channels, s = config.embed_dim, config.in_chans, config.upscale
        mean = torch.tensor(RGB_MEAN if channels == 3 else [0.0] * channels)
        self.register_buffer("mean", mean.view(1, channels, 1, 1), persistent=False)
        self.conv_first = FullPrecisionConv(channels, C, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=LayerNorm(C)))
        self.layers = nn.ModuleList(group(g) for g in range(len(config.depths)))
        self.norm = LayerNorm(C)
        self.conv_after_body = residual_conv(config.resi_connection, C)
        if config.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(C, 64, 3, padding=1), nn.LeakyReLU(0.01)
            )
            self.conv_last = FullPrecisionConv(64, channels, 3, padding=1)
            self.upsample = pixel_shuffle(64, s)
        elif config.upsampler == "pixelshuffledirect":
            last = FullPrecisionConv(C, channels * s * s, 3, padding=1)
            self.upsample = nn.Sequential(last, nn.PixelShuffle(s))
        else:
            self.conv_last = FullPrecisionConv(C, channels, 3, padding=1)

    def body(self, tokens: Tensor) -> Tensor:
        """All groups: (B,H,W,C) -> (B,H,W,C)."""
        for group in self.layers:
            tokens = group(tokens)
        return tokens

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,C,sH,sW), s the upscale (1 without upsampler); not clipped."""
        s, (H, W) = self.config.upscale, image.shape[2:]
        image = padded(image, self.config.multiple, self.config.padding)
        x = (image - self.mean).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        tokens = self.body(self.patch_embed(to_tokens(shallow)))
        deep = self.conv_after_body(to_image(self.norm(tokens))) + shallow
        if self.config.upsampler == "pixelshuffle":
            out = self.conv_last(self.upsample(self.conv_before_upsample(deep)))
        elif self.config.upsampler == "pixelshuffledirect":
            out = self.upsample(deep)
        else:
            out = x + self.conv_last(deep)
        return (out + self.mean)[:, :, : s * H, : s * W]

    def start_simply(self) -> None:
        """Set the outer layers so that the untrained net gives the input back, or enlarges it
        bilinearly.

        Training starts from there and learns faster. To enlarge, the first channels carry the image
        itself through; only for `pixelshuffledirect` after one convolution, other upsamplers stay
        as they are.
        """
        channels, s = self.config.in_chans, self.config.upscale
        if self.config.upsampler == "":
            for parameter in self.conv_last.parameters():
                nn.init.zeros_(parameter)
        if self.config.upsampler != "pixelshuffledirect" or self.config.resi_connection != "1conv":
            return
        # Of the new pixels, in old ones.
        position = (torch.arange(s) + 0.5) / s - 0.5
        distance = (position[:, None] - torch.tensor([-1.0, 0.0, 1.0])).abs()
        # (s,3)
        taps = (1 - distance).clamp(min=0)
        # (s,s,3,3)
        kernel = taps[:, None, :, None] * taps[None, :, None, :]
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


def read_frame(state: Mapping[str, Tensor], mark: str) -> dict[str, Any]:
    """The fields of a configuration that the frame shows, read off a state dict.

    Args:
        state: tensors by name.
        mark: how the name of a tensor ends of which each block has one.

    Raises ValueError where the groups are not numbered from 0 on, KeyError where `conv_first` is
    missing.
    """
    positions = [
        key.split(".") for key in state if key.startswith("layers.") and key.endswith(mark)
    ]
    groups = [int(parts[1]) for parts in positions]
    depths = tuple(groups.count(i) for i in range(len(set(groups))))
    if 0 in depths:
        raise ValueError("its groups of layers are not numbered from 0 on")
    check_blocks(sum(depths), state)

    C, in_chans = state["conv_first.weight"].shape[:2]
    upsampler: Upsampler = ""
    upscale = 1
    if "conv_before_upsample.0.weight" in state:
        upsampler = "pixelshuffle"
        upscale = scale_of_pixel_shuffle(state, "upsample")
    elif "upsample.0.weight" in state:
        upsampler = "pixelshuffledirect"
        upscale = math.isqrt(state["upsample.0.weight"].shape[0] // in_chans)
    return {
        "embed_dim": C,
        "depths": depths,
        "upsampler": upsampler,
        "upscale": upscale,
        "in_chans": in_chans,
        "resi_connection": "1conv" if "conv_after_body.weight" in state else "3conv",
    }
