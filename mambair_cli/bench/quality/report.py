"""A benchmark's facts as tables for a terminal, Markdown and CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

LABELS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "dists": "DISTS"}
CHANNELS = {"y": "Y", "rgb": "RGB", "gray": "gray"}


def headline(facts: Facts) -> str:
    """What was measured and how, in a line."""
    setting = "" if facts["setting"] == "-" else f" {facts['setting']}"
    counted = f"{CHANNELS[facts['channel']]}, border {facts['border']}"
    return f"{facts['dataset']}{setting} ({facts['copy']}); {counted}; inputs: {facts['inputs']}"


def metrics(facts: Facts) -> list[str]:
    """What was measured, PSNR and SSIM first."""
    return list(facts["results"][0]["mean"])


def number(metric: str, value: float | None) -> str:
    """As papers print it, with a digit more; empty for None."""
    if value is None:
        return ""
    return f"{value:.3f}" if metric == "psnr" else f"{value:.4f}"


def images_table(facts: Facts) -> Table:
    """A row for each image, then the means and their 95 % intervals; columns of the baseline and each network."""
    results, names = facts["results"], metrics(facts)
    header = ("image", *(f"{r['name']} {LABELS[m]}" for r in results for m in names))
    rows = []
    for i, first in enumerate(results[0]["images"]):
        rows.append(
            (first["image"], *(number(m, r["images"][i][m]) for r in results for m in names))
        )
    rows.append(("mean", *(number(m, r["mean"][m]) for r in results for m in names)))
    rows.append(
        ("95 % of means", *(_interval(m, r["interval"][m]) for r in results for m in names))
    )
    return header, rows


def _interval(metric: str, bounds: Sequence[float] | None) -> str:
    return f"{number(metric, bounds[0])} to {number(metric, bounds[1])}" if bounds else ""


def summary_table(facts: Facts) -> Table:
    """A row for the baseline and each network, with what it costs, then what the papers printed."""
    names = metrics(facts)
    header = (
        "method",
        *(LABELS[m] for m in names),
        "parameters, K: as printed",
        "all",
        "MACs, G: as printed",
        "all",
        "seconds",
        "MP/s",
        "peak, MiB",
        "source",
    )
    rows = []
    for r in facts["results"]:
        cost = ("",) * 7
        if "seconds" in r:
            cost = (
                f"{r['leaf_parameters'] / 1e3:.0f}",
                f"{r['parameters'] / 1e3:.0f}",
                f"{r['leaf_macs'] / 1e9:.1f}",
                f"{r['macs'] / 1e9:.1f}",
                f"{r['seconds']:.1f}",
                f"{r['megapixels_per_second']:.3f}",
                f"{r['peak_memory'] / 2**20:.0f}",
            )
        where = (
            f"this run, {r['backend']} on {r['device']}, {r['dtype']}"
            if "backend" in r
            else "this run"
        )
        rows.append((r["name"], *(number(m, r["mean"][m]) for m in names), *cost, where))
    for p in facts["published"]:
        values = {"psnr": f"{p['psnr']:.2f}", "ssim": number("ssim", p["ssim"])}
        cost = (_number(p["parameters_k"], 0), "", _number(p["macs_g"], 1), "", "", "", "")
        rows.append(
            (
                p["method"],
                *(values.get(m, "") for m in names),
                *cost,
                f"{p['table']}: {p['source']}",
            )
        )
    return header, rows


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def footnotes(facts: Facts) -> list[str]:
    """What a reader has to know about the summary."""
    share = 100 * facts["network_seconds"] / facts["seconds"] if facts["seconds"] else 0.0
    notes = [
        f"{facts['seconds']:.1f} s, of these {facts['network_seconds']:.1f} s ({share:.0f} %) in networks;"
        f" {facts['threads']} thread(s), tiler {facts['tiler']}, mambair {facts['mambair']}",
        "As printed: a counter that sees only leaf modules, as the papers used it; all: with the scans. MACs are for"
        " an output of 1280x720. MP/s: megapixels of the result a second. Peak: of the process, or the GPU's memory.",
    ]
    if facts["published"] and facts["setting"].startswith("x"):
        notes.append(
            "Published bicubic figures were made with Y resized alone; RGB is resized here: up to 0.09 dB apart."
        )
    if facts["published"] and not facts["complete"]:
        notes.append(
            "The published figures are of the whole set, the measured ones of what is here."
        )
    if facts["tiler"] != "published" and any(
        p["method"].startswith("MambaIR") for p in facts["published"]
    ):
        notes.append("The published MambaIR figures were made in parts: --tiler published.")
    if facts["border"] != 4 and any(
        (p["table"], p["method"]) == ("derain", "VmambaIR") for p in facts["published"]
    ):
        notes.append(
            "VmambaIR's figures leave out 4 pixels on each side, the others none: --border 4."
        )
    return notes


def markdown(facts: Facts) -> str:
    """The report as Markdown."""
    parts = [
        f"# {headline(facts)}",
        _markdown(summary_table(facts)),
        *footnotes(facts),
        _markdown(images_table(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    header, rows = table
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def csv_rows(facts: Facts) -> str:
    """The report as CSV: a row for each method and image, in full precision; infinite PSNR is `inf`."""
    keys = [*metrics(facts), "seconds", "peak_memory"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dataset", "setting", "method", "image", "width", "height", *keys])
    for result in facts["results"]:
        for row in result["images"]:
            values = [row.get(key, "") for key in keys]
            writer.writerow(
                [
                    facts["dataset"],
                    facts["setting"],
                    result["name"],
                    row["image"],
                    row["width"],
                    row["height"],
                    *values,
                ]
            )
    return file.getvalue()
