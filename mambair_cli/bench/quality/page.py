"""A benchmark's facts as one HTML file that needs nothing else: tables, a scatter plot, images to compare."""

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ...images.folders import Pixels, read_rgb
from .candidates import Candidate
from .measure import Benchmark, saved_image
from .pairing import Sample, load_sample
from .report import LABELS, footnotes, headline, images_table, metrics, number, summary_table
from .spots import find_spot

Facts = dict[str, Any]

TEMPLATE = Path(__file__).parent / "page.html"
SHOWN = 3  # images at each end
SPOT = 64  # pixels a side of what is shown enlarged
LARGEST = 1024  # pixels a side of an image that is shown whole


def build(
    facts: Facts,
    benchmark: Benchmark,
    candidates: Sequence[Candidate],
    save: Path | None = None,
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> str:
    """The report.

    Args:
        facts: what `quality.run` returned for the others.
        benchmark: of the run.
        candidates: of the run; they restore again the images that are shown, unless these were saved.
        save: folder where that run saved the images.
        progress: is called with the share done and what is at work.

    Raises as `load_sample` and `Candidate.restore`.
    """
    first, baseline = facts["results"][1], facts["results"][0]
    order = sorted(range(len(first["images"])), key=lambda i: first["images"][i]["psnr"])
    worst, best = (
        order[: min(SHOWN, (len(order) + 1) // 2)],
        order[::-1][: min(SHOWN, len(order) // 2)],
    )
    shown = [(i, "worst") for i in worst] + [(i, "best") for i in best]
    pictures = []
    for n, (i, which) in enumerate(shown):
        progress(n / len(shown), f"report: {benchmark.sources[i].name}")
        sample = load_sample(benchmark.sources[i], benchmark.protocol)
        images = [benchmark.protocol.enlarge(sample.input, sample.truth.shape[:2])]
        images += [_restored(candidate, sample, benchmark, save) for candidate in candidates]
        why = f"{which} of {first['name']}, {first['images'][i]['psnr']:.2f} dB"
        pictures.append({"why": why, **_picture(facts, i, images, sample.truth)})
    data = {
        "title": headline(facts),
        "summary": summary_table(facts),
        "ours": len(facts["results"]),
        "images": images_table(facts),
        "notes": footnotes(facts),
        "baseline": baseline["name"],
        "names": [result["name"] for result in facts["results"][1:]],
        "points": _points(facts),
        "pictures": pictures,
    }
    text = json.dumps(data).replace("<", "\\u003c")  # which would end the element
    return TEMPLATE.read_text("utf-8").replace("@DATA@", text)


def _points(facts: Facts) -> list[Facts]:
    """For each image whose PSNR is finite: that of the baseline, and what each network gains."""
    points = []
    for rows in zip(*(result["images"] for result in facts["results"]), strict=True):
        decibels = [row["psnr"] for row in rows]
        if all(map(math.isfinite, decibels)):
            gains = [value - decibels[0] for value in decibels[1:]]
            points.append({"image": rows[0]["image"], "x": decibels[0], "gains": gains})
    return points


def _restored(
    candidate: Candidate, sample: Sample, benchmark: Benchmark, save: Path | None
) -> Pixels:
    if save:
        saved = read_rgb(saved_image(save, benchmark, candidate.name, sample.name))
        return saved if sample.truth.ndim == 3 else saved[:, :, 0]
    return candidate.restore(sample.input, sample.truth.shape[:2])


def _picture(facts: Facts, index: int, images: Sequence[Pixels], truth: Pixels) -> Facts:
    """What the page shows of one image; the spot is where the first network is furthest from the truth."""
    y, x, side = find_spot(images[1], truth, SPOT)
    middle = zip((y, x), truth.shape, strict=False)
    top, left = (max(0, min(at + (side - LARGEST) // 2, length - LARGEST)) for at, length in middle)
    part = (slice(top, top + LARGEST), slice(left, left + LARGEST))
    views = []
    for image, result in zip(images, facts["results"], strict=True):
        row = result["images"][index]
        values = ", ".join(f"{LABELS[m]} {number(m, row[m])}" for m in metrics(facts))
        views.append({"label": f"{result['name']} ({values})", "src": _data_address(image[part])})
    views.append({"label": "truth", "src": _data_address(truth[part])})
    shown = truth[part].shape
    name = facts["results"][0]["images"][index]["image"]
    return {
        "image": name,
        "width": shown[1],
        "height": shown[0],
        "spot": [x - left, y - top, side],
        "views": views,
    }


def _data_address(image: Pixels) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(image)).save(file, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
