"""`mambair bench figure`: the figures of the papers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CallError
from ..models.choice import find_models
from .help import Command, Group
from .terminal import Backend, BackendNames, Device, Offline, progress_bar, say, show

if TYPE_CHECKING:
    from ..restore.restorer import Restorer

app = typer.Typer(
    cls=Group,
    help="Draw the figures of the papers (needs matplotlib, of the extra bench).",
    no_args_is_help=True,
)

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG, SVG or PDF.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="Name or file; repeatable. Default: the bundled one."),
]
Truth = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="The truth, from which the input is made.")
]
At = Annotated[
    tuple[int, int] | None, typer.Option(metavar="X Y", help="Left and top of what is enlarged.")
]


@app.command("erf", cls=Command)
def figure_erf(
    output: Output,
    dataset: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="Its images are the inputs.")
    ] = "B100",
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the data sets.")] = None,
    model: Models = None,
    images: Annotated[int, typer.Option(min=1, help="Only so many.")] = 100,
    device: Device = "auto",
    backend: Backend = BackendNames.AUTO,
    offline: Offline = False,
) -> None:
    """Effective receptive field: which inputs the centre of an output depends on."""
    from ..bench.figures import canvas, erf
    from ..bench.quality.fetch_sets import fetch_set
    from ..bench.quality.measure import open_benchmark
    from ..images.folders import read_rgb

    canvas.check_figure(output)
    # For its truths, whatever their inputs.
    with progress_bar(False) as progress:
        fetch = partial(fetch_set, tell=say, progress=progress)
        pairs = open_benchmark(dataset, data_root, images, fetch, scale=4).pairs
    restorers = _restorers(model, device, backend)
    pixels = [read_rgb(pair.truth) for pair in pairs]
    fields = []
    with progress_bar(False) as progress:
        for i, restorer in enumerate(restorers):
            report = partial(_report, progress, restorer.name, i, len(restorers))
            fields.append((restorer.name, *erf.field(restorer, pixels, report)))
    erf.draw(fields, output)
    for name, magnitude, _ in fields:
        shares = zip(erf.SHARES, erf.areas(magnitude), strict=True)
        parts = [f"{100 * share:g} % in {100 * area:.2f} % of the area" for share, area in shares]
        show(f"{name}: {', '.join(parts)}")


@app.command("complexity", cls=Command)
def figure_complexity(
    output: Output, device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
) -> None:
    """Cost against resolution: selective scan, attention in windows, full attention."""
    from ..bench.figures import canvas, scaling

    canvas.check_figure(output)
    with progress_bar(False) as progress:
        found = scaling.costs(device=device, report=progress)
    scaling.draw(found, output, device)
    for cost in found:
        took = "not measured" if cost.seconds is None else f"{1e3 * cost.seconds:.1f} ms"
        macs = f"{cost.macs / 1e9:.3f} G multiply-adds"
        print(f"{cost.method}, {cost.side}x{cost.side}: {macs}, {took}")


@app.command("lam", cls=Command)
def figure_lam(
    image: Truth,
    output: Output,
    model: Models = None,
    at: At = None,
    side: Annotated[int, typer.Option(min=4, help="Pixels of the patch.")] = 16,
    device: Device = "auto",
    backend: Backend = BackendNames.AUTO,
) -> None:
    """Local attribution maps: which inputs a network used for a patch, with the diffusion index."""
    from ..bench.figures import canvas, lam
    from ..images.folders import read_rgb
    from ..images.resize import downscale

    canvas.check_figure(output)
    restorers = _restorers(model, device, backend)
    scale = restorers[0].scale
    if any(restorer.scale != scale for restorer in restorers):
        raise CallError("the models enlarge by different scales; give models of one scale")
    truth = read_rgb(image)
    low = downscale(truth, scale)
    height, width = (scale * length for length in low.shape[:2])
    left, top = at or ((width - side) // 2, (height - side) // 2)
    if left < 0 or top < 0 or left + side > width or top + side > height:
        raise CallError(
            f"the patch of {side} pixels at {left} {top} leaves the image of {width}x{height}"
        )
    low, window = lam.around(low, lam.Window(top, left, side), scale)
    found = []
    with progress_bar(False) as progress:
        for i, restorer in enumerate(restorers):
            report = partial(_report, progress, restorer.name, i, len(restorers))
            found.append((restorer.name, scale, lam.attribution(restorer, low, window, report)))
    lam.draw(low, window, found, output)
    for name, _, attributed in found:
        show(f"{name}: diffusion index {lam.diffusion_index(attributed):.2f}")


@app.command("visual", cls=Command)
def figure_visual(
    image: Truth,
    output: Output,
    model: Models = None,
    scale: Annotated[
        int | None, typer.Option("--scale", "-s", min=2, max=4, help="Enlarge. Default: 4.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(min=0, max=255, help="Denoise: sigma of white noise.")
    ] = None,
    jpeg: Annotated[
        int | None, typer.Option(min=1, max=100, help="Mend JPEG of this quality.")
    ] = None,
    at: At = None,
    side: Annotated[int, typer.Option(min=8, help="Pixels of the crop.")] = 64,
    device: Device = "auto",
    backend: Backend = BackendNames.AUTO,
) -> None:
    """Crops of the truth, the baseline and each model, with PSNR and SSIM of the image below."""
    from ..bench.figures import canvas, visual
    from ..bench.quality.candidates import Candidate
    from ..bench.quality.pairing import Pair, load_sample
    from ..bench.quality.protocols import choose_protocol

    canvas.check_figure(output)
    protocol = choose_protocol(None, scale=scale, noise=noise, quality=jpeg)
    models = model or [protocol.default_model]
    candidates = [Candidate(name, protocol, device=device, backend=backend) for name in models]
    sample = load_sample(Pair(image.stem, image), protocol)
    height, width = sample.truth.shape[:2]
    if at and (min(at) < 0 or at[0] + side > width or at[1] + side > height):
        raise CallError(
            f"the crop of {side} pixels at {at[0]} {at[1]} leaves the image of {width}x{height}"
        )
    found = visual.views(sample, protocol, candidates)
    visual.draw(image.stem, found, output, at, side)
    for view in found[1:]:
        show(f"{view.name}: {view.psnr:.3f} dB, {view.ssim:.4f}")


def _report(
    progress: Callable[[float, str], None], label: str, index: int, count: int, share: float
) -> None:
    """Tell the share of the whole that a share of one of several parts makes."""
    progress((index + share) / count, label)


def _restorers(models: list[str] | None, device: str, backend: str) -> "list[Restorer]":
    from ..restore.restorer import load_restorer
    from ..system.runtime import keep_freed_memory

    keep_freed_memory()
    names = models or [find_models("upscale", 4)[0].name]
    return [load_restorer(name, device=device, backend=backend) for name in names]
