"""Whether a photo was processed (compressed, resized, sharpened, filtered) since it was taken.

Networks for "bicubic" inputs expect a photo that was only made smaller. What else happened leaves
traces: how fast the spectra of luma and chroma fall, how wide the sharpest edges are, what the
flattest parts hold, whether every eighth column differs. A logistic regression weighs them; it was
fitted by `scripts/fit_processed.py`, on photos that are in no benchmark.
"""

import csv
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .estimate import COSINES, SEGMENT, as_255, middle, noise_sigma

Array = NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "processed.csv"

ROWS = 2000
"""Segments of each direction whose spectra are taken."""

FLAT = 0.1
"""Share of the blocks that count as flat."""

EDGE = 50.0
"""Contrast, of 255, from which on a step counts as an edge."""

REACH = 9
"""Pixels across an edge that are looked at."""

LIMIT = 4.0
"""Standard deviations at which features are clipped."""

NAMES = (
    *(f"luma spectrum {i}" for i in range(8)),
    "luma power",
    *(f"chroma spectrum {i}" for i in range(5)),
    *("flat low", "flat middle", "flat high"),
    *(f"edge {i}%" for i in (10, 25, 50, 75, 90, 95, 99)),
    *("edges", "blocks", "blocks across", "noise"),
)


def processed(pixels: NDArray[np.generic]) -> float | None:
    """The logarithm of the odds that a photo was not only made smaller, or sharp and clean before.

    Args:
        pixels: H x W or H x W x 3 as `Image` holds them.

    Returns:
        Positive for processed photos; None if the photo is too small or too plain to tell.

    Raises:
        ValueError: as for `noise_sigma`.
    """
    found = traces(pixels)
    if found is None:
        return None
    mean, deviation, linear, square, bias = _weights()
    scaled = ((found - mean) / deviation).clip(-LIMIT, LIMIT)
    # Chroma says nothing of gray photos.
    scaled[np.isnan(scaled)] = 0
    return float(scaled @ linear + scaled**2 @ square + bias)


def traces(pixels: NDArray[np.generic]) -> NDArray[np.float64] | None:
    """The features of NAMES, those of the chroma of gray photos NaN; None if there are too few."""
    sigma = noise_sigma(pixels)
    values = as_255(middle(pixels))
    if sigma is None or min(values.shape[:2]) < SEGMENT:
        return None
    colour = values if values.ndim == 3 else np.repeat(values[:, :, None], 3, 2)
    luma, *chroma = np.moveaxis(cv2.cvtColor(colour, cv2.COLOR_RGB2YCrCb), 2, 0)
    edges = _edges(luma)
    flat = _flat(luma)
    if edges is None or flat is None:
        return None
    power = np.log(_power(luma) + 0.02)
    base = power[2:20].mean()
    falls = [power[i : i + 4].mean() - base for i in range(2, 32, 4)]
    is_gray = max(np.ptp(chroma[0]), np.ptp(chroma[1])) < 0.5
    colours = np.log(_power(chroma[0]) + _power(chroma[1]) + 0.04)
    starts = (4, 10, 16, 22, 27)
    fades = [np.nan if is_gray else colours[i : i + 6].mean() - base for i in starts]
    blocks = np.log(np.array(_blocks(luma)) - 0.99)
    noise = np.log(0.05 + sigma)
    return np.array([*falls, base, *fades, *flat, *edges, *blocks, noise])


@cache
def _weights() -> tuple[NDArray[np.float64], ...]:
    with WEIGHTS.open(encoding="utf-8", newline="") as file:
        rows = {row["trace"]: row for row in csv.DictReader(file)}
    columns = ("mean", "deviation", "linear", "square")
    table = [np.array([float(rows[name][column]) for name in NAMES]) for column in columns]
    return *table, np.array(float(rows["bias"]["linear"]))


def _power(channel: Array) -> NDArray[np.float64]:
    """The power spectrum of rows and columns, from 0 to the highest frequency, 33 values."""
    window = np.hanning(SEGMENT).astype(np.float32)
    slope = np.linspace(-1, 1, SEGMENT, dtype=np.float32)
    slope /= np.linalg.norm(slope)
    power = np.zeros(SEGMENT // 2 + 1)
    for image in (channel, channel.T):
        columns = image.shape[1] // SEGMENT * SEGMENT
        segments = image[:, :columns].reshape(-1, SEGMENT)
        segments = segments[:: max(1, len(segments) // ROWS)]
        segments = segments - segments.mean(1, keepdims=True)
        # A slope would leak into all frequencies.
        segments = (segments - np.outer(segments @ slope, slope)) * window
        power += (np.abs(np.fft.rfft(segments)) ** 2).mean(0) / (2 * (window**2).sum())
    return power


def _flat(luma: Array) -> list[float] | None:
    """What the flattest blocks hold at low, middle and high frequencies, logarithms."""
    height, width = (side // 8 * 8 for side in luma.shape)
    blocks = luma[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2)
    blocks = blocks.reshape(-1, 8, 8)
    blocks = blocks[((blocks > 8) & (blocks < 247)).all((1, 2))]
    if len(blocks) < 20:
        return None
    squares = (COSINES @ blocks @ COSINES.T) ** 2
    low = squares[:, :2, :2].sum((1, 2)) - squares[:, 0, 0]
    flattest = np.argsort(low)[: max(20, int(FLAT * len(blocks)))]
    mean = squares[flattest].mean(0)
    powers = (
        mean[:2, :2].sum() - mean[0, 0],
        mean[2:5, 2:5].mean(),
        mean[5:, 5:].mean(),
    )
    return [float(np.log(0.05 + np.sqrt(max(0.0, power)))) for power in powers]


def _edges(luma: Array) -> list[float] | None:
    """How much of an edge's contrast its steepest step takes, percentiles; and how many edges."""
    found = []
    for image in (luma[::2], luma.T[::2]):
        steps = np.abs(np.diff(image, axis=1))
        windows = np.lib.stride_tricks.sliding_window_view(image, REACH, axis=1)
        nearby = np.lib.stride_tricks.sliding_window_view(steps, REACH - 1, axis=1)
        contrast = windows.max(-1) - windows.min(-1)
        steepest = nearby.max(-1)
        half = REACH // 2
        in_the_middle = np.maximum(nearby[..., half - 1], nearby[..., half]) >= steepest
        edge = (contrast > EDGE) & in_the_middle
        found.append(steepest[edge] / contrast[edge])
    shares = np.concatenate(found)
    if len(shares) < 25:
        return None
    density = np.log(2 * len(shares) / luma.size)
    return [*np.percentile(shares, (10, 25, 50, 75, 90, 95, 99)), density]


def _blocks(luma: Array) -> list[float]:
    """How much larger third differences are at every eighth column, and row: larger one first."""
    ratios = []
    for image in (luma, luma.T):
        inner = 3 * (image[:, 2:-1] - image[:, 1:-2])
        jumps = np.abs(image[:, 3:] - image[:, :-3] - inner).clip(max=20).mean(0)
        means = np.array([jumps[start::8].mean() for start in range(8)])
        ratios.append(float(means.max() / max(1e-6, np.median(means))))
    return sorted(ratios, reverse=True)
