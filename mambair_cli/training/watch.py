"""Where a run can be watched: live line, log, TensorBoard; and the card and pictures at its end."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..errors import BackendError
from ..images.folders import Pixels
from ..images.io import Image, write_image
from ..images.resize import bicubic
from ..images.samples import to_uint8
from ..system.files import write_atomically
from ..system.texts import parse_json
from .validation import Pair

CROP = 96
"""Pixels a side that are shown of a validation image."""
SHOWN = 4
"""Validation images that are shown."""
LABEL = 20
"""Pixels of the strip that names the columns."""
WAITING = 0.05
"""Share of the time from which on waiting for data is told."""


def say(line: str) -> None:
    """Print a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, without lines that were cut off or damaged."""
    entries = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError):
            entry = parse_json(line)
            if isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
                entries.append(entry)
    return entries


def in_words(seconds: float) -> str:
    """A time to come, to the minute: "7 min", "3 h 05 min", "2 days 4 h"."""
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if days:
        return f"{days} day{'s' * (days > 1)} {hours % 24} h"
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min"


def describe(entry: Mapping[str, Any], total: int) -> str:
    """An entry of the log in words."""
    left = in_words((total - entry["iteration"]) / entry["it_per_s"])
    loss = "none" if entry["loss"] is None else f"{entry['loss']:.5f}"
    parts = [f"{entry['iteration']}/{total}", f"loss {loss}"]
    scores = [value for key, value in entry.items() if key.startswith("psnr")]
    parts += [f"{value:.3f} dB" for value in scores if value is not None]
    parts += [f"{entry['it_per_s']:.2f} it/s", f"{left} left"]
    if entry["wait"] >= WAITING:
        parts.append(f"{entry['wait']:.0%} waiting for data")
    if entry["skipped"]:
        parts.append(f"{entry['skipped']} steps skipped")
    return ", ".join(parts)


class Pace:
    """Where the time goes since the last entry of the log, which `iteration` steps came before."""

    def __init__(self, iteration: int):
        self._since, self._began, self._computing = iteration, time.perf_counter(), 0.0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time within as the work proper."""
        began = time.perf_counter()
        yield
        self._computing += time.perf_counter() - began

    def shares(self, iteration: int, waited: float) -> dict[str, float]:
        """Iterations a second, and shares of the time waiting for data and outside of the work."""
        seconds = time.perf_counter() - self._began
        return {
            "it_per_s": (iteration - self._since) / seconds,
            "wait": waited / seconds,
            "outside": 1 - self._computing / seconds,
        }


