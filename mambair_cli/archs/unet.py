"""The U-Net around the blocks of MambaIR (real denoising) and VmambaIR: Restormer's, with the
official tensor names.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    FullPrecisionConv,
    Padding,
    Pointwise,
    check_blocks,
    padded,
    pixel_shuffle,
    scale_of_pixel_shuffle,
    to_image,
    to_tokens,
)
from .ss2d import scan_floats

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


def channels(share: float, width: int) -> int:
    """So many channels as `share` of a width are. Raises ValueError where these are none."""
    count = int(share * width + 1e-6)
    if count < 1:
        raise ValueError(f"{share} of {width} channels leave none")
    return count


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net: `dim` channels at full resolution, twice as many at each lower level.

    `blocks` counts them on each level on the way down, `refinement` those after the last one.
    d_state, expand: N and E of the scans. With an `upscale` above 1 the net enlarges. `limits` of a
    number's metadata are what a recipe may ask for.
    """

    dim: int = field(default=48, metadata={"limits": (4, 512)})
    blocks: tuple[int, int, int, int] = field(default=(4, 6, 6, 8), metadata={"limits": (1, 100)})
    refinement: int = field(default=4, metadata={"limits": (0, 100)})
    d_state: int = field(default=16, metadata={"limits": (1, 256)})
    expand: float = field(default=1.5, metadata={"limits": (0.25, 8)})
    in_chans: int = field(default=3, metadata={"limits": (1, 3)})
    upscale: int = field(default=1, metadata={"limits": (1, 8)})
    # sides that the net takes without padding
    multiple: ClassVar[int] = 8
    padding: ClassVar[Padding] = "reflect"

    def inner(self, width: int) -> int:
        """D, channels of the scan in a block of this width."""
        return channels(self.expand, width)

    def states(self, width: int) -> int:
        """N, states a channel of the scan in a block of this width."""
        return self.d_state

    def block_floats(self, width: int, backend: str) -> int:
        """Estimate of the floats that a block of this width holds for each of its pixels at its
        peak.
        """
        scan = scan_floats(width, self.inner(width), self.states(width), backend)
        return max(scan, 4 * width)

    def floats_per_pixel(self, backend: str) -> int:
        """Estimate of the floats that the net holds for each pixel of its input at its peak."""
        # of the blocks at full resolution on the way up
        width = 2 * self.dim
        tail = 2 * width * self.upscale**2
        return 8 * width + max(self.block_floats(width, backend), tail)


def read_shape(state: Mapping[str, Tensor], A_logs: str) -> dict[str, Any]:
    """The fields of a UNetConfig, read off a state dict; `A_logs` is that tensor's name within a
    block.
    """
    dim, in_chans = state["patch_embed.proj.weight"].shape[:2]
    named = {tuple(key.split(".")[:2]) for key in state}
    counts = {
        level: sum(first == level for first, *_ in named) for level in (*LEVELS, "refinement")
    }
    check_blocks(sum(counts.values()), state)
    first, widest = (state[f"{level}.0.{A_logs}"] for level in ("encoder_level1", "latent"))
    return {
        "dim": dim,
        "blocks": tuple(counts[level] for level in LEVELS),
        "refinement": counts["refinement"],
        "d_state": first.shape[1],
        # off the widest level: exact for the others too
        "expand": widest.shape[0] / 4 / (8 * dim),
        "in_chans": in_chans,
        "upscale": scale_of_pixel_shuffle(state, "tail.0"),
    }


def _down(width: int) -> nn.Sequential:
    steps = nn.Sequential(
        nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)
    )
    return nn.Sequential(OrderedDict(body=steps))


def _up(width: int) -> nn.Sequential:
    steps = nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.PixelShuffle(2))
    return nn.Sequential(OrderedDict(body=steps))


