"""`mambair upscale` and the other tasks: one command for each row of TASKS."""

import inspect
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..batch.rates import duration
from ..batch.restore_files import Outcome, Plan, Request, plan_files, restore_files
from ..errors import CallError, MambairError
from ..models.choice import check_task
from ..models.tasks import MAX_SCALE, Task
from ..restore.options import Options
from ..system.urls import is_url, without_secrets
from .compare import check_page
from .compare import write as write_compare
from .help import ADVANCED, COMMON, MODEL, OUTPUT, SIZE, SPEED
from .models import fetch
from .run_log import run_log
from .terminal import (
    Backend,
    Choices,
    Device,
    Dtype,
    Json,
    Offline,
    Quiet,
    announce,
    as_flags,
    choices,
    ignore,
    print_json,
    print_table,
    progress_bar,
    say,
    show,
)

if TYPE_CHECKING:
    from ..batch.manifest import Record

log = logging.getLogger(__name__)


class AlphaNames(Choices):
    """What can enlarge transparency."""

    MODEL = "model"
    BICUBIC = "bicubic"


def parse_bytes(text: str) -> int:
    """An amount of memory such as 4GB or 7.5 GiB in bytes; both count in steps of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r} is not an amount of memory, such as 4GB or 500MB")
    number, unit = match.groups()
    return int(float(number) * 1024 ** " KMGT".index(unit.upper() or " "))


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT", help="Photos, folders, URLs of these, or - for stdin.", show_default=False
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Width of the results in pixels, instead of --scale. Alone it keeps the aspect ratio.",
        rich_help_panel=SIZE,
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Height of the results in pixels. With --width, the results fit inside of both.",
        rich_help_panel=SIZE,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="With --width and --height: exactly that size, even if it distorts.",
        rich_help_panel=SIZE,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FILE",
        help="A model's name (see mambair models list) or a checkpoint file. Default: a bundled"
        " one that fits.",
        rich_help_panel=MODEL,
    ),
]
Globs = Annotated[
    list[str] | None,
    typer.Option(
        "--glob",
        metavar="PATTERN",
        help="In folders, take only files that match, such as '*.jpg' or 'trip/*'; repeatable.",
        rich_help_panel=ADVANCED,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="In a folder, also redo what is finished.", rich_help_panel=OUTPUT
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="File format of the results: png, jpg, webp, tiff, avif, heic ... Default: the"
        " input's, or png.",
        rich_help_panel=OUTPUT,
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100,
        metavar="N",
        help="Quality of JPEG and other lossy formats. Default: 95.",
        rich_help_panel=OUTPUT,
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Added to the names of the results.", rich_help_panel=OUTPUT),
]
Tile = Annotated[
    str,
    typer.Option(
        metavar="auto|off|N",
        help="Work in tiles: as memory allows, not at all, or of at most N pixels a side.",
        rich_help_panel=SPEED,
    ),
]
TileOverlap = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Pixels of the input that neighbouring tiles share.",
        rich_help_panel=SPEED,
    ),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="SIZE",
        help="Use at most this much, such as 4GB. Default: what is free.",
        rich_help_panel=SPEED,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Refuse larger inputs. Default: 536,870,912.",
        show_default=False,
        rich_help_panel=ADVANCED,
    ),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="SIZE",
        help="Refuse longer files. Default: 8GB.",
        rich_help_panel=ADVANCED,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Restore only part I of N equal parts of a folder. Default: all, or as Slurm's array"
        " tells.",
        rich_help_panel=ADVANCED,
    ),
]
KeepTimes = Annotated[
    bool,
    typer.Option(
        "--keep-times",
        help="Give results the times and permissions of their inputs.",
        rich_help_panel=OUTPUT,
    ),
]
FirstFrame = Annotated[
    bool,
    typer.Option(
        "--first-frame",
        help="Of animations and documents, restore only the first frame or page.",
        rich_help_panel=ADVANCED,
    ),
]
Ensemble = Annotated[
    bool,
    typer.Option(
        "--ensemble",
        help="Average over eight flips and turns: better, and 8 times slower.",
        rich_help_panel=MODEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="MambaIRv2: draw its routing at random, as published. Default: the most probable one.",
        rich_help_panel=ADVANCED,
    ),
]
Alpha = Annotated[
    AlphaNames, typer.Option(help="What enlarges transparency.", rich_help_panel=ADVANCED)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would be done, and write nothing.", rich_help_panel=COMMON
    ),
]
Compare = Annotated[
    Path | None,
    typer.Option(
        metavar="PAGE.html",
        help="Write a page that shows before and after with a slider.",
        rich_help_panel=OUTPUT,
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Append a line of JSON for each file, with its time, for runs that nobody watches.",
        rich_help_panel=ADVANCED,
    ),
]


def examples_of(task: Task) -> str:
    """The examples at the end of the help of a task's command."""
    option = f" --{task.option} {task.settings[-1]}" if task.settings else ""
    more = "photo.jpg -s 2 -o large.png" if task.scale > 1 else "photo.jpg -o better.png"
    return "\n".join(
        (
            f"mambair {task.name} photo.jpg",
            f"mambair {task.name} {more}",
            f"mambair {task.name} holiday/ -o better/ --compare page.html",
            f"mambair {task.name} photo.jpg{option or ' --ensemble'}",
        )
    )


