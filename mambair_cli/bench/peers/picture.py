"""The picture of a race: quality against time."""

from pathlib import Path

from ..figures import canvas
from .race import PeerReport

OURS, THEIRS = "tab:blue", "tab:orange"


def draw(report: PeerReport, path: Path) -> None:
    """Write PSNR against seconds a megapixel at one thread; a line for what has no weights."""
    from matplotlib import ticker

    figure, axes = canvas.panels(1, 1, 7, 4.5)
    ax = axes[0, 0]
    for row in report.rows:
        seconds = row.seconds_per_megapixel[0]
        if seconds is None:
            continue
        colour = OURS if row.ours else THEIRS
        if row.psnr is None:
            ax.axvline(seconds, color=colour, linestyle="--", linewidth=1)
            ax.annotate(
                f"{row.name} (time only)",
                (seconds, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 0),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="bottom",
                fontsize=8,
            )
        else:
            ax.plot(seconds, row.psnr, "o", color=colour, markersize=8)
            ax.annotate(
                f"{row.name}, {row.parameters / 1e3:.0f} K",
                (seconds, row.psnr),
                xytext=(7, 5),
                textcoords="offset points",
                fontsize=8,
            )
    ax.plot([], [], "o", color=OURS, label="mambair")
    ax.plot([], [], "o", color=THEIRS, label="others")
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.margins(x=0.2, y=0.15)
    ax.grid(alpha=0.3, which="both")
    ax.set(
        xlabel="seconds a megapixel of the result, one thread (left is faster)",
        ylabel="PSNR, dB (up is better)",
        title=f"{report.dataset} x{report.scale}, {report.images} images",
    )
    canvas.save(figure, path)
