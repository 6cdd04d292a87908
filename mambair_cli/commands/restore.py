"""`mambair upscale` and the other tasks: one command for each row of TASKS."""

import inspect
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..batch.rates import duration
from ..batch.restore_files import Outcome, Plan, Request, plan_files, restore_files
from ..errors import MambairError
from ..models.choice import check_task
from ..models.tasks import MAX_SCALE, Task
from ..restore.options import Options
from .models import fetch
from .terminal import (
    Backend,
    Choices,
    Device,
    Dtype,
    Json,
    Offline,
    announce,
    as_flags,
    ignore,
    print_json,
    print_table,
    progress_bar,
    say,
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
    typer.Argument(metavar="INPUT", help="Photos, folders, or - for stdin.", show_default=False),
]
Width = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Width of the results in pixels, instead of --scale. Alone it keeps the aspect ratio.",
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Height of the results in pixels. With --width, the results fit inside of both.",
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="With --width and --height: exactly that size, even if it distorts."
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="A model's name (see mambair models list) or a checkpoint file."
    ),
]
Globs = Annotated[
    list[str] | None,
    typer.Option(
        "--glob",
        help="In folders, take only files that match, such as '*.jpg' or 'trip/*'; repeatable.",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="In a folder, also redo what is finished."),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="File format of the results: png, jpg, webp, tiff, ... Default: the input's, or png."
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(min=1, max=100, help="Quality of JPEG and other lossy formats. Default: 95."),
]
Suffix = Annotated[str | None, typer.Option(help="Added to the names of the results.")]
Tile = Annotated[
    str,
    typer.Option(
        help="Work in tiles: auto (as memory allows), off, or the largest side in pixels."
    ),
]
TileOverlap = Annotated[
    int, typer.Option(min=0, help="Pixels of the input that neighbouring tiles share.")
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(parser=parse_bytes, metavar="SIZE", help="Use at most this much, such as 4GB."),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Refuse larger inputs. Default: 536,870,912.", show_default=False),
]
KeepTimes = Annotated[
    bool,
    typer.Option("--keep-times", help="Give results the times and permissions of their inputs."),
]
FirstFrame = Annotated[
    bool,
    typer.Option(
        "--first-frame", help="Of animations and documents, restore only the first frame or page."
    ),
]
Ensemble = Annotated[
    bool,
    typer.Option(
        "--ensemble", help="Average over eight flips and turns: better, and 8 times slower."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="MambaIRv2: draw its routing at random, as published. Default: the most probable one.",
    ),
]
Alpha = Annotated[AlphaNames, typer.Option(help="What enlarges transparency.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no advice.")]


def command(task: Task) -> Callable[..., None]:
    """The command of a task, with the options that make sense for it."""

    def restore(**given: Any) -> None:
        quiet, as_json = given.pop("quiet"), given.pop("as_json")
        del given["offline"]
        options = Options(**{f.name: given.pop(f.name) for f in fields(Options) if f.name in given})
        inputs, globs = tuple(given.pop("inputs")), tuple(given.pop("globs") or ())
        request = Request(task, inputs, globs=globs, options=options, advice=not quiet, **given)
        _restore(request, quiet, as_json)

    restore.__doc__ = task.summary
    restore.__signature__ = inspect.Signature(_parameters(task))  # type: ignore[attr-defined]
    return restore


def _parameters(task: Task) -> list[inspect.Parameter]:
    """The options of a task's command, in the order of its help."""
    annotations: dict[str, Any] = {"inputs": Inputs, "output": _output(task)}
    if task.scale > 1:
        annotations |= {"scale": _scale(task), "width": Width, "height": Height}
        annotations["exact"] = Exact
    annotations["model"] = ModelName
    if task.option:
        annotations["setting"] = Annotated[
            str | None, typer.Option(f"--{task.option}", help=task.option_help)
        ]
    annotations |= {
        "globs": Globs,
        "overwrite": Overwrite,
        "format": Format,
        "quality": Quality,
        "suffix": Suffix,
        "tile": Tile,
        "tile_overlap": TileOverlap,
        "memory_limit": MemoryLimit,
        "max_pixels": MaxPixels,
        "keep_times": KeepTimes,
        "first_frame": FirstFrame,
        "ensemble": Ensemble,
        "alpha": Alpha,
        "seed": Seed,
        "device": Device,
        "backend": Backend,
        "dtype": Dtype,
        "dry_run": DryRun,
        "offline": Offline,
        "quiet": Quiet,
        "as_json": Json,
    }
    known: dict[str, Field[Any]] = {f.name: f for f in (*fields(Request), *fields(Options))}
    defaults = {name: known[name].default if name in known else False for name in annotations}
    defaults |= {"inputs": MISSING, "globs": None}
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
    default = f"Default: beside the photo, with {suffix} after its name."
    return Annotated[str | None, typer.Option("--output", "-o", help=f"{where} {default}")]


