"""Two reports of `mambair bench --json` side by side: what one gains over the other, image by image."""

import json
import statistics
from pathlib import Path
from typing import Any

from ...errors import CallError
from .intervals import interval

Facts = dict[str, Any]
SAME = ("dataset", "setting", "channel", "border", "inputs", "seed")


def read_report(path: Path) -> Facts:
    """What `mambair bench --json` printed. Raises CallError where the file is missing or something else."""
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CallError(
            f"{path} cannot be read ({error}); give what mambair bench --json printed"
        ) from error
    if not _is_report(facts):
        raise CallError(
            f"{path} is no report, or not a whole one; give what mambair bench --json printed"
        )
    return facts


def _is_report(facts: Any) -> bool:
    """Whether all that `compare` looks at is there."""
    if not _holds(facts, *SAME, "results") or not isinstance(facts["results"], list):
        return False
    return all(
        _holds(result, "name", "images", "mean", "seconds", "peak_memory")
        and isinstance(result["images"], list)
        and isinstance(result["mean"], dict)
        and all(_holds(row, "image", *result["mean"]) for row in result["images"])
        for result in facts["results"][1:]
    )


def _holds(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(key in value for key in keys)


def compare(first: Facts, second: Facts) -> list[Facts]:
    """For each pair of networks of two reports, what the second gains: by image, and its mean with a 95 % interval.

    Networks pair by name; where a report holds one only, that pairs with each of the other.
    Raises CallError where the reports are of different benchmarks, or no networks pair.
    """
    for key in SAME:
        if first[key] != second[key]:
            raise CallError(
                f"the reports differ in {key}: {first[key]} and {second[key]}; measure both alike"
            )
    ours, theirs = (facts["results"][1:] for facts in (first, second))
    pairs = [
        (a, b)
        for a in ours
        for b in theirs
        if a["name"] == b["name"] or min(len(ours), len(theirs)) == 1
    ]
    if not pairs:
        raise CallError("the reports share no network; compare reports of one network each")
    return [_gain(a, b) for a, b in pairs]


def _gain(a: Facts, b: Facts) -> Facts:
    ours, theirs = ({row["image"]: row for row in result["images"]} for result in (a, b))
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise CallError(
            f"the reports are of different images, such as {odd[0]}; measure both on the same"
        )
    metrics = [key for key in a["mean"] if key in b["mean"]]
    rows = [
        {"image": name, **{m: _difference(theirs[name][m], ours[name][m]) for m in metrics}}
        for name in ours
    ]
    known = {m: [row[m] for row in rows if row[m] is not None] for m in metrics}
    return {
        "first": a["name"],
        "second": b["name"],
        "images": rows,
        "mean": {m: statistics.fmean(values) if values else None for m, values in known.items()},
        "interval": {m: interval(values) for m, values in known.items()},
        "seconds": b["seconds"] / a["seconds"],
        "peak_memory": b["peak_memory"] / a["peak_memory"],
    }


def _difference(b: float | None, a: float | None) -> float | None:
    """None where one is infinite, which JSON tells as null."""
    return None if a is None or b is None else b - a
