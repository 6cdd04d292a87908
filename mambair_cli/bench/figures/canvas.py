"""What the figures share: matplotlib where it is installed, files, axes."""

import importlib.util
from pathlib import Path
from typing import Any

from ...errors import CallError

SUFFIXES = (".png", ".svg", ".pdf")


def check_figure(path: Path) -> Path:
    """The path itself, before long work. Raises CallError where no figure can be written there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CallError("figures need one more package: pip install 'mambair[bench]'")
    if path.suffix.lower() not in SUFFIXES:
        raise CallError(f"{path}: a figure is one of {', '.join(SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise CallError(f"{path}: there is no folder {path.resolve().parent}; create it first")
    return path


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of this size in inches that belongs to no window, and its rows x columns of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Write a figure at 200 dots an inch. Raises OSError."""
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    figure.savefig(path, dpi=200, metadata=metadata)


def bare(axes: Any, title: str) -> None:
    """Make axes those of an image: without ticks, with a line below."""
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(title, fontsize=8)
