"""What a folder of many small files costs besides the network: listing, skipping, the summary."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...batch.jobs import find_jobs
from ...batch.manifest import Record
from ...batch.restore_files import Outcome, Plan, Request, manifest_of, plan_files, restore_files
from ...images.image import Image, each_frame
from ...images.io import write_image
from ...models.catalog import model_named
from ...models.choice import Choice
from ...models.tasks import TASKS
from ...restore.condition import UNKNOWN, Finding
from ...restore.runner import Progress
from ...restore.size import Size
from ...restore.upscaler import Upscaler
from ...system.devices import peak_memory, reset_peak_memory, resolve_device, used_memory
from .rows import Row, at_most

SKIPPED, RESTORED = 100_000, 10_000
"""Files that are listed and skipped, and files that are restored."""

QUICK = 20
"""How many times fewer files a quick run has."""

SIDE = 16
"""Pixels a side of the tiny photos."""

PER_FOLDER = 1000
"""Files in a subfolder."""

MOST_TIME, MOST_MEMORY = 10.0, 1024
"""The bars for a file, in milliseconds and in bytes."""

MODEL = "tiny-x2"
"""The model whose name the stand-in bears."""


class StandIn:
    """Enlarges by repeating pixels, in place of a network.

    Attributes:
        seconds: that this has taken so far.
        cpu: seconds of the processor that this has taken so far.
    """

    def __init__(self) -> None:
        self.name, self.scale, self.backend, self.device = MODEL, 2, "stand-in", "cpu"
        self.choice = Choice(model=MODEL)
        self.seconds = self.cpu = 0.0

    def measure(self, image: Image) -> Finding:
        """Nothing is known of the image."""
        return UNKNOWN

    def chain(self, scale: float, found: Finding = UNKNOWN) -> list["StandIn"]:
        """The networks that run: this one."""
        return [self]

    def tiles(self, size: Size, height: int, width: int, found: Finding = UNKNOWN) -> int:
        """One: it never cuts."""
        return 1

    def restore_image(self, image: Image, size: Size, report: Progress, found: Finding) -> Image:
        """Twice as large."""
        started, worked = time.perf_counter(), time.thread_time()

        def doubled(frame: Image, _: Progress) -> Image:
            return replace(frame, pixels=frame.pixels.repeat(2, axis=0).repeat(2, axis=1))

        result = each_frame(image, doubled, report)
        self.seconds += time.perf_counter() - started
        self.cpu += time.thread_time() - worked
        return result


@dataclass(frozen=True)
class _Cost:
    """Seconds on the clock and of the processor, and bytes by which the process grew at most."""

    wall: float
    cpu: float
    memory: int


def folder_report(quick: bool, summary: Callable[[Plan, Outcome], None]) -> list[Row]:
    """What listing, skipping and restoring cost for each file, in time and memory.

    Args:
        quick: with fewer files.
        summary: tells what came of a run; it is measured as well.
    """
    share = QUICK if quick else 1
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        return [
            *_skipping(top / "skipped", SKIPPED // share, summary),
            *_restoring(top / "restored", RESTORED // share, summary),
        ]


def _skipping(top: Path, count: int, summary: Callable[[Plan, Outcome], None]) -> list[Row]:
    """A folder in which all is done."""
    request = _make_photos(top, count)
    plan = plan_files(request)
    manifest = manifest_of(plan)
    assert manifest
    known = {"size_in": [SIDE, SIDE], "size_out": [2 * SIDE, 2 * SIDE], "tiles": 1}
    model = model_named(MODEL)
    assert model
    first = Path(str(plan.jobs[0].source)).read_bytes()
    for job in find_jobs(list(request.inputs), request.output)[0]:
        source, target = Path(str(job.source)), Path(str(job.target))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(first)
        record = Record(str(source), str(target), "ok", models=[model.name], **cast(Any, known))
        record.key = manifest.key(source)
        manifest.append(record)
    del plan, manifest
    cost, outcome = _run(request, StandIn(), summary)
    assert {record.status for record in outcome.records} == {"skipped"}
    return _rows(f"{count:,} files listed and skipped", count, cost)


def _restoring(top: Path, count: int, summary: Callable[[Plan, Outcome], None]) -> list[Row]:
    """A folder in which nothing is done."""
    request, net = _make_photos(top, count), StandIn()
    cost, outcome = _run(request, net, summary)
    assert {record.status for record in outcome.records} == {"ok"}
    cost = replace(cost, wall=cost.wall - net.seconds, cpu=cost.cpu - net.cpu)
    return _rows(f"{count:,} files restored, outside the net", count, cost)


def _make_photos(top: Path, count: int) -> Request:
    """A tree of tiny photos, and what asks for its restoration."""
    photo = top / "in" / "0" / "0.png"
    photo.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    write_image(photo, Image(pixels))
    content = photo.read_bytes()
    for i in range(1, count):
        path = top / "in" / str(i // PER_FOLDER) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return Request(TASKS["upscale"], (str(top / "in"),), str(top / "out"), model=MODEL)


def _run(
    request: Request, net: StandIn, summary: Callable[[Plan, Outcome], None]
) -> tuple[_Cost, Outcome]:
    """Restore what a request asks for: what it cost, and what came of it."""
    device = resolve_device("cpu")
    before = used_memory(device)
    reset_peak_memory(device)
    started, worked = time.perf_counter(), time.process_time()
    plan = replace(plan_files(request), upscaler=cast(Upscaler, net))
    outcome = restore_files(plan, done=lambda record: None, progress=lambda share, label: None)
    if outcome.stopped:
        raise outcome.stopped
    summary(plan, outcome)
    cost = _Cost(
        time.perf_counter() - started,
        time.process_time() - worked,
        peak_memory(device) - before,
    )
    return cost, outcome


def _rows(what: str, count: int, cost: _Cost) -> list[Row]:
    wall, cpu, size = 1e3 * cost.wall / count, 1e3 * cost.cpu / count, cost.memory / count
    return [
        at_most(f"{what}: time a file", wall, MOST_TIME, f"{wall:.3f} ms", "ms"),
        Row(f"{what}: of that, the processor", f"{cpu:.3f} ms"),
        at_most(f"{what}: memory a file", size, MOST_MEMORY, f"{size:.0f} bytes", "bytes"),
    ]
