"""What the papers printed: the scores in published.csv, the costs in complexity.csv."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

PUBLISHED = Path(__file__).parent / "published.csv"
COMPLEXITY = Path(__file__).parent / "complexity.csv"
MISPRINTS = {("classic_sr", "x4", "MambaIR+", "Set5"): "a misprint, 33.13 is plausible"}

# What the models of a task have to beat: task and method in PUBLISHED, and the setting of a scale
# or level.
BASELINES = {
    "upscale": ("classic_sr", "Bicubic", "x{}"),
    "dejpeg": ("jpeg_gray", "JPEG input", "q{}"),
}


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM (None: not given) on a data set; channel is Y, RGB or gray."""

    dataset: str
    psnr: float
    ssim: float | None = None
    channel: str = "Y"


@dataclass(frozen=True)
class Published:
    """One printed result of a method; None stands for what the paper does not print.

    Attributes:
        table: the task in PUBLISHED.
        method: its name there.
        psnr: in dB.
        ssim: from 0 to 1.
        channel: Y, RGB or gray.
        parameters_k: thousands of parameters.
        macs_g: 10^9 multiply-adds.
        source: paper and table.
    """

    table: str
    method: str
    psnr: float
    ssim: float | None
    channel: str
    parameters_k: float | None
    macs_g: float | None
    source: str


def published_scores(task: str, setting: str, method: str) -> tuple[Score, ...]:
    """The printed scores of a method, in the order of the papers; empty where there are none."""
    return tuple(
        Score(row["dataset"], float(row["psnr"]), _number(row["ssim"]), row["channel"])
        for row in _rows(PUBLISHED)
        if (row["task"], row["setting"], row["method"]) == (task, setting, method)
    )


def published(tables: Sequence[str], setting: str, dataset: str) -> list[Published]:
    """What was printed for a data set and a setting in these tables, in the order of the papers.

    Args:
        tables: tasks of PUBLISHED, such as classic_sr.
        setting: such as x4, sigma25, q10 or -.
        dataset: a name of SETS.
    """
    costs = {(row["task"], row["setting"], row["method"]): row for row in _rows(COMPLEXITY)}
    found: dict[tuple[str, str], Published] = {}
    for row in _rows(PUBLISHED):
        if row["task"] not in tables or (row["setting"], row["dataset"]) != (setting, dataset):
            continue
        key = (row["task"], setting, row["method"])
        cost, misprint = costs.get(key, {}), MISPRINTS.get((*key, dataset))
        source = row["source"] + (f" ({misprint})" if misprint else "")
        # A baseline stands in several tables of one source: its first place counts.
        found.setdefault(
            (row["method"], source),
            Published(
                table=row["task"],
                method=row["method"],
                psnr=float(row["psnr"]),
                ssim=_number(row["ssim"]),
                channel=row["channel"],
                parameters_k=_number(cost.get("params_k")),
                macs_g=_number(cost.get("macs_g")),
                source=source,
            ),
        )
    return list(found.values())


def _number(text: str | None) -> float | None:
    return float(text) if text else None


@lru_cache
def _rows(path: Path) -> tuple[dict[str, str], ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
