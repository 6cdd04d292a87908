"""All contestants side by side: quality on a data set, and time in turns under equal load."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CallError, RestorationError
from ...images.metrics import scores
from ..cost.rows import Table
from ..quality.measure import Benchmark
from ..quality.pairing import Sample, load_sample
from ..quality.protocols import Protocol
from .contestants import Contestant, contestants

THREADS = (1, 2)


@dataclass(frozen=True)
class PeerRow:
    """What one contestant reached; None is what was not measured.

    Args:
        name: its name.
        ours: whether it is one of this project.
        trained: whether it has real weights; else only its time counts.
        parameters: all of them.
        psnr: mean over the images, in dB.
        ssim: mean over the images.
        seconds_per_megapixel: of the result, median wall time, for each of THREADS.
        work_per_megapixel: the same of process time, at one thread.
        start_up: seconds from the start of its process to a first small result.
        peak_memory: of its process, in bytes.
        error: why something was not measured; empty where everything was.
    """

    name: str
    ours: bool
    trained: bool
    parameters: int
    psnr: float | None
    ssim: float | None
    seconds_per_megapixel: tuple[float | None, ...]
    work_per_megapixel: float | None
    start_up: float | None
    peak_memory: int | None
    error: str


@dataclass(frozen=True)
class PeerReport:
    """What all contestants reached.

    Args:
        scale: that they enlarge.
        dataset: that quality was measured on.
        images: how many of it.
        side: of the input that was timed, in pixels.
        rounds: how often each was timed.
        rows: ours first.
        missing: what is not installed, with the command that installs it.
    """

    scale: int
    dataset: str
    images: int
    side: int
    rounds: int
    rows: tuple[PeerRow, ...]
    missing: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The fields by their names."""
        return asdict(self)


