"""What the papers printed: scores of PUBLISHED, and parameters and multiply-adds of COMPLEXITY."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .catalog import PUBLISHED

COMPLEXITY = Path(__file__).parent / "complexity.csv"
MISPRINTS = {("classic_sr", "x4", "MambaIR+", "Set5"): "a misprint, 33.13 is plausible"}


@dataclass(frozen=True)
class Published:
    """A printed figure: PSNR in dB, SSIM, thousands of parameters, 10^9 multiply-adds; None: not printed there."""

    table: str
    method: str
    psnr: float
    ssim: float | None
    channel: str
    parameters_k: float | None
    macs_g: float | None
    source: str


def published(tables: Sequence[str], setting: str, dataset: str) -> list[Published]:
    """What was printed for a data set and a setting in these tables, in the order of the papers.

    Args:
        tables: tasks of PUBLISHED, such as classic_sr.
        setting: such as x4, sigma25, q10 or -.
        dataset: a name of SETS.
    """
    cost = {(r["task"], r["setting"], r["method"]): r for r in _rows(COMPLEXITY)}
    found = []
    for row in _rows(PUBLISHED):
        if row["task"] in tables and (row["setting"], row["dataset"]) == (setting, dataset):
            key = (row["task"], setting, row["method"])
            counted, misprint = cost.get(key, {}), MISPRINTS.get((*key, dataset))
            found.append(
                Published(
                    table=row["task"],
                    method=row["method"],
                    psnr=float(row["psnr"]),
                    ssim=_number(row["ssim"]),
                    channel=row["channel"],
                    parameters_k=_number(counted.get("params_k")),
                    macs_g=_number(counted.get("macs_g")),
                    source=row["source"] + (f" ({misprint})" if misprint else ""),
                )
            )
    return [
        p
        for i, p in enumerate(found)
        if (p.method, p.source) not in [(q.method, q.source) for q in found[:i]]
    ]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


@lru_cache
def _rows(path: Path) -> tuple[dict[str, str], ...]:
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
