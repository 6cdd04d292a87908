"""What a run will take: parameters, multiply-adds, memory and days, from a few steps on this machine."""

import time

import torch
from torch import Tensor

from ..archs.complexity import multiply_adds
from . import parallel
from .device_batch import COPIES, device_batches, step_bytes
from .loop import Folders, Settings, add_gradients, open_data
from .losses import build_adversary, network_loss
from .network import build_optimiser, compile_network, recompute_blocks, start_weights
from .recipe import TrainConfig, build_network
from .schedule import stages

STEPS = 3  # that are measured, after one to warm up
FEW = 4  # samples, with which a step is measured on a CPU
Rows = list[tuple[str, str]]


def plan(config: TrainConfig, folders: Folders, settings: Settings, init: str) -> Rows:
    """What a run of the recipe will take on this machine, as rows of what and how much.

    On a CPU a step is measured with few samples and multiplied.
    Raises as `train`.
    """
    engine = parallel.start(settings.device, settings.precision or parallel.DEFAULT)
    model = build_network(config)
    rows: Rows = [("recipe", config.summary), ("weights", start_weights(model, config, init))]
    rows.append(("parameters", f"{sum(p.numel() for p in model.parameters()):,}"))
    work = {patch: multiply_adds(model, patch, patch).full for patch, _ in stages(config)}
    pairs, validation, skipped = open_data(config, folders, settings)
    rows.append(
        (
            "images",
            f"{len(pairs.photos.sources)} to train on, {len(validation)} to validate, {len(skipped)} skipped",
        )
    )
    if settings.recompute:
        recompute_blocks(model)
    model = model.train().to(engine.device)
    adversary = build_adversary(config.loss, settings.vgg, engine, torch.float32)

    def loss_of(low: Tensor, high: Tensor) -> Tensor:
        return network_loss(config.loss, adversary, model(low), high)

    sizes = device_batches(model, config, loss_of, engine, settings.device_batch)
    if settings.compile:
        compile_network(model, engine.device)
    optimiser, world, days = build_optimiser(model, config.optimiser), engine.num_processes, 0.0
    for stage, iterations in zip(stages(config), config.schedule.iterations, strict=True):
        patch, batch = stage
        size = sizes[patch] if engine.device.type == "cuda" else min(sizes[patch], FEW)
        low, high = (x[:size].to(engine.device) for x in pairs.batch(0, range(size), patch, batch))
        times = []
        for _ in range(STEPS + 1):
            began = time.perf_counter()
            losses = add_gradients(model, low, high, 1.0, config, engine, adversary)
            optimiser.zero_grad(set_to_none=True)
            losses.tolist()  # waits for the device
            times.append(time.perf_counter() - began)
        seconds = sorted(times[1:])[STEPS // 2] * batch / world / size
        days += seconds * iterations / 86400
        memory = (COPIES + 1) * sum(p.nbytes for p in model.parameters())
        memory += sizes[patch] * step_bytes(model, config, patch, loss_of)
        rows += [
            (f"patches of {patch}", f"{iterations:,} iterations of {batch} samples"),
            (
                "  batch",
                f"{world} {engine.device.type} x {sizes[patch]} at once x {batch // world // sizes[patch]} times",
            ),
            ("  multiply-adds forward", f"{work[patch] * batch / 1e9:,.1f} G an iteration"),
            ("  memory of a device", f"{memory / 2**30:.2f} GiB, estimated"),
            ("  time", f"{seconds:.2f} s an iteration"),
        ]
    return [*rows, ("in all", f"{days:.1f} days" if days >= 1 else f"{24 * days:.1f} hours")]
