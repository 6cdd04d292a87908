"""A benchmark's report as tables for a terminal, Markdown and CSV."""

import csv
import io
import statistics
from collections.abc import Sequence

from ...models.published import Published
from ..cost.rows import Table
from .results import Report, Result

LABELS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}
CHANNELS = {"y": "Y", "rgb": "RGB", "gray": "gray"}
LEAST_IMAGES = 5
"""An interval from fewer says nothing."""
LIGHT_PARAMETERS = 2_000_000
"""A network with fewer stands beside the light ones of the papers."""


def enough(images: int) -> bool:
    """Whether an interval is worth showing for the mean of so many images."""
    return images >= LEAST_IMAGES


def headline(report: Report) -> str:
    """What was measured and how, in a line."""
    setting = "" if report.setting == "-" else f" {report.setting}"
    counted = f"{CHANNELS[report.channel]}, border {report.border}"
    return f"{report.dataset}{setting} ({report.copy}); {counted}; inputs: {report.inputs}"


def number(metric: str, value: float | None) -> str:
    """As papers print it, with a digit more; empty for None."""
    if value is None:
        return ""
    return f"{value:.3f}" if metric == "psnr" else f"{value:.4f}"


def images_table(report: Report) -> Table:
    """A row for each image, their means and 95 % intervals; columns of baseline and networks."""
    results, metrics = report.results, report.baseline.metrics
    header = ("image", *(f"{r.name} {LABELS[m]}" for r in results for m in metrics))
    rows = []
    for images in zip(*(result.images for result in results), strict=True):
        rows.append(
            (images[0].image, *(number(m, row.scores[m]) for row in images for m in metrics))
        )
    rows.append(("mean", *(number(m, r.mean[m]) for r in results for m in metrics)))
    if enough(len(report.baseline.images)):
        ends = (_ends(m, r.interval[m]) for r in results for m in metrics)
        rows.append(("95 % of means", *ends))
    return header, rows


def _ends(metric: str, bounds: Sequence[float] | None) -> str:
    if not bounds:
        return ""
    # No image can have a higher SSIM.
    low, high = (min(1.0, bound) for bound in bounds) if metric == "ssim" else bounds
    return f"{number(metric, low)} to {number(metric, high)}"


def shown_published(report: Report, everything: bool = False) -> list[Published]:
    """The printed rows that stand beside a report: those of its class, and the best of each other.

    Args:
        report: the benchmark.
        everything: all rows instead.
    """
    if everything:
        return list(report.published)
    tables = list(dict.fromkeys(row.table for row in report.published))
    own = set(tables[:1])
    if "light_sr" in tables:
        light = [r.network.parameters < LIGHT_PARAMETERS for r in report.networks if r.network]
        own = {"light_sr" if is_light else "classic_sr" for is_light in light}
    rows = []
    for table in sorted(tables, key=lambda name: name not in own):
        printed = [row for row in report.published if row.table == table]
        rows += printed if table in own else [max(printed, key=lambda row: row.psnr)]
    return rows


def summary_table(report: Report, published: Sequence[Published]) -> Table:
    """A row for the baseline and each network, with what it costs, then printed rows.

    Sources are numbers, which `footnotes` of the same rows explain.
    """
    metrics = report.baseline.metrics
    header = (
        "method",
        *(LABELS[m] for m in metrics),
        "params, K",
        "MACs, G",
        "seconds",
        "MP/s",
        "MiB",
        "source",
    )
    rows = [_measured(result, metrics) for result in report.results]
    sources = _sources(published)
    rows += [_printed(row, metrics, f"[{1 + sources.index(_source(row))}]") for row in published]
    return header, rows


def _measured(result: Result, metrics: Sequence[str]) -> tuple[str, ...]:
    scores = [number(m, result.mean[m]) for m in metrics]
    network = result.network
    if network is None:
        return (result.name, *scores, *("",) * 5, "this run")
    cost = (
        f"{network.parameters / 1e3:.0f}",
        f"{network.macs / 1e9:.1f}",
        f"{result.seconds:.1f}",
        f"{result.megapixels_per_second:.3f}",
        f"{result.peak_memory / 2**20:.0f}",
    )
    return (result.name, *scores, *cost, "this run")


