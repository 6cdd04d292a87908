"""One restoration in a process of its own, since the peak of memory is one of a process."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ...archs.mambair import MambaIR, MambaIRConfig
from ...errors import MambairError, RestorationError
from ...restore.restorer import Options, Restorer, load_restorer
from ...system.devices import peak_memory, reset_peak_memory, used_memory
from .timing import median_seconds

STAND_IN = "stand-in"
PATIENCE = 10.0
"""Seconds after which a restoration is not repeated."""


@dataclass(frozen=True)
class Probe:
    """What to measure: a model on noise of this size.

    Args:
        model: a name, a file or STAND_IN.
        height: of the input, in pixels.
        width: of the input, in pixels.
        limit: of memory, in bytes; 0: none.
        backend: see `Options`.
        device: see `Options`.
        tile: see `Options`.
        dtype: see `Options`.
        graphs: see `Options`.
        repeats: of the restoration, after one of a small image to warm up; fewer where they take
            longer than PATIENCE together.
    """

    model: str
    height: int
    width: int
    limit: int = 0
    backend: str = "auto"
    device: str = "auto"
    tile: str = "auto"
    dtype: str = "auto"
    graphs: int = 0
    repeats: int = 1


@dataclass(frozen=True)
class Measured:
    """What a probe found.

    Args:
        tiles: how many the image was cut into.
        scale: of the model.
        backend: that ran.
        device: that it ran on.
        predicted: bytes that the restoration should take, by the estimate.
        measured: bytes that it took.
        process: peak of the process in bytes (on a GPU: of its memory there).
        seconds: the median.
    """

    tiles: int
    scale: int
    backend: str
    device: str
    predicted: int
    measured: int
    process: int
    seconds: float


def measure(*probes: Probe) -> list[Measured]:
    """Run probes in one new process, small images before large ones.

    Raises RestorationError with the reason where one fails.
    """
    command = [sys.executable, "-m", __name__, json.dumps([asdict(probe) for probe in probes])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        told = done.stderr.strip() or "the process was killed"
        raise RestorationError(f"{probes[0].model}: {told.splitlines()[-1]}")
    return [Measured(**found) for found in json.loads(done.stdout)]


def run(probe: Probe) -> Measured:
    """What `measure` returns for a probe, in this process."""
    restorer = _restorer(probe)
    restorer.restore(np.zeros((64, 64, 3), np.uint8))
    image = np.random.default_rng(0).integers(0, 256, (probe.height, probe.width, 3), np.uint8)
    before = used_memory(restorer.device)
    tiles = restorer.plan(probe.height, probe.width)
    predicted = restorer.peak_memory(tiles)
    reset_peak_memory(restorer.device)
    seconds = median_seconds(
        lambda: restorer.restore(image), probe.repeats, warm_up=False, patience=PATIENCE
    )
    peak = peak_memory(restorer.device)
    return Measured(
        tiles=len(tiles.boxes),
        scale=restorer.scale,
        backend=restorer.backend,
        device=str(restorer.device),
        predicted=predicted,
        measured=peak - before,
        process=peak,
        seconds=seconds,
    )


def _restorer(probe: Probe) -> Restorer:
    options = Options(
        probe.device,
        probe.backend,
        probe.tile,
        memory_limit=probe.limit or None,
        dtype=probe.dtype,
        graphs=probe.graphs,
    )
    if probe.model == STAND_IN:
        return Restorer(stand_in(), STAND_IN, options)
    return load_restorer(probe.model, **asdict(options))


def stand_in() -> MambaIR:
    """A net of one small block that enlarges twice: it fills the memory in little time."""
    torch.manual_seed(0)
    return MambaIR(MambaIRConfig(8, (1,), 1, 1.0, "light_c", "pixelshuffledirect", 2))


if __name__ == "__main__":
    try:
        wanted = [Probe(**probe) for probe in json.loads(sys.argv[1])]
        print(json.dumps([asdict(run(probe)) for probe in wanted]))
    except MambairError as error:
        sys.exit(str(error))
