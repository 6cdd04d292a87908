"""A benchmark's report as one HTML file that needs nothing else: tables, a plot, images."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ...images.folders import Pixels, read_rgb
from ...pages.template import data_address, fill
from .candidates import Candidate
from .measure import Benchmark, saved_image
from .pairing import Sample, load_sample
from .report import LABELS, footnotes, headline, images_table, number, summary_table
from .results import Report

TEMPLATE = Path(__file__).parent / "page.html"
SHOWN = 3
"""Images at each end."""
SPOT = 64
"""Pixels a side of what is shown enlarged."""
LARGEST = 1024
"""Pixels a side of an image that is shown whole."""
Shown = dict[str, Any]
"""What the page's script reads."""


def build(
    report: Report,
    benchmark: Benchmark,
    candidates: Sequence[Candidate],
    save: Path | None = None,
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> str:
    """The page.

    Args:
        report: what `measure.run` returned for the others.
        benchmark: of the run.
        candidates: of the run; they restore again the images that are shown, unless these were
            saved.
        save: folder where that run saved the images.
        progress: is called with the share done and what is at work.

    Raises as `load_sample` and `Candidate.restore`.
    """
    first = report.networks[0]
    order = sorted(range(len(first.images)), key=lambda i: first.images[i].scores["psnr"])
    worst = order[: min(SHOWN, (len(order) + 1) // 2)]
    best = order[::-1][: min(SHOWN, len(order) // 2)]
    shown = [(i, "worst") for i in worst] + [(i, "best") for i in best]
    pictures = []
    for n, (i, which) in enumerate(shown):
        progress(n / len(shown), f"report: {benchmark.pairs[i].name}")
        sample = load_sample(benchmark.pairs[i], benchmark.protocol)
        images = [benchmark.protocol.enlarge(sample.input, sample.truth.shape[:2])]
        images += [_restored(candidate, sample, benchmark, save) for candidate in candidates]
        why = f"{which} of {first.name}, {first.images[i].scores['psnr']:.2f} dB"
        pictures.append({"why": why, **_picture(report, i, images, sample.truth)})
    data = {
        "title": headline(report),
        "summary": summary_table(report, report.published),
        "ours": len(report.results),
        "images": images_table(report),
        "notes": footnotes(report, report.published),
        "baseline": report.baseline.name,
        "names": [result.name for result in report.networks],
        "points": _points(report),
        "pictures": pictures,
    }
    return fill(TEMPLATE, data)


def find_spot(a: NDArray[Any], b: NDArray[Any], side: int) -> tuple[int, int, int]:
    """(top, left, side) of the square where two images differ most; smaller where they are.

    Args:
        a: H x W or H x W x C, any type.
        b: the same shape.
        side: pixels.
    """
    change = (a.astype(np.float32) - b.astype(np.float32)) ** 2
    change = change if change.ndim == 2 else change.mean(2)
    height, width = change.shape
    side = min(side, height, width)
    sums = cv2.boxFilter(change, -1, (side, side), anchor=(0, 0))
    inside = sums[: height - side + 1, : width - side + 1]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left), side


def _points(report: Report) -> list[Shown]:
    """For each image whose PSNR is finite: that of the baseline, and what each network gains."""
    points = []
    for rows in zip(*(result.images for result in report.results), strict=True):
        first, *others = (row.scores["psnr"] for row in rows)
        if all(map(math.isfinite, (first, *others))):
            gains = [value - first for value in others]
            points.append({"image": rows[0].image, "x": first, "gains": gains})
    return points


def _restored(
    candidate: Candidate, sample: Sample, benchmark: Benchmark, save: Path | None
) -> Pixels:
    if save:
        saved = read_rgb(saved_image(save, benchmark, candidate.name, sample.name))
        return saved if sample.truth.ndim == 3 else saved[:, :, 0]
    return candidate.restore(sample.input, sample.truth.shape[:2])


def _picture(report: Report, index: int, images: Sequence[Pixels], truth: Pixels) -> Shown:
    """What the page shows of one image; the spot is where the first network is furthest off."""
    y, x, side = find_spot(images[1], truth, SPOT)
    middle = zip((y, x), truth.shape, strict=False)
    top, left = (max(0, min(at + (side - LARGEST) // 2, length - LARGEST)) for at, length in middle)
    part = (slice(top, top + LARGEST), slice(left, left + LARGEST))
    views = []
    for image, result in zip(images, report.results, strict=True):
        scores = result.images[index].scores
        values = ", ".join(f"{LABELS[m]} {number(m, value)}" for m, value in scores.items())
        views.append({"label": f"{result.name} ({values})", "src": _address(image[part])})
    views.append({"label": "truth", "src": _address(truth[part])})
    height, width = truth[part].shape[:2]
    return {
        "image": report.baseline.images[index].image,
        "width": width,
        "height": height,
        "spot": [x - left, y - top, side],
        "views": views,
    }


def _address(image: Pixels) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(file, "WEBP", lossless=True)
    return data_address(file.getvalue())