@dataclass(frozen=True)
class Shown:
    """How a run is told.

    Attributes:
        quiet: no progress bar and no advice.
        as_json: one JSON object instead of words.
        compare: a page that shows before and after.
        log: a file to which a line of JSON is appended for each file.
    """

    quiet: bool = False
    as_json: bool = False
    compare: Path | None = None
    log: Path | None = None


def command(task: Task) -> Callable[..., None]:
    """The command of a task, with the options that make sense for it."""

    def restore(**given: Any) -> None:
        shown = Shown(**{f.name: given.pop(f.name) for f in fields(Shown)})
        del given["offline"]
        options = Options(**{f.name: given.pop(f.name) for f in fields(Options) if f.name in given})
        inputs, globs = tuple(given.pop("inputs")), tuple(given.pop("globs") or ())
        advice = not shown.quiet
        request = Request(task, inputs, globs=globs, options=options, advice=advice, **given)
        _restore(request, shown)

    restore.__doc__ = task.summary
    restore.__signature__ = inspect.Signature(parameters(task))  # type: ignore[attr-defined]
    return restore


def parameters(task: Task) -> list[inspect.Parameter]:
    """The options of a task's command; each panel of the help keeps their order."""
    annotations: dict[str, Any] = {"inputs": Inputs, "output": _output(task)}
    if task.scale > 1:
        annotations["scale"] = _scale(task)
    annotations |= {"dry_run": DryRun, "quiet": Quiet, "as_json": Json}
    if task.scale > 1:
        annotations |= {"width": Width, "height": Height, "exact": Exact}
    annotations |= {
        "format": Format,
        "quality": Quality,
        "suffix": Suffix,
        "overwrite": Overwrite,
        "keep_times": KeepTimes,
        "compare": Compare,
        "model": ModelName,
    }
    if task.option:
        annotations["setting"] = _setting(task)
    annotations |= {
        "ensemble": Ensemble,
        "device": Device,
        "memory_limit": MemoryLimit,
        "tile": Tile,
        "tile_overlap": TileOverlap,
        "dtype": Dtype,
        "backend": Backend,
        "globs": Globs,
        "first_frame": FirstFrame,
        "alpha": Alpha,
        "seed": Seed,
        "max_pixels": MaxPixels,
        "max_bytes": MaxBytes,
        "shard": Shard,
        "log": Log,
        "offline": Offline,
    }
    known: dict[str, Field[Any]] = {f.name: f for f in (*fields(Request), *fields(Options))}
    defaults = {name: known[name].default if name in known else False for name in annotations}
    defaults |= {"inputs": MISSING, "globs": None, "compare": None, "log": None}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if defaults[name] is MISSING else defaults[name],
            annotation=annotation,
        )
        for name, annotation in annotations.items()
    ]


def _output(task: Task) -> Any:
    suffix = task.suffix.format(scale=task.scale)
    where = "A file (- for stdout) for one photo, else a folder."
    text = f"{where} Default: beside the photo, with {suffix} after its name."
    option = typer.Option("--output", "-o", metavar="PATH", help=text, rich_help_panel=COMMON)
    return Annotated[str | None, option]


def _scale(task: Task) -> Any:
    text = f"How many times larger, such as 2 or 1.5. Default: the model's, or {task.scale}."
    option = typer.Option(
        *("--scale", "-s"), min=1, max=MAX_SCALE, metavar="N", help=text, rich_help_panel=COMMON
    )
    return Annotated[float | None, option]


def _setting(task: Task) -> Any:
    """What chooses among the task's models: words, or also a number."""
    kind: Any = str if task.level else choices(f"{task.option.title()}Names", task.settings)
    metavar = "|".join([*task.settings, "N"]) if task.level else None
    option = typer.Option(
        f"--{task.option}", help=task.option_help, metavar=metavar, rich_help_panel=MODEL
    )
    return Annotated[kind | None, option]


