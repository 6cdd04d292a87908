"""Parameters and multiply-adds of a network in two countings: as the MambaIR paper printed them, and all of them.

The paper's Table 3 comes from a counter that sees only leaf modules. It misses every bare parameter of the scans
and all work that is no module's: the projections to step sizes, B and C, and the recurrence.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .layers import LayerNorm
from .mambairv2 import AttentiveScan, GatedFFN, PromptedScan, WindowAttention
from .ss2d import SS2D, SelectiveScan, use_backend
from .vmambair import EFFN, OmniSelectiveScan

OUTPUT = (1280, 720)  # width and height of the image that the papers count for
Counts = tuple[int, int]  # of leaf modules, of all


@dataclass(frozen=True)
class Complexity:
    """Parameters, and multiply-adds for an output of 1280x720; `leaf`: of leaf modules only."""

    parameters: int
    leaf_parameters: int
    macs: int
    leaf_macs: int


def complexity(model: nn.Module) -> Complexity:
    """Count a network, on tensors without values, so in milliseconds.

    Of leaf modules: outputs x inputs of one group x kernel for a convolution, in x out a token for a linear layer,
    4 an element for LayerNorm, H x W + 1 a channel for global pooling, nothing for all else and for biases. In all,
    as fvcore counts: the same for convolutions and linear layers, 5 an element for LayerNorm, 1 for pooling, and for
    each of K directions of a scan over L pixels the projections L x D x (R + 2N) and L x R x D and the recurrence
    L x (9 x D x N + D). Attention in windows of n pixels counts 2 x n x C a pixel, and to choose among T prompts of
    N numbers T x N, as in the table of the MambaIRv2 paper.
    """
    config = cast(Any, model.config)
    ghost = copy.deepcopy(model).to("meta")
    use_backend(ghost, "reference")
    found: list[Counts] = []
    for module in ghost.modules():
        if isinstance(module, UNITS):  # their kernels need values, so only shapes pass
            module.forward = lambda tokens, *_, unit=module: _pass(tokens, unit, found)  # type: ignore[method-assign, misc]
        elif count := next(
            (count for kind, count in COUNTS.items() if isinstance(module, kind)), None
        ):
            module.register_forward_hook(
                lambda layer, inputs, out, count=count: found.append(count(layer, inputs[0], out))
            )
    width, height = OUTPUT
    with torch.inference_mode():
        ghost(
            torch.empty(
                1, config.in_chans, height // config.upscale, width // config.upscale, device="meta"
            )
        )
    leaves = [module for module in model.modules() if not list(module.children())]
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        leaf_parameters=sum(p.numel() for leaf in leaves for p in leaf.parameters()),
        macs=sum(full for _, full in found),
        leaf_macs=sum(leaf for leaf, _ in found),
    )


def _pass(tokens: Tensor, unit: nn.Module, found: list[Counts]) -> Tensor:
    found.append(unit_macs(unit, tokens.shape[:3].numel()))
    return tokens


def _convolution(layer: Any, image: Tensor, out: Tensor) -> Counts:
    count = out.numel() * layer.weight[0].numel()
    return count, count


def _linear(layer: Any, tokens: Tensor, out: Tensor) -> Counts:
    count = out.numel() * layer.in_features
    return count, count


def _norm(layer: Any, tokens: Tensor, out: Tensor) -> Counts:
    return 4 * tokens.numel(), 5 * tokens.numel()


def _pooling(layer: Any, image: Tensor, out: Tensor) -> Counts:
    return image.numel() + image.shape[1], image.numel()


def _attention(layer: Any, qkv: Tensor, out: Tensor) -> Counts:
    side = (math.isqrt(len(layer.relative_position_bias_table)) + 1) // 2
    return 0, 2 * out.numel() * side**2


def _prompts(module: Any, tokens: Tensor, out: Tensor) -> Counts:
    pool, rank = module.embeddingB.weight.shape
    states = module.selectiveScan.A_logs.shape[1]
    return 0, pool * rank * states + out.shape[:3].numel() * pool * states


COUNTS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Counts]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    LayerNorm: _norm,
    nn.AdaptiveAvgPool2d: _pooling,
    WindowAttention: _attention,
    AttentiveScan: _prompts,
}


# They call their layers as functions, so that no hook sees them.
UNITS = (SS2D, OmniSelectiveScan, EFFN, PromptedScan, GatedFFN)


def unit_macs(unit: nn.Module, pixels: int) -> Counts:
    """Of a module of UNITS on so many pixels: of leaf modules, of all."""
    leaf = full = 0
    for name, layer in unit.named_modules():
        tokens = pixels
        if isinstance(unit, OmniSelectiveScan) and name.startswith(("conv_c", "channel_norm")):
            tokens = (
                1 if name.startswith("channel_norm") else unit.dt_projs_bias.shape[1]
            )  # along the channels
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            leaf, full = leaf + tokens * layer.weight.numel(), full + tokens * layer.weight.numel()
        elif isinstance(layer, LayerNorm):
            leaf, full = (
                leaf + 4 * tokens * layer.weight.numel(),
                full + 5 * tokens * layer.weight.numel(),
            )
    if isinstance(unit, SelectiveScan):
        full += pixels * _scan(unit.x_proj_weight, unit.dt_projs_weight, unit.A_logs)
    if isinstance(unit, OmniSelectiveScan):
        length = unit.dt_projs_bias.shape[1]
        full += pixels * length + length * _scan(
            unit.xc_proj_weight, unit.dtc_projs_weight, unit.Ac_logs
        )
    return leaf, full


def _scan(x_proj: Tensor, dt_proj: Tensor, A_logs: Tensor) -> int:
    """Of all directions of a scan, for each position: projections and recurrence."""
    return x_proj.numel() + dt_proj.numel() + 9 * A_logs.numel() + A_logs.shape[0]
