"""`mambair bench`: measure quality and speed."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CallError
from ..registry import find_models
from .terminal import Backend, Device, Json, print_json, print_table

app = typer.Typer(help="Measure quality and speed.", invoke_without_command=True)


@app.callback()
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
    from ..bench import quality

    facts = quality(
        model or find_models("upscale", scale)[0].name, dataset, scale, tile=tile, device=device, backend=backend
    )
    if as_json:
        print_json(facts)
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
    print_table(("image", "PSNR-Y", "SSIM-Y", "bicubic PSNR-Y", "SSIM-Y"), rows)
    print(f"{facts['model']} x{scale}, {facts['backend']} on {facts['device']}, {facts['seconds']:.1f} s")


@app.command("scan")
def bench_scan(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller images and fewer repetitions.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the scan and whole nets on the CPU, against the vectorised PyTorch form and the floor."""
    from ..bench import scan_report

    _print_bars(scan_report(quick), as_json)


@app.command("tiling")
def bench_tiling(
    image: Annotated[Path, typer.Argument(metavar="IMAGE")],
    model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4",
    as_json: Json = False,
) -> None:
    """Measure the seams of tiled restoration: differences to the untiled result, and their steps at the borders."""
    from ..bench import seams

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
    differences = ("largest difference (of 255)", "mean", "PSNR to untiled, dB", "largest step at borders", "inside")
    print_table(("tile", "overlap", "tiles", *differences), cells)


@app.command("memory")
def bench_memory(model: Annotated[str, typer.Option("--model", "-m")] = "tiny-x4", as_json: Json = False) -> None:
    """Measure the peak of memory against its estimate, and how a limit is kept up to 64 megapixels (CPU, Linux)."""
    from ..bench import memory

    rows = memory(model)
    if as_json:
        print_json(rows)
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
    print_table(("model", "megapixels", "tiles", *work, "whole process", "limit", "seconds"), cells)


@app.command("train")
def bench_train(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller patches and fewer repetitions.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a training step on the CPU, against autograd through the vectorised PyTorch scan."""
    from ..training.speed import step_report

    _print_bars(step_report(quick), as_json)


def _print_bars(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    cells = [(r["what"], r["value"], r["bar"], {True: "met", False: "MISSED", None: ""}[r["met"]]) for r in rows]
    print_table(("what", "measured", "bar", ""), cells)