class Served:
    """A contestant in a process of its own, see `serve`."""

    def __init__(self, name: str, scale: int):
        command = [sys.executable, "-m", f"{__package__}.serve", str(scale), name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request. Raises RestorationError with the reason where it fails."""
        assert self.process.stdin
        assert self.process.stdout
        # A process that has ended is seen by its lack of an answer.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise RestorationError(answer["error"])
        return answer

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


class Entrant:
    """A contestant on its way through the race: what it has reached, or why it fell out."""

    def __init__(self, contestant: Contestant, protocol: Protocol, folder: Path):
        self.contestant, self.protocol, self.folder = contestant, protocol, folder
        self.served: Served | None = None
        self.quality: list[tuple[float, float]] = []
        self.seconds: dict[int, list[float]] = {threads: [] for threads in THREADS}
        self.work: list[float] = []
        self.start_up: float | None = None
        self.peak: int | None = None
        self.error = ""

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step, unless one before has failed."""
        if not self.error:
            try:
                step()
            except RestorationError as error:
                self.error = str(error)

    def start(self) -> None:
        """Time the second start, as the first compiles kernels and reads files from the disk."""
        self._serve()
        self.stop()
        began = time.perf_counter()
        self._serve()
        self.start_up = time.perf_counter() - began

    def _serve(self) -> None:
        self.served = Served(self.contestant.name, self.protocol.scale)
        self.load(1)

    def load(self, threads: int) -> None:
        """Let it use so many threads from now on."""
        self._ask(threads=threads)

    def measure(self, sample: Sample) -> None:
        """Enlarge an image and compare it with the truth."""
        image, result = self.folder / "image.npy", self.folder / "result.npy"
        np.save(image, sample.input)
        self._ask(image=str(image), result=str(result))
        found = scores(
            np.load(result),
            sample.truth,
            channel=self.protocol.channel,
            border=self.protocol.border,
        )
        self.quality.append(found)

    def time(self, image: Path, threads: int) -> None:
        """Enlarge an image once."""
        answer = self._ask(image=str(image), result=None)
        self.seconds[threads].append(answer["seconds"])
        if threads == 1:
            self.work.append(answer["work"])
        self.peak = answer["peak"] or None

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.served
        return self.served.ask(**request)

    def stop(self) -> None:
        """End its process."""
        if self.served:
            self.served.stop()

    def row(self, megapixels: float) -> PeerRow:
        """What it has reached; `megapixels` are those of a result that was timed."""
        quality = np.mean(self.quality, axis=0) if self.quality else (None, None)
        decibels, similarity = (None if q is None else float(q) for q in quality)
        return PeerRow(
            name=self.contestant.name,
            ours=self.contestant.ours,
            trained=self.contestant.trained,
            parameters=self.contestant.parameters(),
            psnr=decibels,
            ssim=similarity,
            seconds_per_megapixel=tuple(
                _median(times, megapixels) for times in self.seconds.values()
            ),
            work_per_megapixel=_median(self.work, megapixels),
            start_up=self.start_up,
            peak_memory=self.peak,
            error=self.error,
        )


def _median(times: Sequence[float], megapixels: float) -> float | None:
    return statistics.median(times) / megapixels if times else None


def race(
    benchmark: Benchmark,
    side: int = 256,
    rounds: int = 5,
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> PeerReport:
    """Measure all contestants that are installed, in turns.

    Args:
        benchmark: for enlarging; its scale decides who takes part.
        side: of the input that is timed, in pixels.
        rounds: how often each is timed.
        progress: is called with the share done and what is at work.

    Raises:
        CallError: the benchmark is not one for enlarging. Others as `load_sample`.
    """
    protocol, scale = benchmark.protocol, benchmark.protocol.scale
    if protocol.task != "upscale":
        raise CallError("peers are compared in enlarging; give `scale`")
    everyone = contestants(scale)
    samples = [load_sample(pair, protocol) for pair in benchmark.pairs]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = folder / "noise.npy"
        np.save(noise, np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
        entrants = [Entrant(c, protocol, folder) for c in everyone if c.installed]
        try:
            _run(entrants, samples, noise, rounds, progress)
        finally:
            for entrant in entrants:
                entrant.stop()
    megapixels = (scale * side) ** 2 / 1e6
    return PeerReport(
        scale=scale,
        dataset=benchmark.name,
        images=len(samples),
        side=side,
        rounds=rounds,
        rows=tuple(entrant.row(megapixels) for entrant in entrants),
        missing={c.name: c.install for c in everyone if not c.installed},
    )


def _run(
    entrants: Sequence[Entrant],
    samples: Sequence[Sample],
    noise: Path,
    rounds: int,
    progress: Callable[[float, str], None],
) -> None:
    steps: list[tuple[Entrant, str, Callable[[], None]]] = []
    steps += [(e, "start-up", e.start) for e in entrants]
    for sample in samples:
        trained = (e for e in entrants if e.contestant.trained)
        steps += [(e, sample.name, partial(e.measure, sample)) for e in trained]
    for threads in THREADS:
        steps += [(e, "load", partial(e.load, threads)) for e in entrants]
        for turn in range(rounds):
            label = f"{threads} thread(s), round {turn + 1} of {rounds}"
            steps += [(e, label, partial(e.time, noise, threads)) for e in entrants]
    for i, (entrant, label, step) in enumerate(steps):
        progress(i / len(steps), f"{entrant.contestant.name} {label}")
        entrant.attempt(step)


def peers_table(report: PeerReport) -> Table:
    """A row for each contestant, as a header and the cells below."""
    header: tuple[str, ...] = ("network", "params, K", "PSNR", "SSIM")
    header += ("1 thread, s/MP", "2 threads", "peak, MiB", "start, s")
    cells: list[tuple[str, ...]] = []
    for row in report.rows:
        times = [_shown(seconds, 3) for seconds in row.seconds_per_megapixel]
        peak = None if row.peak_memory is None else row.peak_memory / 2**20
        quality = (_shown(row.psnr, 2), _shown(row.ssim, 4))
        rest = (*quality, *times, _shown(peak, 0), _shown(row.start_up, 1))
        cells.append((row.name, f"{row.parameters / 1e3:.0f}", *rest))
    return header, cells


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def peers_notes(report: PeerReport) -> list[str]:
    """What a reader has to know about the table."""
    side = f"{report.side}x{report.side}"
    notes = [
        f"x{report.scale}; quality: mean over {report.images} images of {report.dataset}; time:"
        f" median of {report.rounds} runs in turns, input {side}, seconds a megapixel of the result"
    ]
    untrained = [row.name for row in report.rows if not row.trained]
    if untrained:
        notes.append(f"Random weights, so only the time counts: {', '.join(untrained)}.")
    notes += [f"{row.name} failed: {row.error}" for row in report.rows if row.error]
    notes += [f"{name} is not installed: {how}" for name, how in report.missing.items()]
    return notes
