"""What the restoration commands call: from a request to what became of each file.

Two steps, so that a caller can say what will be done before anything slow is imported: `plan_files`
finds the files and the models, `restore_files` does the work.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CallError, MambairError
from ..models.catalog import Model, model_named
from ..models.choice import Choice, better_model, check_task, gain, is_here, parse_choice
from ..models.tasks import Task
from ..restore.options import Options
from ..restore.size import Size
from .rates import duration, keep_rate, ran_here, read_rate

if TYPE_CHECKING:
    from ..restore.upscaler import Upscaler
    from ..system.urls import Place
    from .jobs import Job
    from .manifest import Manifest, Record
    from .pipeline import Batch
    from .shards import Shard


LONG = 60.0
"""Seconds from which on a run says how long it will take."""

LOADED = 0.05
"""Share of the progress at which the networks are loaded."""

COMPILING = 8
"""Seconds that compiling the kernels took on 2 cores."""


@dataclass(frozen=True)
class Request:
    """What to restore, how, and where the results go.

    Attributes:
        task: what to do.
        inputs: files, folders, or - for stdin.
        output: a file, a folder, or - for stdout; None: beside the only input.
        scale: how many times larger; None: as the model or the task has it.
        width: of the results in pixels, instead of a scale.
        height: likewise; the result fits inside of both.
        exact: exactly `width` and `height`, whatever the aspect ratio.
        model: a name or a checkpoint file; None: a bundled one that fits.
        setting: what the task's option chooses among the bundled models.
        globs: patterns for the files of folders.
        overwrite: restore what is finished in a folder once more.
        format: of the results, such as png.
        quality: of formats that lose something, 1 to 100.
        suffix: after the names of the results.
        max_pixels: the largest input; None: `images.io.MAX_PIXELS`.
        max_bytes: the longest input; None: `images.io.MAX_BYTES`.
        shard: which part of the files, such as 1/4; None: all, or the part of a task of a Slurm
            array.
        first_frame: whether only the first frame or page of a file is restored.
        keep_times: whether results get the times and permissions of their inputs.
        options: device, memory, precision.
        advice: whether to look at the results, and to say which model would be better.
        dry_run: only say what would be done.
    """

    task: Task
    inputs: tuple[str, ...]
    output: str | None = None
    scale: float | None = None
    width: int | None = None
    height: int | None = None
    exact: bool = False
    model: str | None = None
    setting: str | None = None
    globs: tuple[str, ...] = ()
    overwrite: bool = False
    format: str | None = None
    quality: int | None = None
    suffix: str | None = None
    max_pixels: int | None = None
    max_bytes: int | None = None
    shard: str | None = None
    keep_times: bool = False
    first_frame: bool = False
    options: Options = field(default_factory=Options)
    advice: bool = True
    dry_run: bool = False

    @property
    def sides(self) -> str:
        """The sides that were asked for, such as 800w600h; empty if a scale counts."""
        width = f"{self.width}w" if self.width else ""
        height = f"{self.height}h" if self.height else ""
        return width + height


@dataclass(frozen=True)
class Plan:
    """The files and models of a request.

    Attributes:
        request: what was asked for.
        choice: of the models.
        jobs: what is restored into what.
        folder: the output folder; None if there is a single result.
        shard: the part of the files that the jobs are; None: all of them.
        scale: how many times larger; None if a width or height counts.
        passed_over: files in the input folders that are not named like images.
        upscaler: loaded already, if only its file told the scale.
    """

    request: Request
    choice: Choice
    jobs: list["Job"]
    folder: "Place | None"
    scale: float | None
    shard: "Shard | None" = None
    passed_over: int = 0
    upscaler: "Upscaler | None" = None

    @property
    def row(self) -> Model | None:
        """The model that was named, if the catalog knows it."""
        return model_named(self.request.model or "")


@dataclass
class Outcome:
    """What came of a request.

    Attributes:
        total: how many files it meant.
        records: what became of each, in the order in which they finished.
        backend: which scan ran.
        device: where it ran.
        seconds: since the request.
        better: what a better model would have brought; None if there is none.
        expected: seconds that a dry run expects; None if that is not known.
        stopped: what ended the run early, to be raised once the records have been shown.
    """

    total: int
    records: list["Record"] = field(default_factory=list)
    backend: str = ""
    device: str = ""
    seconds: float = 0.0
    better: dict[str, Any] | None = None
    expected: float | None = None
    stopped: BaseException | None = None

    @property
    def models(self) -> list[str]:
        """The names of those that ran."""
        return list(dict.fromkeys(name for record in self.records for name in record.models))


def plan_files(request: Request, note: Callable[[str], None] = lambda message: None) -> Plan:
    """Find the files and models that a request means.

    Imports torch only if a checkpoint file has to tell its scale. Calls `note` with what the user
    should know, such as which files are left out.

    Raises:
        CallError: the request contradicts itself, or no such file, model or folder exists.
        ImageError: a result could not be written.
    """
    from .jobs import find_jobs
    from .listing import count_passed_over
    from .shards import parse_shard, scheduled_shard, share

    task, scale, sides = request.task, request.scale, request.sides
    if scale and sides:
        raise CallError("`scale` excludes `width` and `height`; give one or the other")
    if request.exact and not (request.width and request.height):
        raise CallError("`exact` needs both `width` and `height`")
    choice = parse_choice(task, request.setting, request.model)
    if scale is None and not sides:
        row = model_named(request.model or "")
        scale = row.scale if row else None if request.model else task.scale
    upscaler = None
    if scale is None and not sides:
        upscaler = load_upscaler(choice, request.options)
        scale = upscaler.chain(1)[0].scale
    jobs, folder = find_jobs(
        list(request.inputs),
        request.output,
        suffix=request.suffix,
        default_suffix=f"_{sides}" if sides else task.suffix.format(scale=scale),
        format=request.format,
        globs=request.globs,
        endings=_endings(task),
        note=note,
    )
    passed_over = count_passed_over(request.inputs, request.output) if folder else 0
    shard = None
    if folder:
        shard = parse_shard(request.shard) if request.shard else scheduled_shard()
    elif request.shard:
        raise CallError("`shard` is a part of many files; name a folder with `output`")
    if shard and folder:
        total, jobs = len(jobs), share(jobs, folder, shard)
        if shard.told_by:
            what = f"{len(jobs)} of {total} files are part {shard} of {shard.told_by}"
            note(f"{what}; `shard=1/1` takes all")
    return Plan(
        request, choice, jobs, folder, None if sides else scale, shard, passed_over, upscaler
    )


def restore_files(
    plan: Plan,
    *,
    done: Callable[["Record"], None],
    progress: Callable[[float, str], None],
    note: Callable[[str], None] = lambda message: None,
    started: float | None = None,
) -> Outcome:
    """Restore all files of a plan.

    Args:
        plan: from `plan_files`.
        done: called with the record of each file as soon as it is finished.
        progress: called with the share done, from 0 to 1, and what is at work.
        note: called with what the user should know, such as how long it will take.
        started: when the request came, as `time.perf_counter` counts; None: now.

    Returns:
        What became of each file. An interrupt or an error that ends the run early is in `stopped`.

    Raises:
        MambairError: the work could not begin.
    """
    from ..images.io import MAX_BYTES, MAX_PIXELS

    progress(0.0, _loading(plan))
    from .pipeline import Batch

    started = time.perf_counter() if started is None else started
    request = plan.request
    if plan.row:
        check_task(request.task.name, plan.row.name, plan.row.task, plan.row.scale)
        if request.dry_run and not is_here(plan.row):
            name = plan.row.name
            raise CallError(f"{name} is not here yet; fetch it first: mambair models pull {name}")
    upscaler = plan.upscaler or load_upscaler(plan.choice, request.options)
    # Tells before the work what cannot be loaded.
    upscaler.chain(plan.scale or 1)
    batch = Batch(
        upscaler,
        Size(plan.scale or 1, request.width, request.height, request.exact),
        request.quality,
        manifest_of(plan),
        request.overwrite,
        request.max_pixels or MAX_PIXELS,
        request.max_bytes or MAX_BYTES,
        request.keep_times,
        request.first_frame,
        request.advice,
    )
    outcome = Outcome(len(plan.jobs), backend=upscaler.backend, device=str(upscaler.device))
    progress(LOADED, _working(plan))

    def report(share: float, label: str) -> None:
        progress(LOADED + (1 - LOADED) * share, label)

    def collect(record: "Record") -> None:
        outcome.records.append(record)
        done(record)

    try:
        if request.dry_run:
            batch.preview(plan.jobs, collect)
            _expect(request, outcome)
            return outcome
        _tell_how_long(plan, batch, outcome, note)
        batch.run(plan.jobs, collect, report)
    except (KeyboardInterrupt, MambairError, OSError) as error:
        outcome.stopped = error
    outcome.seconds = round(time.perf_counter() - started, 3)
    for model, (pixels, seconds) in batch.work.items():
        seconds /= _repeats(request)
        keep_rate(model, outcome.backend, outcome.device, int(pixels), seconds)
    if request.advice:
        outcome.better = _better(plan.choice, outcome)
    return outcome


def _endings(task: Task) -> str:
    """A regular expression for what tells the results of a task from inputs beside them."""
    usual = task.suffix.replace("{scale:g}", r"\d+(\.\d+)?")
    return rf"{usual}|_\d+w(\d+h)?|_\d+h" if task.scale > 1 else usual


def _loading(plan: Plan) -> str:
    """What happens before the work, in words."""
    if plan.request.options.device in ("auto", "cpu") and not ran_here():
        return f"compiling kernels for this processor, once, about {COMPILING} s"
    return f"loading {plan.request.model or 'the network'}"


def _working(plan: Plan) -> str:
    source = plan.jobs[0].source if plan.jobs else None
    return source.name if source else "stdin"


def _tell_how_long(
    plan: Plan, batch: "Batch", outcome: Outcome, note: Callable[[str], None]
) -> None:
    """Say how long a long run will take, and what would be faster."""
    from ..images.folders import image_size

    if not ran_here(outcome.backend):
        return
    left = batch.left(plan.jobs, lambda record: None)
    chosen: Counter[tuple[str, ...]] = Counter()
    usual: Counter[tuple[str, ...]] = Counter()
    for source in (job.source for job in left):
        if not isinstance(source, Path):
            continue
        # What cannot be restored is told when its turn comes.
        with suppress(MambairError):
            height, width = image_size(source)
            scale = batch.size.factor(height, width)
            names = tuple(row.name for row in plan.choice.models(scale))
            chosen[names or (str(plan.request.model),)] += height * width
            others = Choice(plan.choice.task).models(scale)
            usual[tuple(row.name for row in others)] += height * width
    repeats = _repeats(plan.request)
    seconds = repeats * sum(_seconds(*item, outcome) or 0.0 for item in chosen.items())
    other = repeats * sum(_seconds(*item, outcome) or 0.0 for item in usual.items())
    if seconds < LONG:
        return
    text = f"{sum(chosen.values()) / 1e6:.1f} megapixels, about {duration(seconds)}"
    if plan.request.model and 0 < other < seconds / 2:
        text += f"; without `model` about {duration(other)}"
    elif repeats > 1:
        text += f"; without `ensemble` about {duration(seconds / repeats)}"
    note(text)


def _repeats(request: Request) -> int:
    """How often a network sees each tile."""
    return 8 if request.options.ensemble else 1


def _seconds(models: Sequence[str], pixels: int, outcome: Outcome) -> float | None:
    """How long models take for so many pixels; None if that is not known."""
    total = 0.0
    for name in models:
        rate = read_rate(name, outcome.backend, outcome.device)
        if rate is None:
            return None
        total += pixels / rate
        row = model_named(name)
        pixels *= row.scale**2 if row else 1
    return total


def _expect(request: Request, outcome: Outcome) -> None:
    """How long the records of a dry run would take."""
    for record in outcome.records:
        if record.status == "planned" and record.size_in:
            pixels = record.size_in[0] * record.size_in[1]
            seconds = _seconds(record.models, pixels, outcome)
            if seconds is not None:
                seconds *= _repeats(request)
                record.seconds = round(seconds, 3)
                outcome.expected = (outcome.expected or 0.0) + seconds


def load_upscaler(choice: Choice, options: Options) -> "Upscaler":
    """What restores by the networks of a choice; each is loaded once. Raises as `Upscaler`."""
    from ..restore.upscaler import Upscaler

    return Upscaler(choice, options)


def manifest_of(plan: Plan) -> "Manifest | None":
    """Where the results of a folder are recorded, together with what decides their pixels."""
    if plan.folder is None:
        return None
    from ..models.fetch import find_checkpoint
    from ..system.files import sha256
    from ..system.urls import Url
    from .cloud import CloudManifest
    from .manifest import Manifest

    request = plan.request
    # Earlier versions did not fit results inside, and gave them exactly the sides.
    fits = ["fits"] if request.width and request.height and not request.exact else []
    settings = {
        "models": [sha256(find_checkpoint(name)) for name in plan.choice.possible(plan.scale)],
        "size": [plan.scale, request.width, request.height, *fits],
        "quality": request.quality,
        "ensemble": request.options.ensemble,
        "alpha": request.options.alpha,
        "dtype": request.options.dtype,
    }
    if request.first_frame:
        settings["first_frame"] = True
    if request.options.seed is not None:
        settings["seed"] = request.options.seed
    if isinstance(plan.folder, Url):
        return CloudManifest(plan.folder, settings, plan.shard)
    return Manifest(plan.folder, settings, plan.shard)


def _better(choice: Choice, outcome: Outcome) -> dict[str, Any] | None:
    """What a better model would have brought, in dB, and the time that it would have taken."""
    skipped = any(record.status == "skipped" for record in outcome.records)
    row = None if choice.model or skipped else model_named(", ".join(outcome.models))
    other = better_model(row) if row else None
    if row is None or other is None:
        return None
    # Of several processes the records count all seconds of work.
    at_work = min(outcome.seconds, sum(record.seconds for record in outcome.records))
    seconds = outcome.seconds + at_work * (other.gmacs / row.gmacs - 1)
    return {
        "model": other.name,
        "here": is_here(other),
        "gain": round(gain(other, row), 2),
        "dataset": other.scores[0].dataset,
        "scale": other.scale,
        "seconds": round(seconds, 3),
    }
