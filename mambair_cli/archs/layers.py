"""Layers that the networks share. Tokens are (B,H,W,C) contiguous, which is (B,C,H,W) in
channels-last.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import layer_norm

# A block of any network here has at least so many tensors.
LEAST_TENSORS = 10
# How sides are filled up.
Padding = Literal["reflect", "symmetric"]
_ONEDNN = torch.backends.mkldnn.is_available()


def to_image(tokens: Tensor) -> Tensor:
    """(B,H,W,C) -> (B,C,H,W), channels-last, without a copy."""
    return tokens.permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,H,W,C) contiguous, without a copy where the image is channels-last."""
    return image.permute(0, 2, 3, 1).contiguous()


def _onednn_pointwise(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    parts = (weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return to_tokens(torch.mkldnn_convolution(to_image(tokens), *parts))


class _OneDNNPointwise(torch.autograd.Function):
    """A 1x1 convolution by oneDNN both ways: PyTorch's own backward takes twice as long."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _onednn_pointwise(tokens, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        # (BHW,M)
        rows = gradient.flatten(0, 2)
        bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return _onednn_pointwise(gradient, weight.t(), None), rows.t() @ tokens.flatten(0, 2), bias


def pointwise(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(B,H,W,C) @ weight (M,C) + bias (M) -> (B,H,W,M).

    On a CPU as a 1x1 convolution by oneDNN, 1.1-1.7x faster than the BLAS behind F.linear; which
    follows autocast.
    """
    on_cpu = tokens.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    if _ONEDNN and on_cpu and tokens.dtype == torch.float32:
        if torch.is_grad_enabled():
            return _OneDNNPointwise.apply(tokens.contiguous(), weight, bias)
        return _onednn_pointwise(tokens, weight, bias)
    return F.linear(tokens, weight, bias)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Where autocast rests."""
    # The device that counts operations knows none.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class FullPrecisionConv(nn.Conv2d):
    """A convolution in the precision of its weights also under autocast: the first and the last of
    a network.

    Between them autocast computes convolutions and linear layers in half precision; sums, norms and
    the scan's states stay in single (mixed precision: arXiv:1710.03740).
    """

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,M,H',W')."""
        image = image.to(self.weight.dtype)
        with without_autocast(image.device):
            return super().forward(image)


def linear(layer: nn.Module) -> tuple[Any, Any]:
    """The weight and the bias, if any, of a layer, for `ops.fused`."""
    return layer.weight, layer.bias


class Linear(nn.Linear):
    """A linear layer of tokens that runs as `pointwise`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B,H,W,C) -> (B,H,W,M)."""
        return pointwise(tokens, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that runs as `pointwise`."""

    def __init__(self, channels: int, out: int, bias: bool = True):
        super().__init__(channels, out, 1, bias=bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,M,H,W), channels-last."""
        return to_image(pointwise(to_tokens(image), self.weight[:, :, 0, 0], self.bias))

    def half_of(self, tokens: Tensor, index: int) -> Tensor:
        """(B,H,W,C) -> (B,H,W,M/2): the first (0) or second (1) half of the result, contiguous."""
        bias = None if self.bias is None else self.bias.chunk(2)[index]
        return pointwise(tokens, self.weight[:, :, 0, 0].chunk(2)[index], bias)


def _parities(image: Tensor) -> Tensor:
    """(B,C,H,W) -> (4B,C,ceil(H/2),ceil(W/2)): rows and columns of equal parity, zeros where a side
    is odd.
    """
    image = F.pad(image, (0, image.shape[3] % 2, 0, image.shape[2] % 2))
    return torch.cat([image[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


class _DilatedDepthwise(torch.autograd.Function):
    """3x3 depthwise convolution of dilation 2, whose weight gradient PyTorch computes 20x too
    slowly.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(image, weight)
        return F.conv2d(image, weight, bias, padding=2, dilation=2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # autocast ran the forward in that type
        image, weight = (x.to(gradient.dtype) for x in ctx.saved_tensors)
        back = F.conv2d(gradient, weight.flip(2, 3), padding=2, dilation=2, groups=len(weight))
        # With dilation 2 pixels of different parity never meet: four plain convolutions.
        options = ((1, 1), (1, 1), (1, 1), False, (0, 0), len(weight), (False, True, True))
        _, gweight, gbias = torch.ops.aten.convolution_backward(
            _parities(gradient), _parities(image), weight, [len(weight)], *options
        )
        return back, gweight, gbias


class LayerNorm(nn.LayerNorm):
    """Layer norm of tokens, times silu(gate) where given; runs as `ops.layer_norm`."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.backend = "auto"

    def forward(self, tokens: Tensor, gate: Tensor | None = None) -> Tensor:
        """(B,H,W,C) -> (B,H,W,C)."""
        return layer_norm(tokens, self.weight, self.bias, gate, backend=self.backend)


class DilatedDepthwise(nn.Conv2d):
    """3x3 depthwise convolution of dilation 2 with a fast backward."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=2, dilation=2, groups=channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        return _DilatedDepthwise.apply(image, self.weight, self.bias)


class ChannelAttention(nn.Module):
    """Squeeze-and-excitation: the image times sigmoid(1x1(ReLU(1x1(global mean))))."""

    def __init__(self, channels: int, squeeze: int):
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeeze, 1),
            nn.ReLU(),
            nn.Conv2d(squeeze, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        return image * self.attention(image)

    def of_means(self, means: Tensor) -> Tensor:
        """The factors (B,C) for an image of these means (B,C)."""
        factors: Tensor = self.attention[1:](means[:, :, None, None])
        return factors.flatten(1)


def pixel_shuffle(channels: int, scale: int) -> nn.Sequential:
    """Convolutions that each multiply the channels and shuffle them to pixels: x2 as often as
    needed, or x3 once.

    Raises ValueError for a scale that they do not reach.
    """
    if scale & (scale - 1) == 0:
        steps = [2] * int(math.log2(scale))
    elif scale == 3:
        steps = [3]
    else:
        raise ValueError(f"no upsampler of this network reaches x{scale}")
    return nn.Sequential(
        *(
            layer
            for r in steps
            for layer in (nn.Conv2d(channels, channels * r * r, 3, padding=1), nn.PixelShuffle(r))
        )
    )


def check_blocks(count: int, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a state dict names more blocks than it can have tensors for."""
    if LEAST_TENSORS * count > len(state):
        raise ValueError(f"it has {len(state)} tensors, too few for {count} blocks")


def scale_of_pixel_shuffle(state: Mapping[str, Tensor], prefix: str) -> int:
    """The scale of the `pixel_shuffle` of this name in a state dict."""
    steps = [state[key] for i in (0, 2, 4) if (key := f"{prefix}.{i}.weight") in state]
    return math.prod(math.isqrt(weight.shape[0] // weight.shape[1]) for weight in steps)


class Block(nn.Module):
    """A block of a network around one scan: most of the work, and what progress counts."""


def padded(image: Tensor, multiple: int, mode: Padding) -> Tensor:
    """Mirror an image at the bottom and the right until its sides are multiples.

    (B,C,H,W) -> (B,C,H',W'), as often as it takes. The mode is numpy's: `reflect` leaves the edge
    out, `symmetric` repeats it.
    """
    for axis in (2, 3):
        side = image.shape[axis]
        if excess := side % multiple:
            source = np.pad(np.arange(side), (0, multiple - excess), mode=mode)
            image = image.index_select(axis, torch.from_numpy(source).to(image.device))
    return image


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the whole branch of a sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B,...) -> (B,...), scaled by 1 / (1 - rate) where kept."""
        if not self.training or self.rate == 0:
            return branch
        keep = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)
