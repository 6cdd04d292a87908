"""`mambair watch`: restore what arrives in a folder."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..batch.restore_files import Plan, Request, restore_files
from ..errors import BackendError, CallError
from ..models.tasks import TASKS
from ..restore.options import Options
from .help import COMMON
from .models import fetch
from .restore import parameters
from .run_log import run_log
from .terminal import choices, ignore, progress_bar, say, show

if TYPE_CHECKING:
    from ..batch.manifest import Record

EXAMPLES = "\n".join(
    (
        "mambair watch scans/ -o better/",
        "mambair watch scans/ -o better/ --task denoise",
        "mambair watch scans/ -o better/ -s 2 --format jpg --log watch.jsonl",
    )
)

TaskNames = choices("TaskNames", TASKS)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What arrives here is restored.")]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Folder for the results.", rich_help_panel=COMMON
    ),
]
TaskName = Annotated[
    TaskNames,  # type: ignore[valid-type]
    typer.Option(help="What to do with each photo.", rich_help_panel=COMMON),
]
LEFT_OUT = ("inputs", "output", "setting", "dry_run", "as_json", "compare", "overwrite", "shard")
"""Options of `mambair upscale` that mean nothing here."""

STEP = 1000
"""Milliseconds between two looks."""


def command() -> Callable[..., None]:
    """The command, with the options of `mambair upscale` that make sense for it."""

    def watch(**given: Any) -> None:
        folder, output = given.pop("folder"), given.pop("output")
        task, quiet, log = TASKS[given.pop("task")], given.pop("quiet"), given.pop("log")
        del given["offline"]
        options = Options(**{f.name: given.pop(f.name) for f in fields(Options) if f.name in given})
        globs = tuple(given.pop("globs") or ())
        if task.scale == 1 and any(given[name] for name in ("scale", "width", "height")):
            raise CallError(f"{task.name} does not enlarge; leave out --scale, --width, --height")
        if not folder.is_dir():
            raise CallError(f"{folder}: no such folder; create it first")
        request = Request(
            task, (str(folder),), f"{output}/", globs=globs, options=options, advice=False, **given
        )
        _watch(request, folder, quiet, log)

    watch.__doc__ = "Restore what arrives in a folder, until Ctrl-C ends it."
    given = {p.name: p for p in parameters(TASKS["upscale"]) if p.name not in LEFT_OUT}
    own = [
        inspect.Parameter("folder", inspect.Parameter.KEYWORD_ONLY, annotation=Folder),
        inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, annotation=Output),
        inspect.Parameter(
            "task", inspect.Parameter.KEYWORD_ONLY, default="upscale", annotation=TaskName
        ),
    ]
    watch.__signature__ = inspect.Signature([*own, *given.values()])  # type: ignore[attr-defined]
    return watch


def looks(folder: Path) -> Iterator[bool]:
    """Whether a folder has changed, at once and then every second. Raises BackendError."""
    try:
        import watchfiles
    except ImportError:
        raise BackendError("watching needs watchfiles: pip install 'mambair[watch]'") from None
    yield True
    options: dict[str, Any] = {"rust_timeout": STEP, "yield_on_timeout": True, "step": 100}
    for changes in watchfiles.watch(folder, **options):
        yield bool(changes)


def _watch(request: Request, folder: Path, quiet: bool, log: Path | None) -> None:
    from ..batch.arrivals import restore_arrivals

    counts = {"ok": 0, "skipped": 0, "failed": 0}
    with run_log(log) as write:

        def done(record: "Record") -> None:
            counts[record.status] += 1
            for message in [*record.notes, *filter(None, [record.error])]:
                say(message)
            facts = {f.name: getattr(record, f.name) for f in fields(record) if f.name != "key"}
            write("file", facts)
            if record.status == "ok":
                show(f"{record.output}: {record.seconds:.1f} s")
                sys.stdout.flush()

        def restore(plan: Plan) -> None:
            if plan.row:
                fetch(plan.row, quiet)
            with progress_bar(quiet) as progress:
                note = ignore if quiet else say
                outcome = restore_files(plan, done=done, progress=progress, note=note)
            if outcome.stopped:
                raise outcome.stopped

        write("start", {"task": request.task.name, "folder": str(folder)})
        if not quiet:
            say(f"watching {folder}; Ctrl-C ends it")
        try:
            restore_arrivals(request, looks(folder), restore)
        except KeyboardInterrupt:
            # The way to end it, so nothing went wrong.
            pass
        finally:
            write("end", dict(counts))
    skipped = f", {counts['skipped']} skipped as finished" if counts["skipped"] else ""
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    print(f"{request.output}: {counts['ok']} restored{skipped}{failed}")
