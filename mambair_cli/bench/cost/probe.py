"""One restoration in a process of its own, since the peak of memory is one of a process: `measure` starts it."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ...archs.mambair import MambaIR, MambaIRConfig
from ...errors import MambairError, RestorationError
from ...restore.restorer import Options, Restorer, load_restorer
from ...system.devices import peak_memory, reset_peak_memory, used_memory

Facts = dict[str, Any]
STAND_IN = "stand-in"
PATIENCE = 10.0  # seconds; after these a restoration is not repeated


@dataclass(frozen=True)
class Probe:
    """What to measure: a model (a name, a file or STAND_IN) on noise of this size.

    limit: of memory, in bytes; 0: none. graphs: shapes recorded on a GPU, see `graphs`. repeats: of the restoration,
    after one of a small image to warm up; fewer where they take longer than PATIENCE together.
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


def measure(probe: Probe) -> Facts:
    """Run a probe in a new process: tiles, seconds (median), and bytes of memory.

    `predicted` is the estimate of what the restoration takes, `measured` what it took; `process` is the peak of
    the process (on a GPU: of its memory there).

    Raises MambairError with the reason where it fails.
    """
    command = [sys.executable, "-m", __name__, json.dumps(asdict(probe))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RestorationError(
            f"{probe.model}: {(done.stderr.strip() or 'the process was killed').splitlines()[-1]}"
        )
    return dict(json.loads(done.stdout))


def run(probe: Probe) -> Facts:
    """What `measure` returns, in this process."""
    restorer = _restorer(probe)
    restorer.runner.graphs.limit = probe.graphs
    restorer.restore(np.zeros((64, 64, 3), np.uint8))
    image = np.random.default_rng(0).integers(0, 256, (probe.height, probe.width, 3), np.uint8)
    before = used_memory(restorer.device)
    tiles = restorer.plan(probe.height, probe.width)
    predicted = restorer.peak_memory(tiles)
    reset_peak_memory(restorer.device)
    seconds = []
    for _ in range(probe.repeats):
        start = time.perf_counter()
        restorer.restore(image)
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > PATIENCE:
            break
    peak = peak_memory(restorer.device)
    return {
        "tiles": len(tiles.boxes),
        "scale": restorer.scale,
        "backend": restorer.backend,
        "device": str(restorer.device),
        "predicted": predicted,
        "measured": peak - before,
        "process": peak,
        "seconds": statistics.median(seconds),
    }


def _restorer(probe: Probe) -> Restorer:
    options = Options(
        probe.device, probe.backend, probe.tile, memory_limit=probe.limit or None, dtype=probe.dtype
    )
    if probe.model == STAND_IN:
        return Restorer(stand_in(), STAND_IN, options)
    return load_restorer(probe.model, **asdict(options))


def stand_in() -> MambaIR:
    """A x2 net of one small block: with the engine around it, it fills the memory without computing for hours."""
    torch.manual_seed(0)
    return MambaIR(MambaIRConfig(8, (1,), 1, 1.0, "light_c", "pixelshuffledirect", 2))


if __name__ == "__main__":
    try:
        print(json.dumps(run(Probe(**json.loads(sys.argv[1])))))
    except MambairError as error:
        sys.exit(str(error))
