"""A training step on the CPU, against autograd, and what the training loop adds."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...archs.ss2d import use_backend
from ...images.image import Image
from ...images.io import write_image
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
from .rows import Row, at_least, at_most
from .timing import single_thread, work_seconds

# Bars: how many times faster than autograd; the shares of time outside of the work proper, and
# waiting for data.
SPEEDUP, OUTSIDE, WAIT = 8.0, 0.10, 0.05


def light(batch: int, patch: int, iterations: int | None = None) -> TrainConfig:
    """The recipe light-x2 with another batch and patch, and for so many iterations."""
    changes = [f"data.batch={batch}", f"data.patch={patch}", "data.validation=1"]
    return read_recipe("light-x2", changes, iterations)


def step_of(config: TrainConfig, backend: str, parts: int = 1) -> Callable[[], None]:
    """Forward, backward and optimiser on random patches, the batch in so many parts."""
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


_MEMORY = """
from pathlib import Path
from mambair_cli.bench.cost.train_step import light, step_of
from mambair_cli.system import runtime
runtime.keep_freed_memory()
small, large = (step_of(light(*size), "auto") for size in ((1, 16), ({batch}, {patch})))
small()
# The peak is now what is used now.
Path("/proc/self/clear_refs").write_text("5")
peaks = []
for step in (lambda: None, large):
    step()
    lines = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
print(peaks[1] - peaks[0])
"""


def step_memory(batch: int, patch: int) -> tuple[int, int]:
    """Bytes that a step of light-x2 takes: estimated, and measured in a new process (Linux)."""
    config = light(batch, patch)
    model = build_network(config)

    def loss(low: Tensor, high: Tensor) -> Tensor:
        return pixel_loss(config.loss, model(low), high)

    words = [sys.executable, "-c", _MEMORY.format(batch=batch, patch=patch)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ)
    return batch * step_bytes(model, config, patch, loss), int(done.stdout)


def loop_shares(batch: int, patch: int, iterations: int) -> tuple[float, float]:
    """The shares of a run's time outside forward, backward and optimiser, and waiting for data."""
    config = light(batch, patch, iterations)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        data.mkdir()
        for i in range(4):
            noise = rng.integers(256, size=(480, 640, 3), dtype=np.uint8)
            write_image(data / f"{i}.png", Image(noise))
        with contextlib.redirect_stderr(io.StringIO()):
            train(config, Folders(data), out, settings=Settings("cpu"))
        # The first iteration compiles kernels.
        log = read_log(out / "log.jsonl")[1:]
    seconds = [1 / entry["it_per_s"] for entry in log]
    outside, wait = (
        float(np.average([entry[key] for entry in log], weights=seconds))
        for key in ("outside", "wait")
    )
    return outside, wait


def step_report(quick: bool = False) -> list[Row]:
    """The bars of a training step of light-x2, batch 4, 64x64 (quick: 32x32).

    Single thread, process time. Autograd takes the samples one by one, as at once they do not fit
    into the memory of a small machine.
    """
    patch = 32 if quick else 64
    with single_thread():
        ours = work_seconds(step_of(light(4, patch), "auto"), 3)
        theirs = work_seconds(step_of(light(4, patch), "reference", parts=4), 1)
        outside, wait = loop_shares(4, patch, 5 if quick else 9)
        estimated, measured = step_memory(4, patch)
    step = f"light x2 step, batch 4, {patch}x{patch}"
    speedup = theirs / ours
    return [
        at_least(
            f"{step}: autograd through the vectorised scan / ours",
            speedup,
            SPEEDUP,
            f"{speedup:.1f} ({theirs:.2f} / {ours:.2f} s)",
        ),
        at_most(
            "training loop: share of time outside forward, backward and optimiser",
            100 * outside,
            100 * OUTSIDE,
            f"{100 * outside:.1f} %",
            "%",
        ),
        at_most(
            "training loop: share of time waiting for data",
            100 * wait,
            100 * WAIT,
            f"{100 * wait:.1f} %",
            "%",
        ),
        Row(
            f"{step}: memory, estimated / measured",
            f"{estimated / 2**20:.0f} / {measured / 2**20:.0f} MiB",
        ),
    ]
