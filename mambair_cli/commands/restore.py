"""`mambair upscale` and the other tasks: one command for each row of TASKS."""

import inspect
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ..errors import CallError
from ..models.catalog import MAX_SCALE, Task, model_named
from ..models.choice import Choice, better_model, check_task, gain, is_here, parse_choice
from .models import fetch
from .terminal import (
    Backend,
    Device,
    Dtype,
    Json,
    Offline,
    print_json,
    print_table,
    progress_bar,
    say,
)

if TYPE_CHECKING:
    from ..batch.manifest import Record
    from ..restore.upscaler import Upscaler


def command(task: Task) -> Callable[..., None]:
    """The command that restores files by a row of TASKS."""

    def restore(
        inputs: Annotated[
            list[str],
            typer.Argument(
                metavar="INPUT", help="Photographs, folders, or - for stdin.", show_default=False
            ),
        ],
        output: Annotated[
            str | None,
            typer.Option(
                "--output",
                "-o",
                help="A file (- for stdout) for one photograph, else a folder. Default: beside the photograph, with"
                f" {task.suffix.format(scale=task.scale)} after its name.",
            ),
        ] = None,
        scale: Annotated[
            float | None,
            typer.Option(
                "--scale",
                "-s",
                min=1,
                max=MAX_SCALE,
                help=f"How many times larger, such as 2 or 1.5. Default: the model's, or {task.scale}.",
            ),
        ] = None,
        width: Annotated[
            int | None,
            typer.Option(min=1, help="Of the results in pixels, instead of --scale."),
        ] = None,
        height: Annotated[
            int | None, typer.Option(min=1, help="One of both alone keeps the aspect.")
        ] = None,
        model: Annotated[
            str | None,
            typer.Option(
                "--model", "-m", help="A model's name (mambair models list) or a checkpoint file."
            ),
        ] = None,
        setting: Annotated[
            str | None,
            typer.Option(f"--{task.option}", help=task.option_help),
        ] = None,
        globs: Annotated[
            list[str] | None,
            typer.Option(
                "--glob",
                help="Of folders only what matches, such as '*.jpg' or 'trip/*'; repeatable.",
            ),
        ] = None,
        overwrite: Annotated[
            bool,
            typer.Option("--overwrite", help="Into a folder: also what is finished there already."),
        ] = False,
        format: Annotated[
            str | None,
            typer.Option(
                help="Of the results: png, jpg, webp, tiff ... Default: the input's, or png."
            ),
        ] = None,
        quality: Annotated[
            int | None, typer.Option(min=1, max=100, help="Of formats that lose some. Default: 95.")
        ] = None,
        suffix: Annotated[
            str | None, typer.Option(help="Goes after the names of the results.")
        ] = None,
        tile: Annotated[
            str,
            typer.Option(help="auto (by the free memory), off (whole image), or pixels a side."),
        ] = "auto",
        tile_overlap: Annotated[
            int, typer.Option(min=0, help="Pixels of the input that neighbouring tiles share.")
        ] = 32,
        memory_limit: Annotated[
            int | None,
            typer.Option(
                parser=_parse_bytes,
                metavar="SIZE",
                help="What may be taken of memory, such as 4GB.",
            ),
        ] = None,
        max_pixels: Annotated[
            int | None,
            typer.Option(
                min=1, help="Refuse larger inputs. Default: 536,870,912.", show_default=False
            ),
        ] = None,
        ensemble: Annotated[
            bool,
            typer.Option(
                "--ensemble", help="Average over eight flips and turns: better, 8 times slower."
            ),
        ] = False,
        alpha: Annotated[
            str, typer.Option(help="How transparency is enlarged: model or bicubic.")
        ] = "model",
        device: Device = "auto",
        backend: Backend = "auto",
        dtype: Dtype = "auto",
        offline: Offline = False,
        quiet: Annotated[
            bool, typer.Option("--quiet", "-q", help="No progress bar, no advice.")
        ] = False,
        as_json: Json = False,
    ) -> None:
        from ..batch.jobs import find_jobs
        from ..batch.manifest import Manifest, Record
        from ..batch.pipeline import Batch
        from ..images.io import MAX_PIXELS
        from ..images.resize import Size
        from ..restore.advice import Advisor

        started = time.perf_counter()
        sides = "".join(f"{side}{letter}" for side, letter in ((width, "w"), (height, "h")) if side)
        if scale and sides:
            raise CallError("--scale and --width or --height exclude each other; give one of them")
        choice = parse_choice(task, setting, model)
        row = model_named(model or "")
        factor = scale or (row.scale if row else None if model else task.scale)

        def load() -> "Upscaler":
            from ..restore.restorer import Options
            from ..restore.upscaler import Upscaler

            if row:
                check_task(task.name, row.name, row.task, row.scale)
                fetch(row, as_json or quiet)
            options = Options(
                device, backend, tile, tile_overlap, memory_limit, ensemble, alpha, dtype
            )
            return Upscaler(choice, options)

        upscaler = None
        if factor is None and not sides:  # only the file tells
            upscaler = load()
            factor = upscaler.chain(1)[0].scale
        jobs, folder = find_jobs(
            inputs,
            output,
            suffix=suffix,
            default_suffix=f"_{sides}" if sides else task.suffix.format(scale=factor),
            format=format,
            globs=globs or (),
        )
        upscaler = upscaler or load()
        upscaler.chain(1 if sides else factor or 1)  # what cannot be loaded is told before the work
        size = Size(factor or 1, width, height)
        manifest = None
        if folder:
            from ..models.fetch import find_checkpoint
            from ..system.files import sha256

            settings = {
                "models": [
                    sha256(find_checkpoint(name))
                    for name in choice.possible(None if sides else factor)
                ],
                "size": [None if sides else factor, width, height],
                "quality": quality,
                "ensemble": ensemble,
                "alpha": alpha,
                "dtype": dtype,
            }
            manifest = Manifest(folder, settings)
        facts: dict[str, Any] = {"scale": None if sides else factor}
        records: list[Record] = []

        def done(record: Record) -> None:
            records.append(record)
            for message in [*record.notes, *filter(None, [record.error])]:
                say(message)

        try:
            with progress_bar(as_json or quiet) as progress:
                batch = Batch(
                    upscaler, size, quality, manifest, overwrite, max_pixels or MAX_PIXELS
                )
                if not quiet:
                    batch.advise = Advisor()
                batch.run(jobs, done, progress)
        finally:  # an interrupt ends after saying what is done; under torchrun, one process has the records
            facts["model"] = ", ".join(
                dict.fromkeys(name for record in records for name in record.models)
            )
            facts |= {"backend": upscaler.backend, "device": str(upscaler.device)}
            facts["seconds"] = round(time.perf_counter() - started, 3)
            facts["better"] = None if quiet else _better(choice, facts, records)
            if records and folder:
                _print_summary(facts, folder, records, len(jobs), task.level, as_json)
        if any(record.error for record in records):
            raise typer.Exit(1)
        if records and not folder:
            _print_result(
                facts, records[0], task.level, as_json, sys.stderr if output == "-" else sys.stdout
            )

    restore.__doc__ = task.summary
    signature = inspect.signature(restore)
    without = {
        *(("scale", "width", "height") if task.scale == 1 else ()),
        *(() if task.option else ("setting",)),
    }
    kept = [parameter for name, parameter in signature.parameters.items() if name not in without]
    restore.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return restore


