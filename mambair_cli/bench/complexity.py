"""Parameters and multiply-adds of a network in two countings: as the MambaIR paper printed them, and all of them.

The paper's Table 3 comes from a counter that sees only leaf modules. It misses every bare parameter of the scans
and all work that is no module's: the projections to step sizes, B and C, and the recurrence.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..archs.layers import LayerNorm
from ..archs.ss2d import DIRECTIONS, SS2D, use_backend

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
    L x (9 x D x N + D).
    """
    config = cast(Any, model.config)
    ghost = copy.deepcopy(model).to("meta")
    use_backend(ghost, "reference")
    found: list[Counts] = []
    for module in ghost.modules():
        if isinstance(module, SS2D):  # the kernels need values, so only shapes pass
            module.forward = lambda tokens, scan=module: _pass(tokens, scan, found)  # type: ignore[method-assign, misc]
        elif count := next((count for kind, count in COUNTS.items() if isinstance(module, kind)), None):
            module.register_forward_hook(
                lambda layer, inputs, out, count=count: found.append(count(layer, inputs[0], out))
            )
    width, height = OUTPUT
    with torch.inference_mode():
        ghost(torch.empty(1, config.in_chans, height // config.upscale, width // config.upscale, device="meta"))
    leaves = [module for module in model.modules() if not list(module.children())]
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        leaf_parameters=sum(p.numel() for leaf in leaves for p in leaf.parameters()),
        macs=sum(full for _, full in found),
        leaf_macs=sum(leaf for leaf, _ in found),
    )


def _pass(tokens: Tensor, scan: SS2D, found: list[Counts]) -> Tensor:
    found.append(scan_macs(scan, tokens.shape[:3].numel()))
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


COUNTS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Counts]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    LayerNorm: _norm,
    nn.AdaptiveAvgPool2d: _pooling,
}


def scan_macs(module: SS2D, pixels: int) -> Counts:
    """Of an SS2D, whose layers are called as functions, so that no hook sees them: of leaf modules, of all."""
    D, N = module.A_logs.shape[0] // DIRECTIONS, module.A_logs.shape[1]
    layers = pixels * sum(layer.weight.numel() for layer in (module.in_proj, module.conv2d, module.out_proj))
    projections = pixels * (module.x_proj_weight.numel() + module.dt_projs_weight.numel())
    recurrence = DIRECTIONS * pixels * (9 * D * N + D)
    return layers + 4 * pixels * D, layers + 5 * pixels * D + projections + recurrence
