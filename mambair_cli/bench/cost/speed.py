"""Seconds for a megapixel, peak memory, and how both grow with the size: for each model and back end."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ...ops import BACKENDS, resolve_backend
from ...system.devices import resolve_device
from .probe import Probe, measure

Facts = dict[str, Any]
SIDES = (64, 128, 256, 512)
QUICK_SIDES = (64, 128)
REPEATS = 3


def speed(
    models: Iterable[str],
    backends: Iterable[str] = (),
    device: str = "auto",
    dtype: str = "auto",
    sides: Sequence[int] = SIDES,
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> list[Facts]:
    """A row for each model, back end and square input of these sides, untiled, each in a process of its own.

    On a GPU of NVIDIA or AMD twice: as usual and with CUDA graphs.

    Args:
        models: names or files.
        backends: of the scan; none: all that can run on the device.
        device: see `engine.Options`.
        dtype: see `engine.Options`.
        sides: of the inputs, in pixels.
        progress: is called with the share done and what is next.

    Returns:
        Rows with `seconds` (median of three, or of fewer that take long), `seconds_per_megapixel` (of the output),
        `growth` (seconds for a pixel against those at the first side) and `process` (peak memory in bytes).

    Raises:
        CallError, BackendError: no such device or back end. RestorationError: a run failed.
    """
    kind = resolve_device(device).type
    names = [resolve_backend(name, kind).name for name in backends]
    names = names or [row.name for row in BACKENDS if row.unavailable(kind, torch.float32) is None]
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
        for model in models
        for backend in names
        for graphs in ((0, 1) if kind == "cuda" else (0,))
        for side in sides
    ]
    work = [probe.height * probe.width for probe in probes]
    rows: list[Facts] = []
    for i, probe in enumerate(probes):
        progress(
            sum(work[:i]) / sum(work), f"{probe.model} {probe.backend} {probe.width}x{probe.height}"
        )
        found = measure(probe)
        pixels = probe.height * probe.width
        cost = found["seconds"] / pixels
        first = rows[-(i % len(sides))]["seconds"] / sides[0] ** 2 if i % len(sides) else cost
        rows.append(
            {
                "model": probe.model,
                "backend": probe.backend,
                "graphs": bool(probe.graphs),
                "device": found["device"],
                "width": probe.width,
                "height": probe.height,
                "seconds": found["seconds"],
                "seconds_per_megapixel": found["seconds"] / (pixels * found["scale"] ** 2 / 1e6),
                "growth": cost / first,
                "process": found["process"],
            }
        )
    return rows
