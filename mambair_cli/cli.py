"""The command line: parse, one call, print, exit code. No torch at import, so `--help` is instant."""

import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from . import __version__
from .errors import CallError, MambairError
from .registry import MAX_SCALE, MODELS, TASKS, Task, find_models, model_named

if TYPE_CHECKING:
    from .batch import Record
    from .engine import Upscaler

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
}
UsageError: Any = typer.BadParameter.__base__  # click's, wherever this version of typer keeps it

app = typer.Typer(
    help="Make a bad photograph better with state-space networks.",
    context_settings=SETTINGS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Which models there are.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure quality and speed.", invoke_without_command=True)
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Backend = Annotated[str, typer.Option(help="Of the selective scan: auto, numba, triton, mamba-ssm or reference.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]


def main() -> None:
    """Run the command line; every error that is foreseen becomes one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for the names of files that it cannot encode
    try:
        code = app(prog_name="mambair", standalone_mode=False) or 0
        if code == 130:  # what newer versions of typer make of KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code)
    except MambairError as error:
        _fail(str(error), error.exit_code)
    except UsageError as error:
        message = error.format_message()
        if len(message.splitlines()) == 1:
            command = error.ctx.command_path if error.ctx else "mambair"
            _fail(f"{message.rstrip('.')}; see {command} --help", error.exit_code)
        error.show()  # nothing was asked for: the help
        sys.exit(error.exit_code)
    except OSError as error:  # such as a name that is too long, or a full disk behind stdout
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


def _say(message: str) -> None:
    """One line on stderr, also where the name of a file has several."""
    print(f"mambair: {message}".replace("\n", "\\n"), file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    _say(message)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is decided and why.")] = False,
) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, format="mambair: %(message)s")
    if version:
        print(f"mambair {__version__}")
        raise typer.Exit


def _command(task: Task) -> Callable[..., None]:
    """The command that restores files by a row of TASKS."""

    def restore(
        inputs: Annotated[
            list[str],
            typer.Argument(metavar="INPUT", help="Photographs, folders, or - for stdin.", show_default=False),
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
                hidden=task.scale == 1,
                help=f"How many times larger, such as 2 or 1.5. Default: the model's, or {task.scale}.",
            ),
        ] = None,
        width: Annotated[
            int | None,
            typer.Option(min=1, hidden=task.scale == 1, help="Of the results in pixels, instead of --scale."),
        ] = None,
        height: Annotated[
            int | None, typer.Option(min=1, hidden=task.scale == 1, help="One of both alone keeps the aspect.")
        ] = None,
        model: Annotated[
            str | None,
            typer.Option("--model", "-m", help="A model's name (mambair models list) or a checkpoint file."),
        ] = None,
        globs: Annotated[
            list[str] | None,
            typer.Option("--glob", help="Of folders only what matches, such as '*.jpg' or 'trip/*'; repeatable."),
        ] = None,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Into a folder: also what is finished there already.")
        ] = False,
        format: Annotated[
            str | None, typer.Option(help="Of the results: png, jpg, webp, tiff ... Default: the input's, or png.")
        ] = None,
        quality: Annotated[
            int | None, typer.Option(min=1, max=100, help="Of formats that lose some. Default: 95.")
        ] = None,
        suffix: Annotated[str | None, typer.Option(help="Goes after the names of the results.")] = None,
        tile: Annotated[
            str, typer.Option(help="auto (by the free memory), off (whole image), or pixels a side.")
        ] = "auto",
        tile_overlap: Annotated[
            int, typer.Option(min=0, help="Pixels of the input that neighbouring tiles share.")
        ] = 32,
        memory_limit: Annotated[
            int | None,
            typer.Option(parser=_parse_bytes, metavar="SIZE", help="What may be taken of memory, such as 4GB."),
        ] = None,
        max_pixels: Annotated[
            int | None, typer.Option(min=1, help="Refuse larger inputs. Default: 536,870,912.", show_default=False)
        ] = None,
        ensemble: Annotated[
            bool, typer.Option("--ensemble", help="Average over eight flips and turns: better, 8 times slower.")
        ] = False,
        alpha: Annotated[str, typer.Option(help="How transparency is enlarged: model or bicubic.")] = "model",
        device: Device = "auto",
        backend: Backend = "auto",
        dtype: Annotated[
            str, typer.Option(help="Of convolutions and linear layers: auto (fp16 on a GPU), fp32, fp16 or bf16.")
        ] = "auto",
        as_json: Json = False,
    ) -> None:
        from .batch import Batch, Manifest, Record, find_jobs
        from .image_io import MAX_PIXELS
        from .resize import Size

        started = time.perf_counter()
        sides = "".join(f"{side}{letter}" for side, letter in ((width, "w"), (height, "h")) if side)
        if scale and sides:
            raise CallError("--scale and --width or --height exclude each other; give one of them")
        row = model_named(model or "")
        factor = scale or (row.scale if row else None if model else task.scale)

        def load() -> "Upscaler":
            from .engine import Options, Upscaler

            options = Options(device, backend, tile, tile_overlap, memory_limit, ensemble, alpha, dtype)
            return Upscaler(model, options, task.name)

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
        if not sides:
            upscaler.chain(factor or 1)  # what cannot be loaded is told before the work
        size = Size(factor or 1, width, height)
        manifest = None
        if folder:
            from .weights import find_checkpoint, sha256

            rows = [row for row in MODELS if row.task == task.name] if sides else find_models(task.name, factor or 1)
            names = [model] if model else dict.fromkeys(row.name for row in rows)
            settings = {
                "models": [sha256(find_checkpoint(name)) for name in names],
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
                _say(message)

        try:
            with _progress(as_json) as progress:
                batch = Batch(upscaler, size, quality, manifest, overwrite, max_pixels or MAX_PIXELS)
                batch.run(jobs, done, progress)
        finally:  # an interrupt ends after saying what is done; under torchrun, one process has the records
            facts["model"] = ", ".join(upscaler.restorers)
            facts |= {"backend": upscaler.backend, "device": str(upscaler.device)}
            facts["seconds"] = round(time.perf_counter() - started, 3)
            if records and folder:
                _print_summary(facts, folder, records, len(jobs), as_json)
        if any(record.error for record in records):
            raise typer.Exit(1)
        if records and not folder:
            _print_result(facts, records[0], as_json, sys.stderr if output == "-" else sys.stdout)

    restore.__doc__ = task.summary
    return restore


def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if not match:
        raise typer.BadParameter(f"{text!r} is no amount of memory, such as 4GB or 500MB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


for _task in TASKS.values():
    app.command(_task.name)(_command(_task))


def _print_result(facts: dict[str, Any], record: "Record", as_json: bool, stream: TextIO) -> None:
    names = ("input", "output", "size_in", "size_out", "tiles")
    facts |= {name: getattr(record, name) for name in names}
    if as_json:
        _print_json(facts, stream)
        return
    sizes = "{}x{} -> {}x{}".format(*facts["size_in"], *facts["size_out"])
    how = f"{facts['model']}, {facts['backend']} on {facts['device']}, {facts['seconds']:.1f} s"
    print(f"{record.output}: {sizes}, {how}", file=stream)


def _print_summary(facts: dict[str, Any], folder: Path, records: Sequence["Record"], total: int, as_json: bool) -> None:
    groups = {status: [r for r in records if r.status == status] for status in ("ok", "skipped", "failed")}
    counts = {status: len(group) for status, group in groups.items()} | {"not_tried": total - len(records)}
    if as_json:
        files = [{name: value for name, value in vars(r).items() if name != "key"} for r in records]
        _print_json({"output": str(folder), **counts, **facts, "files": files})
        return
    rows = []
    for status, group in groups.items():
        megapixels = sum(r.size_out[0] * r.size_out[1] for r in group if r.size_out) / 1e6
        rows.append((status, str(len(group)), f"{sum(r.seconds for r in group):.1f}", f"{megapixels:.1f}"))
    if counts["not_tried"]:
        rows.append(("not tried", str(counts["not_tried"]), "", ""))
    _print_table(("", "files", "seconds", "megapixels"), rows)
    print(f"{folder}: {facts['model']}, {facts['backend']} on {facts['device']}, {facts['seconds']:.1f} s")


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar with the time left on a terminal, nothing elsewhere; yields what takes the share done and a label."""
    first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    if quiet or not first or not all(stream and stream.isatty() for stream in (sys.stdout, sys.stderr)):
        yield lambda share, label: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=40)
        ),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=False)

        def update(share: float, label: str) -> None:
            bar.update(task, completed=share, visible=True, description=label.replace("\n", "\\n"))

        yield update


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models that can be used by name."""
    from dataclasses import asdict

    if as_json:
        _print_json([asdict(model) for model in MODELS])
        return
    rows = [(m.name, m.task, f"x{m.scale}", f"{m.parameters:,}", m.degradation, m.score) for m in MODELS]
    _print_table(("name", "task", "scale", "parameters", "for", "score"), rows)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this installation can use: versions, devices, scan back ends and why one is unavailable."""
    from .doctor import report

    facts = report()
    if as_json:
        _print_json(facts)
        return
    rows = [("version", name, version) for name, version in facts["versions"].items()]
    rows += [("device", name, text) for name, text in facts["devices"].items()]
    rows += [("back end", name, reason or "available") for name, reason in facts["backends"].items()]
    _print_table(("", "", ""), rows)


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="A recipe's name or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder of high-resolution photographs.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log, checkpoint, weights.")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    patch: Annotated[
        int | None, typer.Option(min=1, help="Low-resolution pixels, instead of the recipe's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on exactly where the run in --out stopped.")
    ] = False,
    init: Annotated[
        Path | None, typer.Option(help="Weights to start from; tensors that fit are taken.")
    ] = None,
    val: Annotated[Path | None, typer.Option(help="Folder of validation photographs.")] = None,
) -> None:
    """Train a network by a recipe."""
    from dataclasses import replace

    from .runtime import keep_freed_memory
    from .train import read_recipe
    from .train import train as run

    keep_freed_memory()
    config = read_recipe(recipe)
    data_changes = {"patch": patch or config.data.patch, "batch": batch or config.data.batch}
    config = replace(
        config,
        data=replace(config.data, **data_changes),
        schedule=replace(config.schedule, iterations=iterations or config.schedule.iterations),
    )
    print(run(config, data, out, resume=resume, init=init, val=val))