class UNet(nn.Module):
    """Encoder of three levels, latent level, decoder with skip connections, refinement; plus the
    input image.

    Level 1 decodes at twice its width, as its skip connection is not reduced. Where the net
    enlarges, the output convolution gives way to pixel shuffles (`tail`), and the input is enlarged
    by nearest neighbour.

    Args:
        config: the shape.
        block: makes a block of a width, (B,H,W,C) -> (B,H,W,C).

    Raises ValueError for a shape that no such net has.
    """

    output: nn.Conv2d
    tail: nn.Sequential

    def __init__(self, config: UNetConfig, block: Callable[[int], nn.Module]):
        super().__init__()
        C, counts, in_chans = config.dim, config.blocks, config.in_chans
        if C < 4 or C % 2:
            raise ValueError(f"dim must be an even number from 4 on, not {C}")
        if len(counts) != 4 or min(*counts, config.refinement + 1) < 1:
            found = f"{counts} and {config.refinement}"
            raise ValueError(
                f"blocks must be four numbers from 1 on, refinement one from 0 on, not {found}"
            )
        self.config = config

        def level(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(block(width) for _ in range(count)))

        proj = FullPrecisionConv(in_chans, C, 3, padding=1, bias=False)
        self.patch_embed = nn.Sequential(OrderedDict(proj=proj))
        self.encoder_level1 = level(C, counts[0])
        self.down1_2 = _down(C)
        self.encoder_level2 = level(2 * C, counts[1])
        self.down2_3 = _down(2 * C)
        self.encoder_level3 = level(4 * C, counts[2])
        self.down3_4 = _down(4 * C)
        self.latent = level(8 * C, counts[3])
        self.up4_3 = _up(8 * C)
        self.reduce_chan_level3 = Pointwise(8 * C, 4 * C, bias=False)
        self.decoder_level3 = level(4 * C, counts[2])
        self.up3_2 = _up(4 * C)
        self.reduce_chan_level2 = Pointwise(4 * C, 2 * C, bias=False)
        self.decoder_level2 = level(2 * C, counts[1])
        self.up2_1 = _up(2 * C)
        self.decoder_level1 = level(2 * C, counts[0])
        self.refinement = level(2 * C, config.refinement)
        if config.upscale == 1:
            self.output = FullPrecisionConv(2 * C, in_chans, 3, padding=1, bias=False)
        else:
            last = FullPrecisionConv(2 * C, in_chans, 3, padding=1)
            self.tail = nn.Sequential(pixel_shuffle(2 * C, config.upscale), last)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,C,sH,sW), s the upscale; not clipped. Sides are padded by
        reflection.
        """
        s, (H, W) = self.config.upscale, image.shape[2:]
        image = padded(image, self.config.multiple, self.config.padding)
        image = image.contiguous(memory_format=torch.channels_last)
        tokens = to_tokens(self.patch_embed(image))
        skips: list[Tensor] = []
        for level, down in (
            (self.encoder_level1, self.down1_2),
            (self.encoder_level2, self.down2_3),
            (self.encoder_level3, self.down3_4),
        ):
            skips.append(level(tokens))
            # under autocast, half precision ends here
            tokens = to_tokens(down(to_image(skips[-1]))).to(image.dtype)
        tokens = self.latent(tokens)
        for up, reduce, level in (
            (self.up4_3, self.reduce_chan_level3, self.decoder_level3),
            (self.up3_2, self.reduce_chan_level2, self.decoder_level2),
            (self.up2_1, nn.Identity(), self.decoder_level1),
        ):
            both = torch.cat([up(to_image(tokens)), to_image(skips.pop())], 1)
            tokens = level(to_tokens(reduce(both)).to(image.dtype))
        deep = to_image(self.refinement(tokens))
        if s == 1:
            out = self.output(deep) + image
        else:
            out = self.tail(deep) + F.interpolate(image, scale_factor=s, mode="nearest")
        return out[:, :, : s * H, : s * W]

    def start_simply(self) -> None:
        """Zero the last convolution: the untrained net gives the input back, or its
        nearest-neighbour enlargement.
        """
        last = self.output if self.config.upscale == 1 else self.tail[1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
