"""The network of a run: the weights it starts from, its optimiser, and how it saves memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..archs import ARCHITECTURES, name_of
from ..errors import BackendError, CallError
from ..models.catalog import model_named
from ..models.fetch import find_checkpoint
from ..models.weights import read_state
from .config import OptimiserConfig, TrainConfig

SCRATCH = "none"
"""In place of a model: start from scratch."""


def decays(name: str, parameter: Tensor, undecayed: tuple[str, ...]) -> bool:
    """Whether weight decay is for a parameter: a matrix whose name does not end in `undecayed`."""
    return parameter.ndim > 1 and not name.endswith(undecayed)


def build_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, decaying those that `decays` names."""
    undecayed = ARCHITECTURES[name_of(model)].undecayed
    decaying: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        decaying[decays(name, parameter, undecayed)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decaying[True]},
        {"params": decaying[False], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True
    )


def start_weights(model: nn.Module, config: TrainConfig, init: str) -> str:
    """Give a fresh network the weights it starts from, and say which they are.

    From scratch it enlarges as interpolation does, or returns its input. A checkpoint gives all
    tensors whose names and shapes fit; a light net for x3 that gets the body of one for x2 begins
    near bilinear too, and MambaIR's blocks that the checkpoint lacks begin by changing nothing.

    Args:
        model: the network.
        config: its recipe.
        init: a model's name or a file; "none": start from scratch; empty: the recipe's `init`.

    Raises:
        CallError: no tensor fits, or the recipe starts from weights that only the user has.
        CheckpointError: the file is damaged.
    """
    if not init and config.init:
        row, init = model_named(config.init), config.init
        if row is None or not row.bundled:
            raise CallError(
                f"this recipe starts from weights that the recipe {init!r} makes:"
                f" give their file as `init`, or `init={SCRATCH}` to start from scratch"
            )
    model.start_simply()  # type: ignore[operator]
    if init in ("", SCRATCH):
        return "from scratch"
    given, own = read_state(find_checkpoint(init)).state, model.state_dict()
    fitting = {
        key: value.float()
        for key, value in given.items()
        if key in own and value.shape == own[key].shape
    }
    if not fitting:
        raise CallError(f"no tensor of {init} fits this network")
    model.load_state_dict(fitting, strict=False)
    kind = ARCHITECTURES[name_of(model)].block
    for name, block in model.named_modules():
        given_to_it = any(key.startswith(f"{name}.") for key in fitting)
        if isinstance(block, kind) and not given_to_it:
            block.start_as_identity()  # type: ignore[operator]
    new = ", ".join(sorted(own.keys() - fitting.keys())) or "nothing"
    unused = ", ".join(sorted(given.keys() - fitting.keys())) or "nothing"
    return f"from {init}: {len(fitting)} of {len(own)} tensors; new: {new}; not taken: {unused}"


def compile_network(model: nn.Module, device: torch.device) -> None:
    """Let torch.compile fuse the network's operations around the scans, at its first step.

    Raises BackendError where the device is no GPU: torch.compile cannot trace the convolutions that
    the networks use on a CPU.
    """
    if device.type != "cuda":
        raise BackendError(f"`compile` is for NVIDIA and AMD GPUs, not for {device}; leave it out")
    model.compile()


def recompute_blocks(model: nn.Module) -> None:
    """Let blocks compute what the backward pass needs again, instead of keeping it."""
    kind = ARCHITECTURES[name_of(model)].block
    for block in model.modules():
        if isinstance(block, kind):
            block.forward = _recomputed(block.forward)


def _recomputed(forward: Any) -> Any:
    return lambda *inputs: checkpoint(forward, *inputs, use_reentrant=False)
