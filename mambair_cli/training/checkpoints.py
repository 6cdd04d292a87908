"""Checkpoints of a run: written whole or not at all, three are kept, damaged ones passed over."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CallError, CheckpointError
from ..models.weights import write_atomically

KEPT = 3
"""Checkpoints that are kept."""


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


def load(folder: Path, recipe: str) -> tuple[dict[str, Any], list[str]]:
    """The newest state that can be read, and for each newer one why it cannot.

    Raises:
        CallError: there is none at all, or it is of another recipe.
        CheckpointError: all are damaged.
    """
    found, passed = paths(folder), []
    if not found:
        raise CallError(f"{folder} holds no checkpoint: there is nothing to resume")
    for path in found:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            same = state["config"] == recipe
        except (
            OSError,
            RuntimeError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            pickle.UnpicklingError,
        ) as error:
            passed.append(f"{path} is damaged ({type(error).__name__}) and is passed over")
            continue
        if not same:
            raise CallError(
                f"{path} is of another recipe, or of the same one with other changes or iterations;"
                f" resume with {folder}/recipe.json, or start another run with these weights as `init`"
            )
        return state, passed
    reasons = "; ".join(passed)
    raise CheckpointError(
        f"no checkpoint of {folder} can be read: {reasons}; start anew with another `out`"
    )
