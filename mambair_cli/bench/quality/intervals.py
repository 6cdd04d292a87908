"""What a mean over a few images is worth."""

import math
from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Confidence interval of the mean by Student's t; None for one value, or infinite ones."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    half = (
        student_t(len(values) - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    )
    mean = float(np.mean(values))
    return mean - half, mean + half


def student_t(freedom: int, level: float = 0.95) -> float:
    """How many standard errors hold this share of Student's distribution.

    With t = sqrt(n) tan(a), its density over the angle a goes as cos(a)^(n - 1), so a finite sum
    suffices.
    """
    angle = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    share = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, share / share[-1], angle)))
