"""What a run will take, from a few steps on this machine: multiply-adds, memory and time."""

import time
from pathlib import Path

from torch import Tensor

from ..archs.complexity import multiply_adds
from .config import TrainConfig
from .device_batch import COPIES, step_bytes
from .inputs import Folders, Settings
from .losses import network_loss
from .schedule import Stage, stages
from .state import Run, add_gradients
from .teacher import with_teacher

STEPS = 3
"""Steps that are measured, after one to warm up."""
FEW = 4
"""Samples with which a step is measured on a CPU."""
Rows = list[tuple[str, str]]


def plan(config: TrainConfig, folders: Folders, settings: Settings, init: str) -> Rows:
    """What a run of the recipe will take on this machine, as rows of what and how much.

    On a CPU a step is measured with few samples and multiplied. Raises as `train`.
    """
    config = with_teacher(config, folders)
    run = Run(config, folders, Path(), settings, {}, init)
    parameters = sum(p.numel() for p in run.model.parameters())
    images, held_out = len(run.pairs.photos.sources), len(run.validation)
    rows: Rows = [
        ("recipe", config.summary),
        ("weights", run.notes[0]),
        ("parameters", f"{parameters:,}"),
        ("images", f"{images} to train on, {held_out} to validate, {run.skipped} skipped"),
    ]
    days = 0.0
    for stage, iterations in zip(stages(config), config.schedule.iterations, strict=True):
        seconds = step_seconds(run, stage)
        days += seconds * iterations / 86400
        rows += _stage_rows(run, stage, iterations, seconds)
    return [*rows, ("in all", f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} hours")]


def step_seconds(run: Run, stage: Stage) -> float:
    """Median time of an iteration of a stage."""
    patch, batch = stage
    device = run.engine.device
    size = run.sizes[patch] if device.type == "cuda" else min(run.sizes[patch], FEW)
    part = run.pairs.batch(0, range(size), patch, batch)
    run.model.train()
    times = []
    for _ in range(STEPS + 1):
        began = time.perf_counter()
        low, high = run.on_device(part)
        losses = add_gradients(run.model, low, high, 1.0, run.config, run.engine, run.adversary)
        run.optimiser.zero_grad(set_to_none=True)
        # waits for the device
        losses.tolist()
        times.append(time.perf_counter() - began)
    median = sorted(times[1:])[STEPS // 2]
    return median * batch / run.engine.num_processes / size


def _stage_rows(run: Run, stage: Stage, iterations: int, seconds: float) -> Rows:
    patch, batch = stage
    world, size = run.engine.num_processes, run.sizes[patch]
    macs = multiply_adds(run.averaged, patch, patch).full * batch

    def loss_of(low: Tensor, high: Tensor) -> Tensor:
        return network_loss(run.config.loss, run.adversary, run.model(low), high)

    memory = (COPIES + 1) * sum(p.nbytes for p in run.model.parameters())
    memory += size * step_bytes(run.model, run.config, patch, loss_of)
    times = batch // world // size
    return [
        (f"patches of {patch}", f"{iterations:,} iterations of {batch} samples"),
        ("  batch", f"{world} {run.engine.device.type} x {size} at once x {times} times"),
        ("  multiply-adds forward", f"{macs / 1e9:,.1f} G an iteration"),
        ("  memory of a device", f"{memory / 2**30:.2f} GiB, estimated"),
        ("  time", f"{seconds:.2f} s an iteration"),
    ]
