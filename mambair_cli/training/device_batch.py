"""How many samples a device takes at once, so that a step fits into its memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CallError
from ..system.devices import free_memory
from .config import TrainConfig
from .parallel import processes_here
from .schedule import stages

MEMORY_SHARE = 0.6
"""Share of the memory that is free now."""
MARGIN = 1.2
"""What a step takes, in what its backward pass keeps; `mambair bench train` measures 1.03."""
COPIES = 4
"""Copies of the weights: gradients, two moments, averaged weights."""


def kept_bytes(function: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes kept for the backward pass of what a function computes, without the model's weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # alive until all is counted, so that no place in memory is used twice
        result = function()
    total = sum(kept.values())
    del result
    return total


def step_bytes(
    model: nn.Module, config: TrainConfig, patch: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> int:
    """Estimate of the bytes that each sample adds to a step; `loss` takes patches and truths."""
    some = next(model.parameters())
    low = some.new_zeros(1, config.channels, patch, patch)
    high = some.new_zeros(1, config.channels, patch * config.scale, patch * config.scale)
    return int(MARGIN * kept_bytes(lambda: loss(low, high), model))


def device_batches(
    model: nn.Module,
    config: TrainConfig,
    loss: Callable[[Tensor, Tensor], Tensor],
    engine: Any,
    asked: int | None,
) -> dict[int, int]:
    """How many samples each device takes at once, by patch: the most that fit and divide its share.

    Args:
        model: on its device.
        config: the recipe.
        loss: see `step_bytes`.
        engine: see `parallel.start`.
        asked: instead of what fits.

    Raises:
        CallError: the processes, or what was asked for, do not divide a batch.
    """
    local = processes_here() if engine.device.type == "cpu" else 1
    state = COPIES * sum(p.nbytes for p in model.parameters())
    sizes = {}
    for patch, batch in stages(config):
        share, left = divmod(batch, engine.num_processes)
        if left:
            processes = f"{engine.num_processes} processes"
            raise CallError(f"a batch of {batch} cannot be shared by {processes}; set data.batch")
        if asked:
            if share % asked:
                raise CallError(
                    f"`device_batch={asked}` does not divide the {share} samples of a process"
                )
            sizes[patch] = asked
            continue
        budget = MEMORY_SHARE * free_memory(engine.device) / local - state
        each = step_bytes(model, config, patch, loss)
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        sizes[patch] = max(n for n in divisors if n == 1 or n * each <= budget)
    return sizes