@bench_app.callback()
def bench(
    context: typer.Context,
    dataset: Annotated[Path | None, typer.Option(help="Folder of high-resolution images.")] = None,
    scale: Annotated[int, typer.Option("--scale", "-s", min=2, max=4)] = 4,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the bundled one.")] = None,
    tile: Annotated[str, typer.Option(help="As in upscale.")] = "auto",
    device: Device = "auto",
    backend: Backend = "auto",
    as_json: Json = False,
) -> None:
    """Measure quality on a folder of images: PSNR and SSIM on Y, beside bicubic interpolation."""
    if context.invoked_subcommand:
        return
    if dataset is None:
        raise CallError("give --dataset DIR, or one of the commands of mambair bench --help")
    from .bench import quality

    facts = quality(
        model or find_models("upscale", scale)[0].name, dataset, scale, tile=tile, device=device, backend=backend
    )
    if as_json:
        _print_json(facts)
        return
    rows = [
        (
            r["image"],
            f"{r['psnr_y']:.3f}",
            f"{r['ssim_y']:.4f}",
            f"{r['bicubic_psnr_y']:.3f}",
            f"{r['bicubic_ssim_y']:.4f}",
        )
        for r in [*facts["images"], facts["mean"]]
    ]
    _print_table(("image", "PSNR-Y", "SSIM-Y", "bicubic PSNR-Y", "SSIM-Y"), rows)
    print(f"{facts['model']} x{scale}, {facts['backend']} on {facts['device']}, {facts['seconds']:.1f} s")