class Watch:
    """Where a run can be seen: a live line on a terminal or lines elsewhere, log, TensorBoard.

    Args:
        out: folder of the run, which exists.
        total: iterations of the run.
        first: iterations that are done; entries of the log beyond it are dropped, as they come
            again.
        tensorboard: write to out/tensorboard too.

    Raises:
        BackendError: TensorBoard is not installed.
        OSError: the log cannot be written.
    """

    def __init__(self, out: Path, total: int, first: int, tensorboard: bool):
        self.path, self.total = out / "log.jsonl", total
        kept = [entry for entry in read_log(self.path) if entry["iteration"] <= first]
        write_atomically(self.path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        # the last value of each key
        self._last: dict[str, Any] = {"wait": 0.0, "skipped": 0}
        for entry in kept:
            self._last |= entry
        self._since, self._began = first, time.perf_counter()
        self._board = _tensorboard(out / "tensorboard") if tensorboard else None
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            # the description tells the time left
            columns = TextColumn("{task.description}"), BarColumn()
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(f"{first}/{total}", total=total, completed=first)
            self._bar.start()

    def tick(self, iteration: int, loss: float) -> None:
        """Show that `iteration` steps are done, the last one with this loss."""
        if self._bar:
            rate = (iteration - self._since) / (time.perf_counter() - self._began)
            shown = loss if math.isfinite(loss) else None
            now = self._last | {"iteration": iteration, "loss": shown, "it_per_s": rate}
            text = describe(now, self.total)
            self._bar.update(self._task, completed=iteration, description=text)

    def log(self, entry: dict[str, Any]) -> None:
        """Add an entry to the log. Raises OSError."""
        numbers = {
            key: value if value is not None and math.isfinite(value) else None
            for key, value in entry.items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps(numbers) + "\n")
        self._last |= entry
        self._since, self._began = entry["iteration"], time.perf_counter()
        if self._bar:
            text = describe(self._last, self.total)
            self._bar.update(self._task, completed=entry["iteration"], description=text)
        else:
            say(describe(entry, self.total))
        if self._board:
            for key in entry.keys() - {"iteration"}:
                if entry[key] is not None:
                    self._board.add_scalar(key, entry[key], entry["iteration"])

    def show(self, results: Sequence[Pixels], pairs: Sequence[Pair], iteration: int) -> None:
        """Show validation crops side by side in TensorBoard."""
        if self._board:
            picture = side_by_side(results, pairs)
            self._board.add_image("validation", picture, iteration, dataformats="HWC")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()
        if self._board:
            self._board.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BackendError("TensorBoard is missing: pip install 'mambair[train]'") from None
    return SummaryWriter(str(folder))


def side_by_side(results: Sequence[Pixels], pairs: Sequence[Pair]) -> Pixels:
    """Middles of some validation images, a row each, under their names; pixels are doubled.

    The columns are input, bicubic where the network enlarges, restored and truth.
    """
    enlarges = any(pair.low.shape != pair.high.shape for pair in pairs)
    names = ["input", *(["bicubic"] if enlarges else []), "restored", "truth"]
    rows = [_labels(names)]
    for out, pair in list(zip(results, pairs, strict=True))[:SHOWN]:
        low = pair.low if pair.low.dtype == np.uint8 else to_uint8(pair.low)
        height, width = pair.high.shape[:2]
        scale = height // low.shape[0]
        resized = [bicubic(low, height, width)] if enlarges else []
        crops = []
        for image in (low.repeat(scale, 0).repeat(scale, 1), *resized, out, pair.high):
            top, left = (max(0, side - CROP) // 2 for side in image.shape[:2])
            crop = image[top : top + CROP, left : left + CROP]
            canvas = np.full((CROP, CROP, 3), 255, np.uint8)
            canvas[: crop.shape[0], : crop.shape[1]] = crop
            crops.append(canvas)
        rows.append(np.concatenate(crops, 1).repeat(2, 0).repeat(2, 1))
    return np.concatenate(rows)


def _labels(names: Sequence[str]) -> Pixels:
    """A strip of LABEL pixels that names columns of doubled crops."""
    strip = PIL.Image.new("RGB", (2 * CROP * len(names), LABEL), "white")
    draw, font = PIL.ImageDraw.Draw(strip), PIL.ImageFont.load_default(14)
    for i, name in enumerate(names):
        draw.text((2 * CROP * i + 4, 2), name, "black", font)
    return np.asarray(strip)


def write_card(out: Path, summary: str, parameters: int, facts: Mapping[str, Any]) -> None:
    """Write model.md, which says what the weights are. Raises OSError."""
    lines = [
        f"# {out.resolve().name}",
        "",
        f"{summary or 'A network of the user'}. {parameters:,} parameters.",
        "",
        *(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items()),
        "- recipe: recipe.json",
        "",
    ]
    (out / "model.md").write_text("\n".join(lines), "utf-8")


def write_curves(log: Path, path: Path) -> bool:
    """Draw a log's loss, PSNR and learning rate; return False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    entries = read_log(log)
    scores = sorted({key for entry in entries for key in entry if key.startswith("psnr")})
    keys = ["loss", *scores, "lr"]
    figure = Figure(figsize=(8, 3 * len(keys)), layout="constrained")
    for place, key in enumerate(keys, 1):
        axes = figure.add_subplot(len(keys), 1, place)
        known = [entry for entry in entries if entry.get(key) is not None]
        points = [(entry["iteration"], entry[key]) for entry in known]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "")
        axes.set_ylabel(f"{key}, dB" if key.startswith("psnr") else key)
        if key == "loss":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    axes.set_xlabel("iteration")
    figure.savefig(path, dpi=100)
    return True


def write_crops(results: Sequence[Pixels], pairs: Sequence[Pair], path: Path) -> None:
    """Write `side_by_side` to a file. Raises ImageError."""
    write_image(path, Image(side_by_side(results, pairs)))