def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r} is no amount of memory, such as 4GB or 500MB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _better(
    choice: Choice, facts: Mapping[str, Any], records: Sequence["Record"]
) -> dict[str, Any] | None:
    """What would have been better than the model that was chosen, by how much, and the time it would have taken."""
    row = None if choice.model else model_named(facts["model"])
    if (
        row is None
        or (other := better_model(row)) is None
        or any(record.status == "skipped" for record in records)
    ):
        return None
    at_work = min(
        facts["seconds"], sum(record.seconds for record in records)
    )  # of several processes in all
    seconds = facts["seconds"] + at_work * (other.gmacs / row.gmacs - 1)
    return {
        "model": other.name,
        "here": is_here(other),
        "gain": round(gain(other, row), 2),
        "dataset": other.scores[0].dataset,
        "scale": other.scale,
        "seconds": round(seconds, 3),
    }


def _hint(better: Mapping[str, Any] | None) -> str:
    if better is None:
        return ""
    seconds = better["seconds"]
    took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"
    fetched = "" if better["here"] else ", once fetched"
    dataset = f"{better['dataset']} x{better['scale']}"
    return f"; {better['gain']:.1f} dB better on {dataset}: -m {better['model']}, about {took}{fetched}"


def _print_result(
    facts: dict[str, Any], record: "Record", level: str, as_json: bool, stream: TextIO
) -> None:
    names = ("input", "output", "size_in", "size_out", "tiles", *(["level"] if level else []))
    facts |= {name: getattr(record, name) for name in names}
    if as_json:
        print_json(facts, stream)
        return
    sizes = "{}x{} -> {}x{}".format(*facts["size_in"], *facts["size_out"])
    measured = "" if record.level is None else f" ({level} {record.level} measured)"
    how = f"{facts['model']}{measured}, {facts['backend']} on {facts['device']}, {facts['seconds']:.1f} s"
    print(f"{record.output}: {sizes}, {how}{_hint(facts['better'])}", file=stream)


def _print_summary(
    facts: dict[str, Any],
    folder: Path,
    records: Sequence["Record"],
    total: int,
    level: str,
    as_json: bool,
) -> None:
    groups = {
        status: [r for r in records if r.status == status] for status in ("ok", "skipped", "failed")
    }
    counts = {status: len(group) for status, group in groups.items()} | {
        "not_tried": total - len(records)
    }
    if as_json:
        files = [{name: value for name, value in vars(r).items() if name != "key"} for r in records]
        print_json({"output": str(folder), **counts, **facts, "files": files})
        return
    rows = []
    for status, group in groups.items():
        megapixels = sum(r.size_out[0] * r.size_out[1] for r in group if r.size_out) / 1e6
        rows.append(
            (status, str(len(group)), f"{sum(r.seconds for r in group):.1f}", f"{megapixels:.1f}")
        )
    if counts["not_tried"]:
        rows.append(("not tried", str(counts["not_tried"]), "", ""))
    print_table(("", "files", "seconds", "megapixels"), rows)
    levels = sorted({record.level for record in records if record.level is not None})
    measured = (
        f" ({level} {' to '.join(map(str, dict.fromkeys(levels[:1] + levels[-1:])))} measured)"
        if levels
        else ""
    )
    how = f"{facts['model']}{measured}, {facts['backend']} on {facts['device']}, {facts['seconds']:.1f} s"
    print(f"{folder}: {how}{_hint(facts['better'])}")