@bench_app.command("scan")
def bench_scan(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller images and fewer repetitions.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the scan and whole nets on the CPU, against the vectorised PyTorch form and the floor."""
    from .bench import scan_report

    _print_bars(scan_report(quick), as_json)


@bench_app.command("tiling")
def bench_tiling(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4",
    as_json: Json = False,
) -> None:
    """Measure the seams of tiled restoration: differences to the untiled result, and their steps at the borders."""
    from .bench import seams

    rows = seams(model, image)
    if as_json:
        _print_json(rows)
        return
    cells = [
        (
            *(str(r[key]) for key in ("tile", "overlap", "tiles")),
            f"{r['max']:.2f}",
            f"{r['mean']:.4f}",
            f"{r['psnr']:.2f}",
            f"{r['border']:.2f}",
            f"{r['inside']:.2f}",
        )
        for r in rows
    ]
    differences = ("largest difference (of 255)", "mean", "PSNR to untiled, dB", "largest step at borders", "inside")
    _print_table(("tile", "overlap", "tiles", *differences), cells)


@bench_app.command("memory")
def bench_memory(model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4", as_json: Json = False) -> None:
    """Measure the peak of memory against its estimate, and how a limit is kept up to 64 megapixels (CPU, Linux)."""
    from .bench import memory

    rows = memory(model)
    if as_json:
        _print_json(rows)
        return
    cells = [
        (
            r["model"],
            f"{r['megapixels']:g}",
            str(r["tiles"]),
            f"{r['predicted'] / 2**20:.0f}",
            f"{r['measured'] / 2**20:.0f}",
            f"{r['predicted'] / r['measured']:.2f}",
            f"{r['process'] / 2**20:.0f}",
            f"{r['limit'] / 2**20:.0f}" if r["limit"] else "none",
            f"{r['seconds']:.1f}",
        )
        for r in rows
    ]
    work = ("predicted, MiB", "measured", "ratio")
    _print_table(("model", "megapixels", "tiles", *work, "whole process", "limit", "seconds"), cells)


def _print_bars(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    cells = [
        (r["what"], r["value"], r["bar"], {True: "met", False: "MISSED", None: ""}[r["met"]]) for r in rows
    ]
    _print_table(("what", "measured", "bar", ""), cells)


def _print_json(facts: Any, stream: TextIO | None = None) -> None:
    """One line of JSON, which has no word for infinity (the PSNR of equal images): it becomes null."""
    print(json.dumps(json.loads(json.dumps(facts), parse_constant=lambda _: None)), file=stream)


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False)
    table = Table(*header, box=None, show_header=any(header))
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = 200
    console.print(table)