def _restore(request: Request, shown: Shown) -> None:
    """Do what a request asks for, and show what came of it."""
    started = time.perf_counter()
    quiet, as_json = shown.quiet, shown.as_json
    silent = as_json or quiet
    if shown.compare:
        _check_compare(request, shown.compare)
    if not silent:
        announce(f"{request.task.name} {_named(request.inputs)}")
    plan = plan_files(request, say)
    if not plan.jobs:
        # Of a small folder in many parts.
        if as_json:
            print_outcome(plan, Outcome(0), as_json)
        else:
            show(f"{plan.folder}: part {plan.shard} has no files")
        return
    if plan.row:
        check_task(request.task.name, plan.row.name, plan.row.task, plan.row.scale)
        if not request.dry_run:
            fetch(plan.row, silent)
    outcome = _run(plan, shown, silent, started)
    if outcome.better:
        log.info("%s", _hint(outcome.better))
    if request.dry_run and not outcome.stopped:
        _print_preview(plan, outcome, as_json)
    elif plan.folder and outcome.records:
        print_outcome(plan, outcome, as_json)
    stream = sys.stderr if request.output == "-" else sys.stdout
    if outcome.stopped:
        if as_json and not plan.folder and isinstance(outcome.stopped, MambairError):
            _print_failure(plan, outcome, stream)
        raise outcome.stopped
    # Under torchrun, one process has the records.
    failed = any(record.error for record in outcome.records)
    if outcome.records and not (plan.folder or request.dry_run or failed):
        _print_result(plan, outcome, as_json, stream)
    if shown.compare:
        _write_page(shown.compare, outcome, silent)
    if failed:
        raise typer.Exit(1)


def _run(plan: Plan, shown: Shown, silent: bool, started: float) -> Outcome:
    """Restore the files of a plan, tell of each, and keep a log."""
    note = ignore if shown.quiet else say
    with run_log(shown.log) as write, progress_bar(silent) as progress:
        write("start", {"task": plan.request.task.name, "files": len(plan.jobs)})

        def done(record: "Record") -> None:
            _tell(record)
            write("file", _public(record))

        outcome = restore_files(plan, done=done, progress=progress, note=note, started=started)
        stopped = outcome.stopped
        why = (str(stopped) or "interrupted") if stopped else None
        write("end", _counts(outcome) | {"seconds": outcome.seconds, "stopped": why})
    return outcome


def _check_compare(request: Request, page: Path) -> None:
    """Raise CallError where there will be nothing to compare."""
    check_page(page)
    places = filter(None, (*request.inputs, request.output))
    if any(place == "-" or is_url(place) for place in places):
        raise CallError("--compare shows files of this computer; name such files")
    if request.dry_run:
        raise CallError("--compare needs results, which --dry-run does not make")


def _write_page(page: Path, outcome: Outcome, quiet: bool) -> None:
    from ..pages.compare import Scene

    done = [record for record in outcome.records if record.status in ("ok", "skipped")]
    scenes = [Scene(Path(record.input), (Path(record.output),)) for record in done]
    if scenes:
        write_compare(page, sorted(scenes, key=lambda scene: scene.before), quiet)


def _named(inputs: Sequence[str]) -> str:
    first, *others = map(without_secrets, inputs)
    return f"{first} and {len(others)} more" if others else first


def _tell(record: "Record") -> None:
    for message in [*record.notes, *filter(None, [record.error])]:
        say(message)


