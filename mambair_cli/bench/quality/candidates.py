"""A network under test: how a benchmark runs it, and what tells its results from others'."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...archs.complexity import complexity
from ...errors import CallError, MemoryLimitError
from ...images.folders import Pixels
from ...images.resize import bicubic
from ...models.catalog import model_named
from ...models.fetch import find_checkpoint
from ...restore.restorer import Progress, load_restorer
from ...system.devices import peak_memory, reset_peak_memory
from ...system.files import sha256
from .protocols import Protocol
from .tilers import Tiler, restore_split

Array = NDArray[Any]


class Candidate:
    """A network that takes part in a benchmark.

    Args:
        model: a name or a file.
        protocol: of the benchmark.
        tiler: auto (tiles that fit into memory), whole, or published (the parts of the published tests).
        ensemble: average over the eight symmetries, MambaIR+.
        device: see `engine.Options`.
        backend: see `engine.Options`.
        dtype: see `engine.Options`; published figures are of fp32.

    Attributes:
        name: the model's, with a plus for the ensemble. sha256: of its file. facts: what it is and costs.

    Raises CallError where the model cannot be found or does not do what the protocol asks; others as `load_restorer`.
    """

    def __init__(
        self,
        model: str,
        protocol: Protocol,
        tiler: Tiler = "auto",
        ensemble: bool = False,
        device: str = "auto",
        backend: str = "auto",
        dtype: str = "fp32",
    ):
        tile = "auto" if tiler == "auto" else "off"
        self.restorer = load_restorer(
            model, device=device, backend=backend, tile=tile, ensemble=ensemble, dtype=dtype
        )
        scale = self.restorer.scale
        if scale < protocol.scale or (scale > 1 and protocol.scale == 1):
            raise CallError(
                f"{model} enlarges {scale} times, not {protocol.scale}; choose another model with -m"
            )
        self.name = (model if model_named(model) else Path(model).stem) + "+" * ensemble
        self.sha256 = sha256(find_checkpoint(model))
        self.tiler, self.ensemble, self._warm = tiler, ensemble, False
        cost = complexity(self.restorer.model)
        self.facts = {
            "name": self.name,
            "sha256": self.sha256,
            "device": str(self.restorer.device),
            "backend": self.restorer.backend,
            "dtype": self._dtype,
            **vars(cost),
        }

    def settings(self, image: Array) -> dict[str, Any]:
        """All that decides the result for an image and how long it takes, besides the image, as JSON can hold it."""
        parts: Any = self.tiler
        if self.tiler != "published":
            height, width = image.shape[:2]
            plan = self.restorer.plan(height, width, image.itemsize)
            parts = [plan.tile_height, plan.tile_width, plan.tops, plan.lefts]
        return {
            "model": self.sha256,
            "ensemble": self.ensemble,
            "parts": parts,
            "device": str(self.restorer.device),
            "backend": self.restorer.backend,
            "dtype": self._dtype,
        }

    @property
    def _dtype(self) -> str:
        return str(self.restorer.dtype).removeprefix("torch.")

    def restore(
        self, image: Array, size: tuple[int, ...], progress: Progress = lambda share: None
    ) -> Pixels:
        """The network's result as pixels of the truth's (height, width); bicubic where it enlarges further.

        Floats beyond [0, 1] reach the network as they are. Raises as `Restorer.restore`.
        """
        if self.tiler == "published":
            done = 0.0

            def part(crop: Array, share: float) -> Array:
                nonlocal done
                before = done
                done += share
                return self._restore(crop, lambda inner: progress(min(1.0, before + share * inner)))

            result = restore_split(image, self.restorer.scale, part)
        else:
            result = self._restore(image, progress)
        if result.dtype != np.uint8:
            result = (result * 255 + 0.5).astype(np.uint8)
        return result if result.shape[:2] == size else bicubic(result, *size)

    def _restore(self, image: Array, progress: Progress) -> Array:
        return self.restorer.restore(np.ascontiguousarray(image), progress, squeeze=False)

    def measure(
        self, image: Array, size: tuple[int, ...], progress: Progress
    ) -> tuple[Pixels, float, int]:
        """As `restore`, with the seconds it took and the peak of memory (of the process or the GPU, in bytes).

        Raises MemoryLimitError also where a tiler that was asked for does not fit.
        """
        if not self._warm:  # kernels are loaded and memory is taken once
            self.restorer.restore(np.zeros((64, 64, 3), np.uint8))
            self._warm = True
        reset_peak_memory(self.restorer.device)
        started, largest = time.perf_counter(), self.restorer.largest_tile
        result = self.restore(image, size, progress)
        seconds = time.perf_counter() - started
        if self.tiler != "auto" and self.restorer.largest_tile < largest:
            raise MemoryLimitError(
                f"--tiler {self.tiler} does not fit into memory, and tiles would change the result"
            )
        return result, seconds, peak_memory(self.restorer.device)
