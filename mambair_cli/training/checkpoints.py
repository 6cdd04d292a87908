"""Checkpoints of a run: written whole or not at all, three are kept, damaged ones passed over."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ..errors import CallError, CheckpointError
from ..models.torch_file import read_torch_file
from ..system.files import write_atomically
from .config import TrainConfig
from .losses import Discriminator, build_discriminator_optimiser
from .network import build_optimiser
from .parallel import DEFAULT, Precision
from .recipe import build_network, checked
from .schedule import stages

KEPT = 3
"""Checkpoints that are kept."""
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    CallError,
    CheckpointError,
)
"""What reading a damaged checkpoint, or one of wrong content, raises."""


def paths(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    return sorted(folder.glob("checkpoint-*.pt"), reverse=True)


def save(folder: Path, iteration: int, state: Mapping[str, Any]) -> None:
    """Write the state after `iteration` steps and remove all but the last three. Raises OSError."""
    buffer = io.BytesIO()
    torch.save({**state, "iteration": iteration}, buffer)
    write_atomically(folder / f"checkpoint-{iteration:08}.pt", buffer.getvalue())
    for old in paths(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load(folder: Path, config: TrainConfig) -> tuple[dict[str, Any], list[str]]:
    """The newest state of a recipe that is whole, and for each newer one why it is passed over.

    Raises:
        CallError: there is none at all, or only those of another recipe.
        CheckpointError: all are damaged.
    """
    found, foreign = paths(folder), False
    passed: list[str] = []
    if not found:
        raise CallError(f"{folder} holds no checkpoint: there is nothing to resume")
    for path in found:
        try:
            state = _read(path)
            same = _recipe_of(state) == config
            if same:
                check(state, config)
                return state, passed
        except UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            passed.append(f"{path} is damaged ({reason}) and is passed over")
        else:
            foreign = True
            passed.append(f"{path} is of another recipe and is passed over")
    if foreign:
        raise CallError(
            f"{folder} is a run of another recipe, or of this one with other changes or iterations;"
            f" resume with {folder}/recipe.json, or start another with its weights as `init`"
        )
    reasons = "; ".join(passed)
    raise CheckpointError(
        f"no checkpoint of {folder} can be read: {reasons}; start anew with another `out`"
    )


def _read(path: Path) -> dict[str, Any]:
    """The content of a file of torch.save, whose checksums are right."""
    state = read_torch_file(path)
    if not isinstance(state, dict):
        raise TypeError("it holds no dictionary")
    return state


def _recipe_of(state: Mapping[str, Any]) -> TrainConfig:
    """The recipe that a state is of; fields that are newer than the state have their defaults."""
    return checked(json.loads(state["config"]), "recipe")


def check(state: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise one of UNREADABLE where a state is not what `Run.save` writes for this recipe."""
    counts = {"iteration": config.iterations, "skips": config.iterations, "bad": config.iterations}
    for name, most in counts.items():
        if type(state[name]) is not int or not 0 <= state[name] <= most:
            raise ValueError(f"{name} is {state[name]!r}")
    if not isinstance(state["best"], (int, float)):
        raise ValueError(f"best is {state['best']!r}")
    if not all(isinstance(loss, float) for loss in state["losses"]):
        raise ValueError("losses are no numbers")
    precision = state.get("precision", DEFAULT)
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}")
    for world, sizes in state.get("sizes", {}).items():
        for patch, batch in stages(config):
            if sizes[patch] < 1 or batch // world % sizes[patch]:
                raise ValueError(f"{sizes[patch]} samples at once do not divide the batch")
    network = build_network(config)
    for name in ("model", "ema"):
        _check_tensors(state[name], network.state_dict(), name)
    _check_optimiser(state["optimiser"], build_optimiser(network, config.optimiser))
    if config.loss.perceptual or config.loss.adversarial:
        discriminator, saved = Discriminator(), state["adversary"]
        _check_tensors(saved["discriminator"], discriminator.state_dict(), "discriminator")
        optimiser = build_discriminator_optimiser(discriminator, config.loss)
        _check_optimiser(saved["optimiser"], optimiser)


def _check_tensors(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    if saved.keys() != expected.keys():
        differing = sorted(saved.keys() ^ expected.keys())
        raise ValueError(f"{what} lacks {differing[0]} or should not have it")
    for key, tensor in expected.items():
        if saved[key].shape != tensor.shape or not saved[key].is_floating_point():
            raise ValueError(f"{what}: {key} is {saved[key].dtype} {tuple(saved[key].shape)}")


def _check_optimiser(saved: dict[str, Any], fresh: torch.optim.Optimizer) -> None:
    """`fresh` is an optimiser of the recipe without any state; it takes the saved one."""
    settings = [(group["betas"], group["weight_decay"]) for group in fresh.param_groups]
    fresh.load_state_dict(saved)
    loaded = [(tuple(group["betas"]), group["weight_decay"]) for group in fresh.param_groups]
    if loaded != settings:
        raise ValueError("the optimiser has other settings than the recipe")
    for parameter, moments in fresh.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != parameter.shape:
                raise ValueError(f"the optimiser's {name} is {tuple(moments[name].shape)}")
        if moments["step"].numel() != 1:
            raise ValueError("the optimiser's step is no number")
