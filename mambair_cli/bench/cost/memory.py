"""Predicted and measured peaks of memory, and how a limit is kept."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RestorationError
from ...images.image import Image
from ...images.io import write_image
from ...models.weights import save_network
from ...system.devices import resolve_device
from .probe import STAND_IN, Probe, measure, stand_in

Facts = dict[str, Any]
COMMAND_WIDTH = 8000

# In a small process, as the peak of a new process begins with that of the one that started it.
_PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def memory(name_or_file: str) -> list[Facts]:
    """Rows of what `probe.measure` tells: a model at several sizes, a stand-in under a limit, and whole commands."""
    limit = 2**30
    probes = [Probe(name_or_file, side, side) for side in (128, 256, 512)]
    probes += [Probe(STAND_IN, height, 4096, limit) for height in (256, 1024, 4096, 16384)]
    rows = [
        {
            "model": probe.model,
            "megapixels": probe.height * probe.width / 2**20,
            "limit": probe.limit,
            **measure(probe),
        }
        for probe in probes
    ]
    if hasattr(os, "wait4") and resolve_device("auto").type == "cpu":
        rows += [command(height, 1500 * 2**20) for height in (1250, 12500)]  # 10 and 100 megapixels
    return rows


def command(height: int, limit: int) -> Facts:
    """`mambair upscale -s 2` of a PNG file to a PNG file with the stand-in: seconds, and the peak of its process.

    Raises RestorationError where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, weights = Path(folder) / "in.png", Path(folder) / f"{STAND_IN}.safetensors"
        rows, columns = (np.arange(side) // 32 for side in (height, COMMAND_WIDTH))
        planes = (
            np.add.outer(*(axis.astype(np.uint8) * k for axis in (rows, columns)))
            for k in (1, 2, 3)
        )
        write_image(source, Image(np.dstack(list(planes))))
        model = stand_in()
        save_network(weights, model, model.state_dict(), {})
        start = time.perf_counter()
        options = [
            "-o",
            str(source.with_name("out.png")),
            "-s",
            "2",
            "-m",
            str(weights),
            "--memory-limit",
            str(limit),
        ]
        arguments = [sys.executable, "-m", "mambair_cli", "upscale", str(source), *options]
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *arguments], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise RestorationError(f"mambair upscale of {height} x {COMMAND_WIDTH} pixels failed")
    return {
        "model": f"{STAND_IN}, whole command",
        "megapixels": height * COMMAND_WIDTH / 1e6,
        "limit": limit,
        "tiles": None,
        "predicted": None,
        "measured": None,
        "process": int(done.stdout) * 1024,
        "seconds": time.perf_counter() - start,
    }
