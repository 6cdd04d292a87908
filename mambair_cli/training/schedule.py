"""The stage and the learning rate of an iteration."""

import math
from typing import NamedTuple

from .config import TrainConfig


class Stage(NamedTuple):
    """Pixels a side of a degraded patch, and samples on all devices together."""

    patch: int
    batch: int


def stages(config: TrainConfig) -> list[Stage]:
    """All stages of a recipe."""
    count, data = len(config.schedule.iterations), config.data
    patches = data.patch * count if len(data.patch) == 1 else data.patch
    batches = data.batch * count if len(data.batch) == 1 else data.batch
    return [Stage(*numbers) for numbers in zip(patches, batches, strict=True)]


def stage_at(config: TrainConfig, iteration: int) -> Stage:
    """The stage of an iteration, counted from 0; beyond the end of the run the last stage."""
    found = stages(config)
    for stage, count in zip(found, config.schedule.iterations, strict=True):
        if iteration < count:
            return stage
        iteration -= count
    return found[-1]


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """The rate of an iteration, counted from 0.

    It warms up linearly and then goes down in steps, or as a cosine that would reach `floor` in the
    iteration after the last one.
    """
    schedule, total = config.schedule, config.iterations
    warmup = max(1, round(schedule.warmup * total))
    rate = config.optimiser.lr * min(1.0, (iteration + 1) / warmup)
    if schedule.halve_at:
        return rate * 0.5 ** sum(iteration >= round(share * total) for share in schedule.halve_at)
    start = max(warmup, round(schedule.flat * total))
    fallen = 0.5 * (1 - math.cos(math.pi * max(0, iteration - start) / max(1, total - start)))
    return rate - fallen * (rate - schedule.floor)
