"""Parameters and multiply-adds of a network: as the MambaIR paper printed them, and all of them.

The paper's Table 3 comes from a counter that sees only leaf modules. It misses every bare parameter
of the scans and all work that belongs to no module: the projections to step sizes, B and C, and the
recurrence.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .layers import LayerNorm

# Width and height of the image that the papers count for.
OUTPUT = (1280, 720)


@dataclass(frozen=True)
class Macs:
    """Multiply-adds: of leaf modules only, and all of them."""

    leaf: int = 0
    full: int = 0

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.leaf + other.leaf, self.full + other.full)


@dataclass(frozen=True)
class Complexity:
    """Parameters, and multiply-adds for an output of 1280x720; `leaf`: of leaf modules only."""

    parameters: int
    leaf_parameters: int
    macs: int
    leaf_macs: int


def complexity(model: nn.Module) -> Complexity:
    """Count a network as the papers do, for an output of OUTPUT; takes milliseconds."""
    scale = cast(Any, model.config).upscale
    width, height = OUTPUT
    macs = multiply_adds(model, width // scale, height // scale)
    leaves = [module for module in model.modules() if not list(module.children())]
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        leaf_parameters=sum(p.numel() for leaf in leaves for p in leaf.parameters()),
        macs=macs.full,
        leaf_macs=macs.leaf,
    )


def multiply_adds(model: nn.Module, width: int, height: int) -> Macs:
    """The multiply-adds of a network for an input of this size, counted on tensors without values.

    Leaf modules: outputs x inputs of one group x kernel for a convolution, in x out a token for a
    linear layer, 4 an element for LayerNorm, H x W + 1 a channel for global pooling, nothing for
    all else and for biases. All of them, as fvcore counts: the same for convolutions and linear
    layers, 5 an element for LayerNorm, 1 for pooling, and what `scan_macs` says of the scans.

    A module that calls its layers as functions, so that no hook sees them, or has work of its own,
    has a method `macs(pixels) -> Macs`, which counts it whole.
    """
    ghost = copy.deepcopy(model).eval().to("meta")
    found: list[Macs] = []
    modules: list[Any] = list(ghost.modules())
    for module in modules:
        if hasattr(module, "backend"):
            module.backend = "reference"
        if hasattr(module, "macs"):
            # Its kernels need values, so only the shape passes.
            module.forward = _counted(module, found)
        elif rule := _rule(module):
            module.register_forward_hook(_noting(rule, found))
    channels = cast(Any, model.config).in_chans
    with torch.inference_mode():
        ghost(torch.empty(1, channels, height, width, device="meta"))
    return sum(found, Macs())


def layer_macs(layers: Iterable[nn.Module], tokens: int) -> Macs:
    """The multiply-adds of convolutions, linear layers and norms, on so many tokens."""
    found = Macs()
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            products = tokens * layer.weight.numel()
            found += Macs(products, products)
        elif isinstance(layer, LayerNorm):
            elements = tokens * layer.weight.numel()
            found += Macs(4 * elements, 5 * elements)
    return found


def scan_macs(x_proj: Tensor, dt_weight: Tensor, A_log: Tensor, length: int) -> Macs:
    """The multiply-adds of a selective scan over `length` pixels in all its directions.

    For each direction the projections, L x D x (R + 2N) and L x R x D, and the recurrence,
    L x (9 x D x N + D).

    Args:
        x_proj: (K,R+2N,D).
        dt_weight: (K,D,R).
        A_log: (K*D,N).
        length: L.
    """
    recurrence = 9 * A_log.numel() + A_log.shape[0]
    return Macs(0, length * (x_proj.numel() + dt_weight.numel() + recurrence))


Rule = Callable[[Any, Tensor, Tensor], Macs]


def _convolution(layer: Any, image: Tensor, out: Tensor) -> Macs:
    count = out.numel() * layer.weight[0].numel()
    return Macs(count, count)


def _linear(layer: Any, tokens: Tensor, out: Tensor) -> Macs:
    count = out.numel() * layer.in_features
    return Macs(count, count)


def _norm(layer: Any, tokens: Tensor, out: Tensor) -> Macs:
    return Macs(4 * tokens.numel(), 5 * tokens.numel())


def _pooling(layer: Any, image: Tensor, out: Tensor) -> Macs:
    return Macs(image.numel() + image.shape[1], image.numel())


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    LayerNorm: _norm,
    nn.AdaptiveAvgPool2d: _pooling,
}


def _rule(module: nn.Module) -> Rule | None:
    return next((rule for kind, rule in RULES.items() if isinstance(module, kind)), None)


def _noting(rule: Rule, found: list[Macs]) -> Any:
    return lambda layer, inputs, out: found.append(rule(layer, inputs[0], out))


def _counted(module: Any, found: list[Macs]) -> Any:
    def forward(tokens: Tensor, *_: Any) -> Tensor:
        found.append(module.macs(tokens.shape[:3].numel()))
        return tokens

    return forward
