"""How many samples a device takes at once, so that a step fits into its memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CallError
from ..system.devices import free_memory
from .parallel import processes_here
from .recipe import TrainConfig
from .schedule import stages

MEMORY_SHARE = 0.6  # of what is free now
MARGIN = 1.2  # what a step takes beyond what is kept for the backward pass (`mambair bench train` measures 1.03)
COPIES = 4  # of the weights: gradients, two moments, averaged weights


def kept_bytes(function: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that are kept for the backward pass of what the function computes, without the model's weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()  # alive until all is counted, so that no place in memory is used twice
    total = sum(kept.values())
    del result
    return total


def step_bytes(
    model: nn.Module, config: TrainConfig, patch: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> int:
    """Estimated bytes that each sample adds to a step. `loss` is that of degraded patches and truths."""
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
    """Samples that each device takes at once, by patch: the most that fit and divide its share of the batch.

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
            raise CallError(
                f"a batch of {batch} cannot be shared by {engine.num_processes} processes; set data.batch"
            )
        if asked:
            if share % asked:
                raise CallError(
                    f"--device-batch {asked} does not divide the {share} samples of a process"
                )
            sizes[patch] = asked
            continue
        budget = MEMORY_SHARE * free_memory(engine.device) / local - state
        each = step_bytes(model, config, patch, loss)
        sizes[patch] = max(
            n for n in range(1, share + 1) if share % n == 0 and (n == 1 or n * each <= budget)
        )
    return sizes
