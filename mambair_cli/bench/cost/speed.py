"""Seconds a megapixel, peak memory, and how both grow with the size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...ops import BACKENDS, resolve_backend
from ...system.devices import resolve_device
from .probe import Probe, measure
from .rows import Table

SIDES = (64, 128, 256, 512)
QUICK_SIDES = (64, 128)
REPEATS = 3
REFERENCE = "reference"


@dataclass(frozen=True)
class SpeedRow:
    """One model on one back end and a square input of one size.

    Args:
        model: its name or file.
        backend: of the scan.
        graphs: whether calls were recorded (CUDA graphs).
        device: that it ran on.
        width: of the input, in pixels.
        height: of the input, in pixels.
        seconds: the median of three, or of fewer that take long.
        seconds_per_megapixel: of the output.
        growth: seconds a pixel, against those at the first size.
        process: peak memory of the process (on a GPU: of its memory) in bytes.
    """

    model: str
    backend: str
    graphs: bool
    device: str
    width: int
    height: int
    seconds: float
    seconds_per_megapixel: float
    growth: float
    process: int

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)


def speed(
    models: Iterable[str],
    backends: Iterable[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    sides: Sequence[int] = SIDES,
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> list[SpeedRow]:
    """A row for each model, back end and size, untiled, each model in a process of its own.

    On a GPU of NVIDIA or AMD twice: as usual and with CUDA graphs.

    Args:
        models: names or files.
        backends: of the scan; none: all that can run on the device but the reference, which is
            slow.
        device: see `Options`.
        dtype: see `Options`.
        sides: of the inputs, in pixels, the smallest first.
        progress: is called with the share done and what is next.

    Raises:
        CallError, BackendError: no such device or back end. RestorationError: a run failed.
    """
    kind = resolve_device(device).type
    names = [resolve_backend(name, kind).name for name in backends]
    if not names:
        usable = [row.name for row in BACKENDS if row.unavailable(kind, torch.float32) is None]
        names = [name for name in usable if name != REFERENCE] or usable
    series = [
        (model, backend, graphs)
        for model in models
        for backend in names
        for graphs in ((0, 1) if kind == "cuda" else (0,))
    ]
    rows = []
    for i, (model, backend, graphs) in enumerate(series):
        progress(i / len(series), f"{model} {backend}")
        probes = [
            Probe(
                model,
                side,
                side,
                backend=backend,
                device=device,
                dtype=dtype,
                tile="off",
                graphs=graphs,
                repeats=REPEATS,
            )
            for side in sides
        ]
        found = measure(*probes)
        first = found[0].seconds / sides[0] ** 2
        for side, measured in zip(sides, found, strict=True):
            cost = measured.seconds / side**2
            row = SpeedRow(
                model=model,
                backend=backend,
                graphs=bool(graphs),
                device=measured.device,
                width=side,
                height=side,
                seconds=measured.seconds,
                seconds_per_megapixel=1e6 * cost / measured.scale**2,
                growth=cost / first,
                process=measured.process,
            )
            rows.append(row)
    return rows


def speed_table(rows: Iterable[SpeedRow]) -> Table:
    """All rows, as a header and the cells below."""
    header: tuple[str, ...] = ("model", "back end", "device", "input", "seconds")
    header += ("s/megapixel of output",)
    header += ("time a pixel / at the smallest", "peak of process or GPU, MiB")
    cells: list[tuple[str, ...]] = [
        (
            row.model,
            row.backend + ", CUDA graphs" * row.graphs,
            row.device,
            f"{row.width}x{row.height}",
            f"{row.seconds:.3f}",
            f"{row.seconds_per_megapixel:.2f}",
            f"{row.growth:.2f}",
            f"{row.process / 2**20:.0f}",
        )
        for row in rows
    ]
    return header, cells