def _scale(task: Task) -> Any:
    text = f"How many times larger, such as 2 or 1.5. Default: the model's, or {task.scale}."
    return Annotated[float | None, typer.Option("--scale", "-s", min=1, max=MAX_SCALE, help=text)]


def _restore(request: Request, quiet: bool, as_json: bool) -> None:
    """Do what a request asks for, and show what came of it."""
    started = time.perf_counter()
    silent = as_json or quiet
    if not silent:
        announce(f"{request.task.name} {_named(request.inputs)}")
    plan = plan_files(request, say)
    if plan.row:
        check_task(request.task.name, plan.row.name, plan.row.task, plan.row.scale)
        if not request.dry_run:
            fetch(plan.row, silent)
    note = ignore if quiet else say
    with progress_bar(silent) as progress:
        outcome = restore_files(plan, done=_tell, progress=progress, note=note, started=started)
    if outcome.better:
        log.info("%s", _hint(outcome.better))
    if request.dry_run and not outcome.stopped:
        _print_preview(plan, outcome, as_json)
    elif plan.folder and outcome.records:
        _print_summary(plan, plan.folder, outcome, as_json)
    stream = sys.stderr if request.output == "-" else sys.stdout
    if outcome.stopped:
        if as_json and not plan.folder and isinstance(outcome.stopped, MambairError):
            _print_failure(plan, outcome, stream)
        raise outcome.stopped
    if any(record.error for record in outcome.records):
        raise typer.Exit(1)
    # Under torchrun, one process has the records.
    if outcome.records and not (plan.folder or request.dry_run):
        _print_result(plan, outcome, as_json, stream)


def _named(inputs: Sequence[str]) -> str:
    first, *others = inputs
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
    where = f"{outcome.backend} on {outcome.device}, {outcome.seconds:.1f} s"
    return f"{', '.join(outcome.models)}{measured}, {where}"


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
    print(f"{record.output}: {sizes}, {why}{_how(outcome, measured)}", file=stream)
    if record.left:
        say(f"{record.output}: {record.left}")


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
    record = Record(str(job.source or "-"), str(job.target or "-"), error=str(outcome.stopped))
    print_json(_public(record) | _facts(plan, outcome), stream)


def _print_summary(plan: Plan, folder: Path, outcome: Outcome, as_json: bool) -> None:
    groups = {
        status: [record for record in outcome.records if record.status == status]
        for status in ("ok", "skipped", "failed")
    }
    not_tried = outcome.total - len(outcome.records)
    if as_json:
        counts = {status: len(group) for status, group in groups.items()}
        files = [_public(record) for record in outcome.records]
        counts |= {"not_tried": not_tried, "passed_over": plan.passed_over}
        facts = {"output": str(folder), **counts, **_facts(plan, outcome)}
        print_json(facts | {"files": files})
        return
    rows = [(status, *_sums(group)) for status, group in groups.items()]
    if not_tried:
        rows.append(("not tried", str(not_tried), "", ""))
    if plan.passed_over:
        rows.append(("not images", str(plan.passed_over), "", ""))
    print_table(("", "files", "seconds", "megapixels"), rows)
    print(f"{folder}: {_how(outcome, _levels(plan.request.task, outcome.records))}")
    for line in _story(outcome.records):
        print(line)


def _public(record: "Record") -> dict[str, Any]:
    facts = {name: value for name, value in vars(record).items() if name != "key"}
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


def _sums(group: Sequence["Record"]) -> tuple[str, str, str]:
    """How many files, their seconds, and the megapixels of their results."""
    sizes = [record.size_out for record in group if record.size_out]
    megapixels = sum(width * height for width, height in sizes) / 1e6
    seconds = sum(record.seconds for record in group)
    return str(len(group)), f"{seconds:.1f}", f"{megapixels:.1f}"


def _levels(task: Task, records: Sequence["Record"]) -> str:
    """The lowest and the highest level that was measured."""
    levels = sorted({record.level for record in records if record.level is not None})
    if not levels:
        return ""
    ends = dict.fromkeys([levels[0], levels[-1]])
    return f" ({task.level} {' to '.join(map(str, ends))} measured)"