def _facts(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    return {
        "scale": plan.scale,
        "model": ", ".join(outcome.models),
        "backend": outcome.backend,
        "device": outcome.device,
        "seconds": outcome.seconds,
        "better": outcome.better,
    }


def _how(outcome: Outcome, measured: str) -> str:
    """By which models, where, in what time."""
    models = f"{', '.join(outcome.models)}{measured}, " if outcome.models else ""
    return f"{models}{outcome.backend} on {outcome.device}, {outcome.seconds:.1f} s"


def _hint(better: Mapping[str, Any]) -> str:
    """What a better model would bring."""
    took = duration(better["seconds"])
    fetched = "" if better["here"] else ", once it is fetched"
    gain = f"{better['gain']:.1f} dB better on {better['dataset']} x{better['scale']}"
    return f"{gain}: -m {better['model']}, about {took}{fetched}"


def _print_result(plan: Plan, outcome: Outcome, as_json: bool, stream: TextIO) -> None:
    (record,) = outcome.records
    level = plan.request.task.level
    if as_json:
        print_json(_public(record) | _facts(plan, outcome), stream)
        return
    assert record.size_in
    assert record.size_out
    sizes = "{}x{} -> {}x{}".format(*record.size_in, *record.size_out)
    measured = "" if record.level is None else f" ({level} {record.level} measured)"
    why = f"{record.why}: " if record.why else ""
    show(f"{record.output}: {sizes}, {why}{_how(outcome, measured)}", stream)
    if record.left:
        say(f"{'stdout' if record.output == '-' else record.output}: {record.left}")


def _print_preview(plan: Plan, outcome: Outcome, as_json: bool) -> None:
    """What a run would do with each file, and what it would take."""
    if as_json:
        files = [_public(record) for record in outcome.records]
        print_json(_facts(plan, outcome) | {"expected": outcome.expected, "files": files})
        return
    rows = []
    for record in outcome.records:
        before, after = (
            "{}x{}".format(*size) if size else "" for size in (record.size_in, record.size_out)
        )
        how = ", ".join(filter(None, [record.why, *record.models]))
        gib = f"{record.memory / 2**30:.2f} GiB" if record.memory else ""
        took = f"about {duration(record.seconds)}" if record.seconds else ""
        rows.append((record.status, record.input, record.output, before, after, how, took, gib))
    print_table(("", "input", "output", "size", "becomes", "how", "time", "memory"), rows)
    planned = sum(record.status == "planned" for record in outcome.records)
    time_needed = (
        "unknown on this machine" if outcome.expected is None else duration(outcome.expected)
    )
    print(
        f"{planned} of {outcome.total} would be restored; time: {time_needed}; nothing was written"
    )


def _print_failure(plan: Plan, outcome: Outcome, stream: TextIO) -> None:
    """The JSON of a single file that failed, with the fields of one that did not."""
    from ..batch.manifest import Record

    (job,) = plan.jobs
    record = Record(*job.names, error=str(outcome.stopped))
    print_json(_public(record) | _facts(plan, outcome), stream)


def _counts(outcome: Outcome) -> dict[str, int]:
    """How many files ended how."""
    found = Counter(record.status for record in outcome.records)
    counts = {status: found[status] for status in ("ok", "skipped", "failed")}
    return counts | {"not_tried": outcome.total - len(outcome.records)}


def print_outcome(plan: Plan, outcome: Outcome, as_json: bool = False) -> None:
    """Print what came of a run over a folder: in words, or as a line of JSON."""
    counts = _counts(outcome)
    if as_json:
        files = [_public(record) for record in outcome.records]
        facts = {"output": str(plan.folder), **counts, "passed_over": plan.passed_over}
        print_json(facts | _facts(plan, outcome) | {"files": files})
        return
    words = {
        "restored": counts["ok"],
        "skipped as finished": counts["skipped"],
        "failed": counts["failed"],
        "not tried": counts["not_tried"],
        "not images": plan.passed_over,
    }
    told = [f"{count} {what}" for what, count in words.items() if count]
    done = [record for record in outcome.records if record.status == "ok"]
    sizes = [record.size_out for record in done if record.size_out]
    size = f", {sum(width * height for width, height in sizes) / 1e6:.1f} megapixels"
    how = _how(outcome, _levels(plan.request.task, outcome.records))
    show(f"{plan.folder}: {', '.join(told)}{size if sizes else ''}; {how}")
    for line in _story(outcome.records):
        show(line)


def _public(record: "Record") -> dict[str, Any]:
    facts = {f.name: getattr(record, f.name) for f in fields(record) if f.name != "key"}
    told = {name: text and as_flags(text) for name in ("error", "left") for text in [facts[name]]}
    return facts | told | {"notes": [as_flags(note) for note in record.notes]}


def _story(records: Sequence["Record"]) -> Iterator[str]:
    """In words: what was found in the inputs, and what is left in the results."""
    judged = [record for record in records if record.seen]
    found: dict[tuple[str, ...], Counter[str]] = {}
    for record in judged:
        if record.seen != "clean" and record.models:
            found.setdefault(tuple(record.models), Counter())[record.seen] += 1
    for models, kinds in found.items():
        first, *others = kinds.most_common()
        words = [f"{first[1]} of {len(judged)} looked {first[0]}"]
        words += [f"{count} {kind}" for kind, count in others]
        yield f"{', '.join(words)}: restored with {', '.join(models)}"
    left = [record for record in records if record.left]
    if left:
        results = "1 result" if len(left) == 1 else f"{len(left)} results"
        text = as_flags(f"{left[0].left}")
        yield f"{results} may need more, such as {left[0].output}: it {text}"


def _levels(task: Task, records: Sequence["Record"]) -> str:
    """The lowest and the highest level that was measured."""
    levels = sorted({record.level for record in records if record.level is not None})
    if not levels:
        return ""
    ends = dict.fromkeys([levels[0], levels[-1]])
    return f" ({task.level} {' to '.join(map(str, ends))} measured)"
