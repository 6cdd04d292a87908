"""`mambair bench`: measure quality and speed."""

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CallError
from ..models.catalog import list_models
from .figure import app as figure
from .help import Command, Group
from .restore import print_outcome
from .terminal import (
    Backend,
    BackendNames,
    Choices,
    Device,
    Dtype,
    DtypeNames,
    Json,
    Offline,
    as_flags,
    print_json,
    print_table,
    progress_bar,
    say,
    show,
)

if TYPE_CHECKING:
    from ..batch.restore_files import Outcome, Plan
    from ..bench.cost.rows import Row
    from ..bench.quality.results import Report

app = typer.Typer(cls=Group, help="Measure quality and speed.", invoke_without_command=True)
app.add_typer(figure, name="figure")


class Tiler(Choices):
    """How images are handed to networks."""

    AUTO = "auto"
    WHOLE = "whole"
    PUBLISHED = "published"


class Channel(Choices):
    """What of the images counts."""

    Y = "y"
    RGB = "rgb"
    GRAY = "gray"


class PairTask(Choices):
    """Tasks whose inputs only files can give."""

    DERAIN = "derain"
    DENOISE_REAL = "denoise-real"


class CleanTask(Choices):
    """Tasks that should leave a clean image as it is."""

    DENOISE = "denoise"
    DERAIN = "derain"
    DEJPEG = "dejpeg"


class Metric(Choices):
    """What is measured besides PSNR and SSIM."""

    LPIPS = "lpips"
    DISTS = "dists"


