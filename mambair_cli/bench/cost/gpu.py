"""Speed, memory and error of the scan and of whole nets on a GPU.

Triton's kernels against mamba-ssm's, the vectorised PyTorch form, and what the GPU can do at most.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...archs.mambair import MambaIR
from ...errors import BackendError, CallError
from ...ops import BACKENDS, resolve_backend, ss2d_scan
from ...ops.scan_reference import ss2d_scan_sequential
from ...restore.restorer import BATCH_PIXELS, Options, Restorer
from ...system.devices import resolve_device
from ..cache import Cache
from .gpu_cases import (
    NETS,
    Cost,
    Failed,
    Rates,
    core,
    floor,
    gradients,
    inference,
    measure,
    scan_inputs,
    scan_module,
    training,
)
from .rows import Row

OURS, PUBLISHED, VECTORISED = "triton", "mamba-ssm", "reference"
TITLES = {OURS: OURS, PUBLISHED: PUBLISHED, VECTORISED: "vectorised PyTorch"}
SIZES = ((16, 64), (1, 256), (1, 1024))
"""Images of a batch, and their side."""
QUICK_SIZES = SIZES[:2]
LONG = 4e7
"""Numbers of x from which the vectorised form is left out where gradients are wanted."""
ENGINE_NET = "light"
# What it is called, largest tile, tiles at once, shapes that are recorded.
ENGINE_WAYS = (
    ("tiles of 128 one by one", "128", 1, 0),
    ("tiles of 128 in batches", "128", BATCH_PIXELS, 0),
    ("tiles of 128 in batches, CUDA graphs", "128", BATCH_PIXELS, 1),
    ("in one piece", "off", 1, 0),
    ("in one piece, CUDA graphs", "off", 1, 1),
)
# The sides that bars hold for.
LARGE, PATCH = 1024, 64
# Bars: how many times faster than mamba-ssm's path.
FORWARD, NET = {"light": 3.0, "classic": 2.5}, {"light": 2.5}
BACKWARD = 2.0
# Bars: the share of mamba-ssm's memory, and how many times the floor.
MEMORY, FLOOR = 0.35, 2.0
# Bars: of the largest |y| and |gradient|.
FORWARD_ERROR, GRADIENT_ERROR = 1e-5, 1e-4


def scan_report(device: str, quick: bool, cache: Cache | None = None) -> Iterator[Row]:
    """All measurements on one GPU, one after the other.

    What a cache holds of this GPU is not measured again. What does not fit into memory, cannot run
    or fails says so in its row.

    Raises:
        CallError: the device is no GPU. BackendError: it is not there, or does not run Triton.
        Whatever a failure raises that has left the GPU unusable; a new run with the same cache
        steps over it.
    """
    gpu = resolve_device(device)
    if gpu.type != "cuda":
        raise CallError(f"mambair bench scan measures cpu or cuda, not {device}")
    torch.cuda.set_device(gpu)
    resolve_backend(OURS, gpu.type)
    sizes, name = QUICK_SIZES if quick else SIZES, torch.cuda.get_device_name(gpu)
    return GpuReport(gpu, name, sizes, cache or Cache(None)).rows()


def _not_measured(what: str, failed: Failed, bar: str = "") -> Row:
    return Row(what, f"not measured ({failed})", bar)


def _ratio(
    theirs: Cost | Failed, ours: Cost | Failed, what: str, least: float | None = None
) -> Row:
    """How many times longer theirs takes than ours."""
    bar = f">= {least:g}" if least else ""
    if isinstance(theirs, Failed):
        return _not_measured(what, theirs, bar)
    if isinstance(ours, Failed):
        return _not_measured(what, ours, bar)
    ratio = theirs.seconds / ours.seconds
    text = f"{ratio:.2f} ({theirs.seconds * 1e3:.3g} / {ours.seconds * 1e3:.3g} ms)"
    return Row(what, text, bar, ratio >= least if least else None)


def _memory(
    theirs: Cost | Failed, ours: Cost | Failed, what: str, most: float | None = None
) -> Row:
    """The share of their memory that ours takes."""
    bar = f"<= {most:g}" if most else ""
    if isinstance(theirs, Failed):
        return _not_measured(what, theirs, bar)
    if isinstance(ours, Failed):
        return _not_measured(what, ours, bar)
    share = ours.memory / max(1, theirs.memory)
    return Row(what, f"{share:.2f}", bar, share <= most if most else None)


def _speed(cost: Cost | Failed, pixels: int) -> str:
    if isinstance(cost, Failed):
        return f"not measured ({cost})"
    return f"{cost}, {pixels / 1e6 / cost.seconds:.3g} megapixels of input a second"


def _compared(
    what: str,
    costs: dict[str, Cost | Failed],
    faster: float | None = None,
    leaner: float | None = None,
    pixels: int = 0,
) -> Iterator[Row]:
    """What each back end takes, and ours against the others.

    Args:
        what: was measured.
        costs: of the back ends.
        faster: how many times faster than mamba-ssm's path ours should be.
        leaner: the share of its memory that ours may take.
        pixels: of the input; 0: speeds are not told.
    """
    ours, theirs = costs[OURS], costs[PUBLISHED]
    for backend, cost in costs.items():
        yield Row(f"{what}, {TITLES[backend]}", _speed(cost, pixels) if pixels else str(cost))
    for backend in (b for b in costs if b != OURS):
        least = faster if backend == PUBLISHED else None
        yield _ratio(costs[backend], ours, f"{what}, {TITLES[backend]} / {OURS}", least)
    yield _memory(theirs, ours, f"{what}, memory, {OURS} / {PUBLISHED}", leaner)


def _restore(restorer: Restorer, image: Any, recorded: int) -> None:
    restorer.restore(image)
    if restorer.graphs != recorded:
        raise RuntimeError("nothing could be recorded")


def _by(backend: str) -> Callable[..., Tensor]:
    return partial(ss2d_scan, backend=backend)


class GpuReport:
    """The rows of one GPU.

    Args:
        device: the GPU.
        name: of the GPU.
        sizes: images of a batch and their side.
        cache: of what was measured before.
    """

    def __init__(
        self, device: torch.device, name: str, sizes: tuple[tuple[int, int], ...], cache: Cache
    ):
        self.device, self.name, self.sizes, self.cache = device, name, sizes, cache

    def rows(self) -> Iterator[Row]:
        """All rows."""
        yield from self._machine()
        for rows in (self._errors, self._forward, self._backward, self._nets, self._training):
            for name in NETS:
                yield from rows(name)
        yield from self._engine()

    def _known(self, what: str, find: Callable[[], Any]) -> Any:
        """What the cache holds, or else what is found now, as JSON can hold it; or a Failed."""
        key = f"{self.name}, PyTorch {torch.__version__}: {what}"
        kept = self.cache.get(key)
        if kept is None:
            # Whatever a kernel or a foreign package raises is told in the row.
            try:
                found = find()
            except Exception as error:
                found = Failed(f"failed: {type(error).__name__}: {error}".splitlines()[0])
            kept = {"failed": found.reason} if isinstance(found, Failed) else {"found": found}
            self.cache.put(key, kept)
            # Raises where a failure has left the GPU unusable.
            torch.cuda.synchronize()
        return Failed(kept["failed"]) if "failed" in kept else kept["found"]

    def _unavailable(self, backend: str) -> str | None:
        return next(
            b.unavailable(self.device.type, torch.float32) for b in BACKENDS if b.name == backend
        )

    def _cost(self, what: str, backend: str, function: Callable[[], object]) -> Cost | Failed:
        """What a call costs on a back end, or why that is not known."""

        def find() -> Any:
            cost = measure(function)
            return cost if isinstance(cost, Failed) else asdict(cost)

        if reason := self._unavailable(backend):
            return Failed(reason)
        value = self._known(f"{what}, {backend}", find)
        return value if isinstance(value, Failed) else Cost(**value)

    def _rates(self) -> Rates:
        # It needs Triton.
        from .gpu_rates import measure_rates

        found = self._known("rates", lambda: asdict(measure_rates()))
        if isinstance(found, Failed):
            raise BackendError(f"{self.name} cannot be measured: {found}")
        return Rates(**found)

    def _machine(self) -> Iterator[Row]:
        rates = self._rates()
        yield Row("GPU", f"{self.name}, PyTorch {torch.__version__}")
        yield Row("copy", f"{rates.bytes / 1e9:.0f} GB/s read and written")
        yield Row(
            "exponentials, multiply-adds",
            f"{rates.exponentials:.3g}, {rates.instructions:.3g} a second",
        )
        yield Row(f"back end {PUBLISHED}", self._unavailable(PUBLISHED) or "available")

    def _errors(self, name: str) -> Iterator[Row]:
        """Against float64, one step after the other."""
        config = NETS[name]

        def find() -> list[float]:
            module = scan_module(config, self.device)
            x = F.silu(torch.randn(1, 24, 24, config.inner, device=self.device)).requires_grad_()
            found = gradients(module, x, _by(OURS))
            exact = gradients(module, x.detach().double().requires_grad_(), ss2d_scan_sequential)
            return [
                ((a - b).abs().max() / b.abs().max()).item()
                for a, b in zip(found, exact, strict=True)
            ]

        found = self._known(f"{name}, errors", find)
        for what, errors, bar in (
            ("forward", slice(1), FORWARD_ERROR),
            ("gradient", slice(1, None), GRADIENT_ERROR),
        ):
            row = f"{name}, {what} error, of the largest"
            if isinstance(found, Failed):
                yield _not_measured(row, found, f"<= {bar:g}")
                continue
            largest = float(np.max(found[errors]))
            yield Row(row, f"{largest:.1e}", f"<= {bar:g}", largest <= bar)

    def _costs(
        self, what: str, calls: Mapping[str, Callable[[], object]]
    ) -> dict[str, Cost | Failed]:
        return {backend: self._cost(what, backend, call) for backend, call in calls.items()}

    def _forward(self, name: str) -> Iterator[Row]:
        config, rates = NETS[name], self._rates()
        module = scan_module(config, self.device)
        for batch, side in self.sizes:
            label = f"{name} {batch}x{side}x{side}, forward"
            with torch.inference_mode():
                x = F.silu(torch.randn(batch, side, side, config.inner, device=self.device))
                calls = {b: partial(core, module, x, _by(b)) for b in TITLES}
                costs = self._costs(f"core {label}", calls)
                scan = self._cost(
                    f"scan {label}", OURS, partial(_by(OURS), *scan_inputs(module, x))
                )
            large = side == LARGE
            yield from _compared(
                f"core {label}",
                costs,
                FORWARD.get(name) if large else None,
                MEMORY if large else None,
            )
            what, bar = f"scan {label}, {OURS} / floor", f"<= {FLOOR:g}" if large else ""
            if isinstance(scan, Failed):
                yield _not_measured(what, scan, bar)
                continue
            least = floor(config, batch * side * side, rates)
            text = f"{scan.seconds / least:.2f} ({scan.seconds * 1e3:.3g} / {least * 1e3:.3g} ms)"
            yield Row(what, text, bar, scan.seconds <= FLOOR * least if large else None)

    def _backward(self, name: str) -> Iterator[Row]:
        config = NETS[name]
        module = scan_module(config, self.device)
        for batch, side in self.sizes:
            what = f"core {name} {batch}x{side}x{side}, forward + backward"
            x = F.silu(
                torch.randn(batch, side, side, config.inner, device=self.device)
            ).requires_grad_()
            used = [b for b in TITLES if b != VECTORISED or x.numel() < LONG]
            costs = self._costs(what, {b: partial(gradients, module, x, _by(b)) for b in used})
            yield from _compared(what, costs, BACKWARD if side == PATCH else None)

    def _nets(self, name: str) -> Iterator[Row]:
        """Whole nets with fresh weights on our back end and on mamba-ssm's, in equal precision."""
        model = MambaIR(NETS[name]).to(self.device).eval()
        for dtype in (torch.float16, torch.float32):
            for batch, side in self.sizes:
                image = torch.rand(batch, 3, side, side, device=self.device)
                what = f"net {name} {batch}x{side}x{side}, {str(dtype).removeprefix('torch.')}"
                costs = self._costs(
                    what, {b: inference(model, image, b, dtype) for b in (OURS, PUBLISHED)}
                )
                yield from _compared(
                    what,
                    costs,
                    NET.get(name) if side == LARGE else None,
                    pixels=batch * side * side,
                )

    def _training(self, name: str) -> Iterator[Row]:
        batch = 16 if name == "light" else 4
        image = torch.rand(batch, 3, PATCH, PATCH, device=self.device)
        what = f"net {name} {batch}x{PATCH}x{PATCH}, float32, training step"
        costs = self._costs(what, {b: training(NETS[name], image, b) for b in (OURS, PUBLISHED)})
        yield from _compared(what, costs, pixels=batch * PATCH * PATCH)

    def _engine(self) -> Iterator[Row]:
        """Restorations from pixels to pixels: what batches of tiles and CUDA graphs gain."""
        side, model = max(side for _, side in self.sizes), MambaIR(NETS[ENGINE_NET]).eval()
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        first: dict[str, Cost | Failed] = {}
        for way, tile, batch, recorded in ENGINE_WAYS:
            options = Options(str(self.device), OURS, tile, graphs=recorded)
            restorer = Restorer(model, ENGINE_NET, options)
            restorer.largest_batch = batch
            dtype = str(restorer.dtype).removeprefix("torch.")
            what = f"engine {ENGINE_NET} {side}x{side}, {dtype}, {way}"
            cost = self._cost(what, OURS, partial(_restore, restorer, image, recorded))
            yield Row(what, _speed(cost, side * side))
            if tile in first:
                yield _ratio(first[tile], cost, f"{what}, gain")
            first.setdefault(tile, cost)
