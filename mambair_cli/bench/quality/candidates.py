"""A network under test: how a benchmark runs it, and what tells its results from others'."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...archs.complexity import complexity
from ...errors import CallError, MemoryLimitError
from ...images.folders import Pixels
from ...images.resize import bicubic
from ...images.samples import to_uint8
from ...models.catalog import model_named
from ...models.fetch import find_checkpoint
from ...restore.restorer import Progress, load_restorer
from ...system.devices import peak_memory, reset_peak_memory
from ...system.files import sha256
from ..cost.timing import timed
from .protocols import Protocol
from .results import Network
from .tilers import Tiler, restore_split

Array = NDArray[Any]


class Candidate:
    """A network that takes part in a benchmark.

    Args:
        model: a name or a file.
        protocol: of the benchmark.
        tiler: auto (tiles that fit into memory), whole, or published (parts as in the published
            tests).
        ensemble: average over the eight symmetries, MambaIR+.
        device: see `Options`.
        backend: see `Options`.
        dtype: see `Options`; published figures are of fp32.
        seed: see `Options`.

    Attributes:
        name: the model's, with a plus for the ensemble, and its seed.
        network: what it is and costs.

    Raises:
        CallError: the model cannot be found, or does not do what the protocol asks.
        Others as `load_restorer`.
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
        seed: int | None = None,
    ):
        tile = "auto" if tiler == "auto" else "off"
        self.restorer = load_restorer(
            model,
            device=device,
            backend=backend,
            tile=tile,
            ensemble=ensemble,
            dtype=dtype,
            seed=seed,
        )
        scale = self.restorer.scale
        if scale < protocol.scale or (scale > 1 and protocol.scale == 1):
            raise CallError(
                f"{model} enlarges {scale} times, not {protocol.scale}; choose another `model`"
            )
        name = model if model_named(model) else Path(model).stem
        self.name = name + "+" * ensemble + ("" if seed is None else f" seed {seed}")
        self.tiler, self.ensemble, self._warm = tiler, ensemble, False
        cost = complexity(self.restorer.model)
        self.network = Network(
            sha256=sha256(find_checkpoint(model)),
            device=str(self.restorer.device),
            backend=self.restorer.backend,
            dtype=str(self.restorer.dtype).removeprefix("torch."),
            parameters=cost.parameters,
            leaf_parameters=cost.leaf_parameters,
            macs=cost.macs,
            leaf_macs=cost.leaf_macs,
            seed=seed,
        )

    def settings(self, image: Array) -> dict[str, Any]:
        """Everything but the image that decides the result and its cost, as JSON can hold it."""
        parts: Any = self.tiler
        if self.tiler != "published":
            height, width = image.shape[:2]
            plan = self.restorer.plan(height, width, image.itemsize)
            parts = [plan.tile_height, plan.tile_width, plan.tops, plan.lefts]
        drawn = {} if self.network.seed is None else {"seed": self.network.seed}
        return drawn | {
            "model": self.network.sha256,
            "ensemble": self.ensemble,
            "parts": parts,
            "device": self.network.device,
            "backend": self.network.backend,
            "dtype": self.network.dtype,
        }

    def restore(
        self, image: Array, size: tuple[int, ...], progress: Progress = lambda share: None
    ) -> Pixels:
        """The network's result at the truth's (height, width), made smaller where it is larger.

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
            result = to_uint8(result)
        return result if result.shape[:2] == size else bicubic(result, *size)

    def _restore(self, image: Array, progress: Progress) -> Array:
        return self.restorer.restore(np.ascontiguousarray(image), progress, squeeze=False)

    def measure(
        self, image: Array, size: tuple[int, ...], progress: Progress
    ) -> tuple[Pixels, float, int]:
        """As `restore`, with seconds and the peak of memory (of the process or the GPU, in bytes).

        Raises MemoryLimitError also where a tiler that was asked for does not fit.
        """
        # Kernels are loaded and memory is taken once.
        if not self._warm:
            self.restorer.restore(np.zeros((64, 64, 3), np.uint8))
            self._warm = True
        reset_peak_memory(self.restorer.device)
        largest = self.restorer.largest_tile
        result, seconds = timed(lambda: self.restore(image, size, progress))
        if self.tiler != "auto" and self.restorer.largest_tile < largest:
            raise MemoryLimitError(
                f"the image does not fit into memory with `tiler={self.tiler}`, and smaller tiles"
                " would change the result"
            )
        return result, seconds, peak_memory(self.restorer.device)


def open_candidates(models: Sequence[str], seeds: int, *given: Any) -> list[Candidate]:
    """The networks of a benchmark; those that draw at random also once for each seed from 0 on.

    Args:
        models: names or files.
        seeds: how many.
        given: the other arguments of `Candidate`, without the seed.

    Raises as `Candidate`, and CallError where seeds are asked for and no network draws.
    """
    make: Callable[..., Candidate] = Candidate
    candidates: list[Candidate] = []
    for model in models:
        candidates.append(make(model, *given))
        if hasattr(candidates[-1].restorer.model, "seed"):
            candidates += [make(model, *given, seed=seed) for seed in range(seeds)]
    if seeds and all(candidate.network.seed is None for candidate in candidates):
        raise CallError("none of these networks draws at random, only MambaIRv2; leave out `seeds`")
    return candidates