def _printed(row: Published, metrics: Sequence[str], source: str) -> tuple[str, ...]:
    values = {"psnr": f"{row.psnr:.2f}", "ssim": number("ssim", row.ssim)}
    scores = [values.get(m, "") for m in metrics]
    cost = (_number(row.parameters_k, 0), _number(row.macs_g, 1))
    return (row.method, *scores, *cost, *("",) * 3, source)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _source(row: Published) -> str:
    return f"{row.table}: {row.source}"


def _sources(published: Sequence[Published]) -> list[str]:
    return list(dict.fromkeys(map(_source, published)))


def footnotes(report: Report, published: Sequence[Published]) -> list[str]:
    """What a reader has to know about the summary of the same rows."""
    share = 100 * report.network_seconds / report.seconds if report.seconds else 0.0
    notes = [
        f"{report.seconds:.1f} s, of these {report.network_seconds:.1f} s ({share:.0f} %) in"
        f" networks; {report.threads} thread(s), tiler {report.tiler}, mambair {report.mambair}",
        "MACs: for an output of 1280x720. MP/s: megapixels of the result. MiB: peak of the process"
        " or GPU.",
    ]
    notes += [_network_note(result) for result in report.networks]
    notes += _spread_notes(report)
    notes += [f"[{i}] {source}" for i, source in enumerate(_sources(published), 1)]
    left_out = len(report.published) - len(published)
    if left_out:
        notes.append(f"{left_out} more published rows of other classes are left out.")
    return notes + _published_notes(report)


def _network_note(result: Result) -> str:
    """Where it ran, and its size in the papers' way of counting."""
    network = result.network
    assert network
    return (
        f"{result.name}: {network.backend} on {network.device}, {network.dtype};"
        f" {network.leaf_parameters / 1e3:.0f} K and {network.leaf_macs / 1e9:.1f} G as the papers"
        " count"
    )


def _spread_notes(report: Report) -> list[str]:
    """How much the mean scores of networks that draw at random differ from seed to seed."""
    drawn: dict[str, list[Result]] = {}
    for result in report.networks:
        if result.network and result.network.seed is not None:
            name = result.name.removesuffix(f" seed {result.network.seed}")
            drawn.setdefault(name, []).append(result)
    notes = []
    for name, results in drawn.items():
        spreads = []
        for metric in report.baseline.metrics:
            values = [result.mean[metric] for result in results]
            mean, deviation = statistics.fmean(values), statistics.pstdev(values)
            ends = f"{min(values):.5f} to {max(values):.5f}"
            spreads.append(f"{LABELS[metric]} {mean:.5f} (sd {deviation:.5f}, {ends})")
        notes.append(f"{name} over {len(results)} seeds: {', '.join(spreads)}")
    return notes


def _published_notes(report: Report) -> list[str]:
    """How published figures were made otherwise."""
    notes: list[str] = []
    if not report.published:
        return notes
    if report.setting.startswith("x"):
        notes.append(
            "Published bicubic figures resized Y alone, here RGB is resized: up to 0.09 dB apart."
        )
    if not report.complete:
        notes.append(
            "The published figures are of the whole set, the measured ones of what is here."
        )
    by_mambair = any(row.method.startswith("MambaIR") for row in report.published)
    if by_mambair and report.tiler != "published":
        notes.append("The published MambaIR figures were made in parts, as by `tiler=published`.")
    rain = ("derain", "VmambaIR")
    if report.border != 4 and any((row.table, row.method) == rain for row in report.published):
        notes.append(
            "VmambaIR's figures leave out 4 pixels on each side, the others none: `border=4`"
            " compares with them."
        )
    return notes


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [
        f"# {headline(report)}",
        _markdown(summary_table(report, report.published)),
        *footnotes(report, report.published),
        _markdown(images_table(report)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    header, rows = table
    lines = []
    for line in (header, tuple("---" for _ in header), *rows):
        cells = " | ".join(cell.replace("|", "\\|") for cell in line)
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def csv_rows(report: Report) -> str:
    """The report as CSV: a row for each method and image, in full precision; infinity is `inf`."""
    metrics = report.baseline.metrics
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = ["dataset", "setting", "method", "image", "width", "height"]
    writer.writerow([*columns, *metrics, "seconds", "peak_memory"])
    for result in report.results:
        for row in result.images:
            what = [report.dataset, report.setting, result.name, row.image, row.width, row.height]
            cost = ["" if value is None else value for value in (row.seconds, row.peak_memory)]
            writer.writerow([*what, *(row.scores[m] for m in metrics), *cost])
    return file.getvalue()