Data = Annotated[
    str | None,
    typer.Option(metavar="NAME|DIR", help="Set5, Urban100, CBSD68, Rain100H ..., or any folder."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data sets. Also: the variable MAMBAIR_DATA."),
]
Scale = Annotated[
    int | None, typer.Option("--scale", "-s", min=2, max=4, help="Enlarge. Default: 4.")
]
Noise = Annotated[float | None, typer.Option(min=0, max=255, help="Denoise: sigma of white noise.")]
Jpeg = Annotated[int | None, typer.Option(min=1, max=100, help="Mend JPEG of this quality.")]
Pairs = Annotated[
    PairTask | None, typer.Option(help="The folder holds inputs and truths for this task.")
]
Clean = Annotated[
    CleanTask | None, typer.Option(help="Measure what this task does to clean images.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="Name or file; repeatable. Default: the bundled one."),
]
TilerOption = Annotated[
    Tiler, typer.Option(help="Tiles by the free memory, none, or the parts of the papers.")
]
Ensemble = Annotated[
    bool, typer.Option("--ensemble", help="Average over flips and turns (MambaIR+).")
]
ChannelOption = Annotated[
    Channel | None, typer.Option(help="What counts. Default: as in the task's tables.")
]
Border = Annotated[
    int | None, typer.Option(min=0, help="Pixels left out. Default: the scale, or 0.")
]
Metrics = Annotated[
    list[Metric] | None, typer.Option(help="Measured besides PSNR and SSIM; repeatable.")
]
Images = Annotated[int | None, typer.Option(min=1, help="Only the first N images.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the noise that is added.")]
Seeds = Annotated[
    int,
    typer.Option(
        min=0, help="MambaIRv2: measure also so many seeds of its random routing, and their spread."
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="For the restored images, as DATASET-SETTING/MODEL/IMAGE.png."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute again what earlier runs computed.")]
FailBelow = Annotated[
    float | None,
    typer.Option(metavar="PSNR", help="Exit with 1 where a model's mean PSNR is lower."),
]
AllPublished = Annotated[
    bool, typer.Option("--all-published", help="Show published rows of all classes.")
]
Csv = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a row for each model and image.")
]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables.")]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a report with images to compare.")
]


@app.callback()
def bench(
    context: typer.Context,
    dataset: Data = None,
    data_root: DataRoot = None,
    scale: Scale = None,
    noise: Noise = None,
    jpeg: Jpeg = None,
    pairs: Pairs = None,
    clean: Clean = None,
    model: Models = None,
    tiler: TilerOption = Tiler.AUTO,
    ensemble: Ensemble = False,
    channel: ChannelOption = None,
    border: Border = None,
    metric: Metrics = None,
    images: Images = None,
    seed: Seed = 0,
    seeds: Seeds = 0,
    save: Save = None,
    fresh: Fresh = False,
    fail_below: FailBelow = None,
    all_published: AllPublished = False,
    csv: Csv = None,
    markdown: Markdown = None,
    html: Html = None,
    device: Device = "auto",
    backend: Backend = BackendNames.AUTO,
    dtype: Dtype = DtypeNames.FP32,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure quality on a data set as the papers do, beside what they printed."""
    if context.invoked_subcommand:
        return
    if dataset is None:
        raise CallError("give --dataset NAME or DIR, or a command; see mambair bench --help")
    from ..bench.quality import page, report
    from ..bench.quality.candidates import open_candidates
    from ..bench.quality.fetch_sets import fetch_set
    from ..bench.quality.measure import open_benchmark, run
    from ..bench.quality.tilers import check_tiler
    from ..models.cache import cache_folder
    from ..system.runtime import keep_freed_memory

    _check_folders(csv, markdown, html)
    with progress_bar(as_json) as progress:
        benchmark = open_benchmark(
            dataset,
            data_root,
            images,
            partial(fetch_set, tell=say, progress=progress),
            scale=scale,
            noise=noise,
            quality=jpeg,
            pairs=pairs and pairs.value,
            unspoilt=clean and clean.value,
            channel=channel and channel.value,
            border=border,
            seed=seed,
        )
    how = benchmark.protocol, check_tiler(tiler.value), ensemble, device, backend, dtype
    candidates = open_candidates(model or [benchmark.protocol.default_model], seeds, *how)
    keep_freed_memory()
    with progress_bar(as_json) as progress:
        found = run(
            benchmark,
            candidates,
            metrics=[m.value for m in metric or ()],
            cache=cache_folder() / "bench.sqlite",
            fresh=fresh,
            save=save,
            progress=progress,
        )
        if html:
            html.write_text(page.build(found, benchmark, candidates, save, progress), "utf-8")
    for path, text in ((csv, report.csv_rows), (markdown, report.markdown)):
        if path:
            path.write_text(text(found), "utf-8")
    _show(found, as_json, all_published)
    _fail_below(found, fail_below)


def _fail_below(found: "Report", bar: float | None) -> None:
    if bar is not None and (low := [r.name for r in found.networks if r.mean["psnr"] < bar]):
        say(f"below {bar:g} dB: {', '.join(low)}")
        raise typer.Exit(1)


def _show(found: "Report", as_json: bool, all_published: bool) -> None:
    from ..bench.quality import report

    if as_json:
        print_json(found.to_json())
        return
    show(report.headline(found))
    print_table(*report.images_table(found))
    published = report.shown_published(found, all_published)
    print_table(*report.summary_table(found, published))
    for line in report.footnotes(found, published):
        show(as_flags(line))
    if len(published) < len(found.published):
        print("All published rows: --all-published.")


def _check_folders(*files: Path | None) -> None:
    """Raise CallError where a file could not be written, before long work."""
    for file in filter(None, files):
        folder = file.resolve().parent
        if not folder.is_dir():
            raise CallError(f"{file}: there is no folder {folder}; create it first")


@app.command("download", cls=Command)
def bench_download(
    name: Annotated[str, typer.Argument(metavar="NAME")], offline: Offline = False
) -> None:
    """Fetch a data set where its licence allows, or say where a person gets it."""
    from ..bench.quality.fetch_sets import fetch_set
    from ..bench.quality.sets import known_set

    with progress_bar(False) as progress:
        folder = fetch_set(known_set(name), say, progress)
    show(folder)


@app.command("compare", cls=Command)
def bench_compare(
    first: Annotated[Path, typer.Argument(metavar="A.json")],
    second: Annotated[Path, typer.Argument(metavar="B.json")],
    as_json: Json = False,
) -> None:
    """Compare two reports of mambair bench --json, image by image: what the second gains."""
    from ..bench.quality.compare import compare, comparison_table, read_report

    found = compare(read_report(first), read_report(second))
    if as_json:
        print_json([comparison.to_json() for comparison in found])
        return
    for comparison in found:
        print_table(*comparison_table(comparison))
        print(f"time x{comparison.seconds:.2f}, peak memory x{comparison.peak_memory:.2f}")


@app.command("speed", cls=Command)
def bench_speed(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Name or file; repeatable. Default: the bundled ones."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Of the selective scan; repeatable. Default: all fast ones here."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = DtypeNames.AUTO,
    quick: Annotated[bool, typer.Option("--quick", help="Small images only.")] = False,
    as_json: Json = False,
) -> None:
    """Measure seconds a megapixel, peak memory, and how both grow with the size."""
    from ..bench.cost.speed import QUICK_SIDES, SIDES, speed, speed_table

    names = model or [row.name for row in list_models() if row.bundled]
    sides = QUICK_SIDES if quick else SIDES
    with progress_bar(as_json) as progress:
        rows = speed(names, backend or (), device, dtype, sides, progress)
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_table(*speed_table(rows))


@app.command("scan", cls=Command)
def bench_scan(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller images and fewer repetitions.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the scan and whole nets against plain PyTorch, mamba-ssm (on a GPU) and the floor."""
    from ..bench.cost import cpu, gpu

    rows = cpu.scan_report(quick) if device == "cpu" else list(gpu.scan_report(device, quick))
    _print_bars(rows, as_json)


@app.command("tiling", cls=Command)
def bench_tiling(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4",
    as_json: Json = False,
) -> None:
    """Measure the seams of tiles: differences to the untiled result, and their steps at borders."""
    from ..bench.quality.seams import seams, seams_table

    rows = seams(model, image)
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_table(*seams_table(rows))


@app.command("memory", cls=Command)
def bench_memory(
    model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4", as_json: Json = False
) -> None:
    """Measure peaks of memory against estimates, and limits up to 100 megapixels (CPU, Linux)."""
    from ..bench.cost.memory import memory, memory_table

    rows = memory(model, _upscale_command)
    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_table(*memory_table(rows))


def _upscale_command(source: Path, target: Path, weights: Path, limit: int) -> list[str]:
    """The command line that enlarges a file twice within so many bytes of memory."""
    command = [sys.executable, "-m", "mambair_cli", "upscale", str(source), "-o", str(target)]
    return [*command, "-s", "2", "-m", str(weights), "--memory-limit", str(limit)]


@app.command("folder", cls=Command)
def bench_folder(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer files.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what each file of a large folder costs besides the network, in time and memory."""
    from ..bench.cost.folder import folder_report

    def summary(plan: "Plan", outcome: "Outcome") -> None:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            print_outcome(plan, outcome)

    _print_bars(folder_report(quick, summary), as_json)


@app.command("train", cls=Command)
def bench_train(
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller patches and fewer repetitions.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a training step on the CPU, against autograd through the vectorised PyTorch scan."""
    from ..bench.cost.train_step import step_report

    _print_bars(step_report(quick), as_json)


def _print_bars(rows: "Sequence[Row]", as_json: bool) -> None:
    from ..bench.cost.rows import bars_table

    if as_json:
        print_json([row.to_json() for row in rows])
    else:
        print_table(*bars_table(rows))


@app.command("peers", cls=Command)
def bench_peers(
    dataset: Annotated[str, typer.Option(metavar="NAME|DIR", help="For the quality.")] = "Set5",
    data_root: DataRoot = None,
    scale: Annotated[int, typer.Option("--scale", "-s", min=2, max=4, help="Enlarge.")] = 2,
    images: Images = None,
    side: Annotated[int, typer.Option(min=32, help="Pixels a side of the timed input.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Draw quality against time."),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Measure the bundled networks beside others that are installed, on the CPU, in turns."""
    from ..bench.figures.canvas import check_figure
    from ..bench.peers.picture import draw
    from ..bench.peers.race import peers_notes, peers_table, race
    from ..bench.quality.fetch_sets import fetch_set
    from ..bench.quality.measure import open_benchmark

    if output:
        check_figure(output)
    with progress_bar(as_json) as progress:
        fetch = partial(fetch_set, tell=say, progress=progress)
        benchmark = open_benchmark(dataset, data_root, images, fetch, scale=scale)
        report = race(benchmark, side, rounds, progress)
    if output:
        draw(report, output)
    if as_json:
        print_json(report.to_json())
        return
    print_table(*peers_table(report))
    print("\n".join(peers_notes(report)))
