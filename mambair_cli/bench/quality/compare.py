"""Two reports side by side: what one gains over the other, image by image."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CallError
from ...system.files import read_file
from ...system.texts import parse_json
from .intervals import interval
from .report import LABELS, Table, enough
from .results import Report, Result

SAME = ("dataset", "setting", "channel", "border", "inputs", "seed")
WANTED = "give a report that mambair bench printed as JSON"
Gains = dict[str, float | None]
"""By the names of metrics; None where one of both scores is infinite."""


@dataclass(frozen=True)
class Comparison:
    """What the second network gains over the first.

    Args:
        first: its name.
        second: its name.
        images: gains by the names of images.
        mean: of the gains.
        interval: 95 % intervals of the means.
        seconds: how many times as long the second took.
        peak_memory: how many times as much memory it took.
    """

    first: str
    second: str
    images: dict[str, Gains]
    mean: Gains
    interval: dict[str, tuple[float, float] | None]
    seconds: float
    peak_memory: float

    def to_json(self) -> dict[str, Any]:
        """The fields by their names; images as a list."""
        facts = {key: getattr(self, key) for key in self.__dataclass_fields__}
        facts["images"] = [{"image": name, **gains} for name, gains in self.images.items()]
        return facts


def read_report(path: Path) -> Report:
    """A report that `mambair bench` printed as JSON. Raises CallError where the file is none."""
    try:
        facts = parse_json(read_file(path))
    except (OSError, ValueError) as error:
        raise CallError(f"{path} cannot be read ({error}); {WANTED}") from error
    try:
        report = Report.from_json(facts)
        whole = all(result.network and result.images for result in report.networks)
    except (KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole or any(_scores_differ(result) for result in report.results):
        raise CallError(f"{path} is no report, or not a whole one; {WANTED}")
    return report


def _scores_differ(result: Result) -> bool:
    """Whether images have scores of other metrics, or lack what a network took."""
    first = result.images[0]
    costs = (first.seconds is None, first.peak_memory is None)
    return any(
        row.scores.keys() != first.scores.keys()
        or (row.seconds is None, row.peak_memory is None) != costs
        for row in result.images
    )


def compare(first: Report, second: Report) -> list[Comparison]:
    """For each pair of networks of two reports, what the second gains, with a 95 % interval.

    Networks pair by name; where a report holds one only, that pairs with each of the other.
    Raises CallError where the reports are of different benchmarks, or no networks pair.
    """
    for key in SAME:
        ours, theirs = getattr(first, key), getattr(second, key)
        if ours != theirs:
            raise CallError(f"the reports differ in {key}: {ours} and {theirs}; measure both alike")
    alone = min(len(first.networks), len(second.networks)) == 1
    pairs = [(a, b) for a in first.networks for b in second.networks if a.name == b.name or alone]
    if not pairs:
        raise CallError("the reports share no network; compare reports of one network each")
    return [_compared(a, b) for a, b in pairs]


def _compared(a: Result, b: Result) -> Comparison:
    ours, theirs = ({row.image: row.scores for row in result.images} for result in (a, b))
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise CallError(
            f"the reports are of different images, such as {odd[0]}; measure both on the same"
        )
    metrics = [metric for metric in a.metrics if metric in b.metrics]
    images = {
        name: {m: _difference(theirs[name][m], ours[name][m]) for m in metrics} for name in ours
    }
    known = {
        m: [gain for gains in images.values() if (gain := gains[m]) is not None] for m in metrics
    }
    return Comparison(
        first=a.name,
        second=b.name,
        images=images,
        mean={m: statistics.fmean(gains) if gains else None for m, gains in known.items()},
        interval={m: interval(gains) for m, gains in known.items()},
        seconds=b.seconds / a.seconds,
        peak_memory=b.peak_memory / a.peak_memory,
    )


def _difference(b: float, a: float) -> float | None:
    return b - a if math.isfinite(b) and math.isfinite(a) else None


def comparison_table(comparison: Comparison) -> Table:
    """A row for each image, the mean, and its interval where there are enough images."""
    metrics = list(comparison.mean)
    header = (
        f"{comparison.second} - {comparison.first}",
        *(LABELS[m] for m in metrics),
    )
    rows = [
        (name, *(_signed(gains[m]) for m in metrics)) for name, gains in comparison.images.items()
    ]
    rows.append(("mean", *(_signed(comparison.mean[m]) for m in metrics)))
    if enough(len(comparison.images)):
        ends = (comparison.interval[m] or () for m in metrics)
        rows.append(("95 % of means", *(" to ".join(map(_signed, pair)) for pair in ends)))
    return header, rows


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"
