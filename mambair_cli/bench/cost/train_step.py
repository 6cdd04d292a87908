"""The speed of a training step on the CPU, against autograd through a vectorised scan, and what the loop adds."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...archs.ss2d import use_backend
from ...images.image import Image
from ...images.io import write_image
from ...system import runtime
from ...training.config import TrainConfig
from ...training.device_batch import step_bytes
from ...training.inputs import Folders, Settings
from ...training.loop import train
from ...training.losses import pixel_loss
from ...training.network import build_optimiser
from ...training.parallel import SingleProcess
from ...training.recipe import build_network, read_recipe
from ...training.state import add_gradients
from ...training.watch import read_log

Facts = dict[str, Any]
SPEEDUP, OUTSIDE, WAIT = 8.0, 0.10, 0.05  # bars
"""How many times faster than autograd, and the shares of time outside of the work proper and waiting for data."""


def light(batch: int, patch: int) -> TrainConfig:
    """The recipe light-x2 with another batch."""
    return read_recipe(
        "light-x2", [f"data.batch={batch}", f"data.patch={patch}", "data.validation=1"]
    )


def step_of(config: TrainConfig, backend: str, parts: int = 1) -> Callable[[], None]:
    """A training step with random patches: forward, backward, optimiser; the batch in so many parts."""
    torch.manual_seed(0)
    model, engine = build_network(config), SingleProcess(torch.device("cpu"), False)
    use_backend(model, backend)
    optimiser = build_optimiser(model, config.optimiser)
    batch, patch = config.data.batch[0], config.data.patch[0]
    lows = torch.rand(batch, 3, patch, patch).chunk(parts)
    highs = torch.rand(batch, 3, patch * config.scale, patch * config.scale).chunk(parts)

    def step() -> None:
        for low, high in zip(lows, highs, strict=True):
            add_gradients(model, low, high, 1 / parts, config, engine, None)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None], repeats: int) -> float:
    """Median process time, after one call to warm up."""
    step()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return sorted(times)[repeats // 2]


_MEMORY = """
from pathlib import Path
from mambair_cli import runtime
from mambair_cli.training import speed
runtime.keep_freed_memory()
small, large = speed.step_of(speed.light(1, 16), "auto"), speed.step_of(speed.light({batch}, {patch}), "auto")
small()
Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is used now
peaks = []
for step in (lambda: None, large):
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
print(peaks[1] - peaks[0])
"""


def step_memory(batch: int, patch: int) -> tuple[int, int]:
    """Bytes that a step of light-x2 takes: estimated, and measured in a process of its own (Linux)."""
    config = light(batch, patch)
    model = build_network(config)

    def loss(low: Tensor, high: Tensor) -> Tensor:
        return pixel_loss(config.loss, model(low), high)

    words = [sys.executable, "-c", _MEMORY.format(batch=batch, patch=patch)]
    measured = subprocess.run(
        words, check=True, capture_output=True, text=True, env=os.environ
    ).stdout
    return batch * step_bytes(model, config, patch, loss), int(measured)


def loop_shares(batch: int, patch: int, iterations: int) -> tuple[float, float]:
    """Of the time of a run of light-x2: what is outside forward, backward and optimiser, and waiting for data."""
    config = read_recipe(
        "light-x2", [f"data.batch={batch}", f"data.patch={patch}", "data.validation=1"], iterations
    )
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        data.mkdir()
        for i in range(4):
            write_image(
                data / f"{i}.png", Image(rng.integers(256, size=(480, 640, 3), dtype=np.uint8))
            )
        with contextlib.redirect_stderr(io.StringIO()):
            train(config, Folders(data), out, settings=Settings("cpu"))
        log = read_log(out / "log.jsonl")[1:]  # the first iteration compiles kernels
    seconds = [1 / entry["it_per_s"] for entry in log]
    shares = [
        np.average([entry[key] for entry in log], weights=seconds) for key in ("outside", "wait")
    ]
    return float(shares[0]), float(shares[1])


def step_report(quick: bool = False) -> list[Facts]:
    """The bars of a training step of light-x2, batch 4, 64x64 (quick: 32x32): rows of what, value, bar and met.

    Single thread, process time. The scan that autograd goes through takes the samples one by one, as at once they
    do not fit into the memory of a small machine.
    """
    runtime.keep_freed_memory()
    threads, patch = torch.get_num_threads(), 32 if quick else 64
    torch.set_num_threads(1)
    try:
        ours = _seconds(step_of(light(4, patch), "auto"), 3)
        theirs = _seconds(step_of(light(4, patch), "reference", parts=4), 1)
        outside, wait = loop_shares(4, patch, 5 if quick else 9)
        estimated, measured = step_memory(4, patch)
    finally:
        torch.set_num_threads(threads)
    what = f"light x2 step, batch 4, {patch}x{patch}"
    return [
        {
            "what": f"{what}: autograd through the vectorised scan / ours",
            "value": f"{theirs / ours:.1f} ({theirs:.2f} / {ours:.2f} s)",
            "bar": f">= {SPEEDUP:g}",
            "met": theirs / ours >= SPEEDUP,
        },
        {
            "what": "training loop: share of time outside forward, backward and optimiser",
            "value": f"{100 * outside:.1f} %",
            "bar": f"<= {100 * OUTSIDE:g} %",
            "met": outside <= OUTSIDE,
        },
        {
            "what": "training loop: share of time waiting for data",
            "value": f"{100 * wait:.1f} %",
            "bar": f"<= {100 * WAIT:g} %",
            "met": wait <= WAIT,
        },
        {
            "what": f"{what}: memory, estimated / measured",
            "value": f"{estimated / 2**20:.0f} / {measured / 2**20:.0f} MiB",
            "bar": "",
            "met": None,
        },
    ]
