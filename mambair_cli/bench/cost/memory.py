"""Predicted and measured peaks of memory, and how a limit is kept."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import RestorationError
from ...images.image import Image
from ...images.io import write_image
from ...models.weights import save_network
from ...system.devices import resolve_device
from .probe import STAND_IN, Probe, measure, stand_in
from .rows import Table
from .timing import timed

COMMAND_WIDTH = 8000
LIMIT, COMMAND_LIMIT = 2**30, 1500 * 2**20
CommandLine = Callable[[Path, Path, Path, int], list[str]]
"""What enlarges a file to another, twice, by a file of weights, within so many bytes of memory."""

# In a small process, as the peak of a new process begins with that of the one that started it.
_PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class MemoryRow:
    """What a restoration took.

    Args:
        model: its name or file.
        megapixels: of the input.
        limit: bytes that the process may take; 0: no limit.
        tiles: how many the image was cut into; None, like the next two: not known of a command.
        predicted: bytes that the restoration should take, by the estimate.
        measured: bytes that it took.
        process: peak of the process in bytes.
        seconds: that it took.
        scale: of the model; None, like the next two: not known of a command.
        backend: that ran.
        device: that it ran on.
    """

    model: str
    megapixels: float
    limit: int
    tiles: int | None
    predicted: int | None
    measured: int | None
    process: int
    seconds: float
    scale: int | None = None
    backend: str | None = None
    device: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by their names; what is said of the engine only where it is known."""
        facts = asdict(self)
        for key in ("scale", "backend", "device"):
            if facts[key] is None:
                del facts[key]
        return facts


def memory(name_or_file: str, command_line: CommandLine) -> list[MemoryRow]:
    """Rows for a model at several sizes, for a stand-in under a limit, and for whole commands."""
    probes = [Probe(name_or_file, side, side) for side in (128, 256, 512)]
    probes += [Probe(STAND_IN, height, 4096, LIMIT) for height in (256, 1024, 4096, 16384)]
    rows = []
    for probe in probes:
        megapixels = probe.height * probe.width / 2**20
        (found,) = measure(probe)
        rows.append(MemoryRow(probe.model, megapixels, probe.limit, **asdict(found)))
    if hasattr(os, "wait4") and resolve_device("auto").type == "cpu":
        # 10 and 100 megapixels.
        rows += [command(height, COMMAND_LIMIT, command_line) for height in (1250, 12500)]
    return rows


def command(height: int, limit: int, command_line: CommandLine) -> MemoryRow:
    """What a command takes from a PNG file to a PNG file with the stand-in.

    Raises RestorationError where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, weights = Path(folder) / "in.png", Path(folder) / f"{STAND_IN}.safetensors"
        write_image(source, Image(_steps(height, COMMAND_WIDTH)))
        model = stand_in()
        save_network(weights, model, model.state_dict(), {})
        arguments = command_line(source, source.with_name("out.png"), weights, limit)
        words = [sys.executable, "-c", _PEAK, *arguments]
        done, seconds = timed(partial(subprocess.run, words, stdout=subprocess.PIPE, text=True))
        if done.returncode:
            raise RestorationError(
                f"enlarging an image of {height} x {COMMAND_WIDTH} pixels failed"
            )
    return MemoryRow(
        model=f"{STAND_IN}, whole command",
        megapixels=height * COMMAND_WIDTH / 1e6,
        limit=limit,
        tiles=None,
        predicted=None,
        measured=None,
        process=int(done.stdout) * 1024,
        seconds=seconds,
    )


def _steps(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height,width,3): squares of 32 pixels, which PNG stores in little."""
    rows, columns = (np.arange(side) // 32 for side in (height, width))
    planes = [
        np.add.outer(rows.astype(np.uint8) * k, columns.astype(np.uint8) * k) for k in (1, 2, 3)
    ]
    return np.dstack(planes)


def memory_table(rows: Iterable[MemoryRow]) -> Table:
    """All rows, as a header and the cells below."""
    header: tuple[str, ...] = ("model", "megapixels", "tiles", "predicted, MiB", "measured")
    header += ("ratio", "whole process", "limit", "seconds")
    cells: list[tuple[str, ...]] = []
    for row in rows:
        parts = ("", "", "", "")
        if row.predicted and row.measured:
            ratio = row.predicted / row.measured
            parts = (str(row.tiles), _mib(row.predicted), _mib(row.measured), f"{ratio:.2f}")
        limit = _mib(row.limit) if row.limit else "none"
        end = (_mib(row.process), limit, f"{row.seconds:.1f}")
        cells.append((row.model, f"{row.megapixels:g}", *parts, *end))
    return header, cells


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f}"
