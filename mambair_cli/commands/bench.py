"""`mambair bench`: measure quality and speed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CallError
from ..models.catalog import list_models
from .figure import app as figure
from .terminal import (
    Backend,
    BackendNames,
    Device,
    Dtype,
    DtypeNames,
    Json,
    print_json,
    print_table,
    progress_bar,
    say,
)

app = typer.Typer(help="Measure quality and speed.", invoke_without_command=True)
app.add_typer(figure, name="figure")

DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data sets. Also: the variable MAMBAIR_DATA."),
]


@app.callback()
def bench(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|DIR", help="Set5, Urban100, CBSD68, Rain100H ..., or any folder."
        ),
    ] = None,
    data_root: DataRoot = None,
    scale: Annotated[
        int | None, typer.Option("--scale", "-s", min=2, max=4, help="Enlarge. Default: 4.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(min=0, max=255, help="Denoise: sigma of white noise.")
    ] = None,
    jpeg: Annotated[
        int | None, typer.Option(min=1, max=100, help="Mend JPEG of this quality.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="The folder holds inputs and truths: derain or denoise-real."
        ),
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="What denoise, derain or dejpeg does to clean images."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Name or file; repeatable. Default: the bundled one."),
    ] = None,
    tiler: Annotated[
        str,
        typer.Option(
            help="auto (by the free memory), whole, or published (in the parts of the papers)."
        ),
    ] = "auto",
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average over flips and turns (MambaIR+).")
    ] = False,
    channel: Annotated[
        str | None, typer.Option(help="y, rgb or gray. Default: as the task's tables.")
    ] = None,
    border: Annotated[
        int | None, typer.Option(min=0, help="Pixels left out. Default: the scale, or 0.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Besides PSNR and SSIM: lpips, dists; repeatable.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that is added.")] = 0,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="For the restored images, as DATASET-SETTING/MODEL/IMAGE.png."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute again what earlier runs computed.")
    ] = False,
    fail_below: Annotated[
        float | None,
        typer.Option(metavar="PSNR", help="Exit with 1 where a model's mean PSNR is lower."),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a row for each model and image.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report with images to compare.")
    ] = None,
    device: Device = "auto",
    backend: Backend = BackendNames.AUTO,
    dtype: Dtype = DtypeNames.FP32,
    as_json: Json = False,
) -> None:
    """Measure quality on a data set as the papers do, beside what they printed."""
    if context.invoked_subcommand:
        return
    if dataset is None:
        raise CallError(
            "give --dataset NAME or DIR, or one of the commands of mambair bench --help"
        )
    from ..bench.quality import page, report
    from ..bench.quality.candidates import Candidate
    from ..bench.quality.measure import open_benchmark, run
    from ..bench.quality.tilers import check_tiler
    from ..images.metrics import check_ssim
    from ..models.cache import cache_folder
    from ..system.runtime import keep_freed_memory

    check_ssim()
    way = check_tiler(tiler)
    for target in filter(None, (csv, markdown, html)):
        if not target.resolve().parent.is_dir():
            raise CallError(
                f"{target}: there is no folder {target.resolve().parent}; create it first"
            )
    benchmark = open_benchmark(
        dataset,
        data_root,
        images,
        scale=scale,
        noise=noise,
        quality=jpeg,
        pairs=pairs,
        unspoilt=clean,
        channel=channel,
        border=border,
        seed=seed,
    )
    task = benchmark.protocol
    models = model or [task.default_model]
    candidates = [Candidate(name, task, way, ensemble, device, backend, dtype) for name in models]
    keep_freed_memory()
    with progress_bar(as_json) as progress:
        facts = run(
            benchmark,
            candidates,
            metrics=metric or (),
            cache=cache_folder() / "bench.sqlite",
            fresh=fresh,
            save=save,
            progress=progress,
        )
        if html:
            html.write_text(page.build(facts, benchmark, candidates, save, progress), "utf-8")
    if csv:
        csv.write_text(report.csv_rows(facts), "utf-8")
    if markdown:
        markdown.write_text(report.markdown(facts), "utf-8")
    if as_json:
        print_json(facts)
    else:
        print(report.headline(facts))
        print_table(*report.images_table(facts))
        print_table(*report.summary_table(facts))
        print("\n".join(report.footnotes(facts)))
    low = [
        r["name"]
        for r in facts["results"][1:]
        if fail_below is not None and r["mean"]["psnr"] < fail_below
    ]
    if low:
        say(f"below {fail_below:g} dB: {', '.join(low)}")
        raise typer.Exit(1)


@app.command("download")
def bench_download(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Fetch a data set where its licence allows, or say where a person gets it."""
    from ..bench.quality.sets import download_set

    with progress_bar(False) as progress:
        folder = download_set(name, progress)
    print(folder)


@app.command("compare")
def bench_compare(
    first: Annotated[Path, typer.Argument(metavar="A.json")],
    second: Annotated[Path, typer.Argument(metavar="B.json")],
    as_json: Json = False,
) -> None:
    """Compare two reports of mambair bench --json, image by image: what the second gains."""
    from ..bench.quality.compare import compare, read_report
    from ..bench.quality.report import LABELS

    gains = compare(read_report(first), read_report(second))
    if as_json:
        print_json(gains)
        return
    for gain in gains:
        names = list(gain["mean"])
        rows = [(row["image"], *(_signed(row[m]) for m in names)) for row in gain["images"]]
        rows.append(("mean", *(_signed(gain["mean"][m]) for m in names)))
        rows.append(
            (
                "95 % of means",
                *(" to ".join(map(_signed, gain["interval"][m] or ())) for m in names),
            ),
        )
        print_table((f"{gain['second']} - {gain['first']}", *(LABELS[m] for m in names)), rows)
        print(f"time x{gain['seconds']:.2f}, peak memory x{gain['peak_memory']:.2f}")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


@app.command("speed")
def bench_speed(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Name or file; repeatable. Default: the bundled ones."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Of the selective scan; repeatable. Default: all that can run."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = DtypeNames.AUTO,
    quick: Annotated[bool, typer.Option("--quick", help="Small images only.")] = False,
    as_json: Json = False,
) -> None:
    """Measure seconds for a megapixel, peak memory, and how both grow with the size."""
    from ..bench.cost.speed import QUICK_SIDES, SIDES, speed

    names = model or [row.name for row in list_models() if row.bundled]
    with progress_bar(as_json) as progress:
        rows = speed(names, backend or (), device, dtype, QUICK_SIDES if quick else SIDES, progress)
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            r["model"],
            r["backend"] + ", CUDA graphs" * r["graphs"],
            r["device"],
            f"{r['width']}x{r['height']}",
            f"{r['seconds']:.3f}",
            f"{r['seconds_per_megapixel']:.2f}",
            f"{r['growth']:.2f}",
            f"{r['process'] / 2**20:.0f}",
        )
        for r in rows
    ]
    work = (
        "seconds",
        "s/megapixel of output",
        "time a pixel / at the smallest",
        "peak of process or GPU, MiB",
    )
    print_table(("model", "back end", "device", "input", *work), cells)


@app.command("scan")
def bench_scan(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller images and fewer repetitions.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure the scan and whole nets against the vectorised PyTorch form, mamba-ssm (on a GPU) and the floor."""
    from ..bench.cost import cpu as kernels
    from ..bench.cost import gpu

    _print_bars(
        kernels.scan_report(quick) if device == "cpu" else list(gpu.scan_report(device, quick)),
        as_json,
    )


@app.command("tiling")
def bench_tiling(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4",
    as_json: Json = False,
) -> None:
    """Measure the seams of tiled restoration: differences to the untiled result, and their steps at the borders."""
    from ..bench.quality.seams import seams

    rows = seams(model, image)
    if as_json:
        print_json(rows)
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
    differences = (
        "largest difference (of 255)",
        "mean",
        "PSNR to untiled, dB",
        "largest step at borders",
        "inside",
    )
    print_table(("tile", "overlap", "tiles", *differences), cells)


@app.command("memory")
def bench_memory(
    model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4", as_json: Json = False
) -> None:
    """Measure the peak of memory against its estimate, and how a limit is kept up to 100 megapixels (CPU, Linux)."""
    from ..bench.cost.memory import memory

    rows = memory(model)
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            r["model"],
            f"{r['megapixels']:g}",
            *(
                (
                    str(r["tiles"]),
                    f"{r['predicted'] / 2**20:.0f}",
                    f"{r['measured'] / 2**20:.0f}",
                    f"{r['predicted'] / r['measured']:.2f}",
                )
                if r["measured"]
                else ("", "", "", "")
            ),
            f"{r['process'] / 2**20:.0f}",
            f"{r['limit'] / 2**20:.0f}" if r["limit"] else "none",
            f"{r['seconds']:.1f}",
        )
        for r in rows
    ]
    work = ("predicted, MiB", "measured", "ratio")
    print_table(("model", "megapixels", "tiles", *work, "whole process", "limit", "seconds"), cells)


@app.command("train")
def bench_train(
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller patches and fewer repetitions.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a training step on the CPU, against autograd through the vectorised PyTorch scan."""
    from ..bench.cost.train_step import step_report

    _print_bars(step_report(quick), as_json)


def _print_bars(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    cells = [
        (r["what"], r["value"], r["bar"], {True: "met", False: "MISSED", None: ""}[r["met"]])
        for r in rows
    ]
    print_table(("what", "measured", "bar", ""), cells)
