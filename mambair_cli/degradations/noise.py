"""White Gaussian noise, drawn anew or as published benchmarks have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .base import Degradation, Float, Range


def published_noise(height: int, width: int, sigma: float, seed: int = 0) -> NDArray[np.float64]:
    """Draw the noise of published colour denoising benchmarks; add it to an image in [0, 1].

    It is the same for all images of a size: NumPy's legacy generator, drawn in B, G, R order.

    Args:
        height: rows.
        width: columns.
        sigma: standard deviation, of 255.
        seed: 0 in what is published.

    Returns:
        height x width x 3 in R, G, B order.
    """
    return np.random.RandomState(seed).normal(0, sigma / 255, (height, width, 3))[:, :, ::-1]


@dataclass(frozen=True)
class Noise(Degradation):
    """White Gaussian noise, neither clipped nor rounded, as in the published trainings.

    sigma: standard deviation, of 255.
    """

    sigma: Range = (0, 55)

    LIMITS: ClassVar[Mapping[str, Range]] = {"sigma": (0, 255)}

    def _degrade(self, image: Float, rng: Generator) -> Float:
        sigma = np.float32(rng.uniform(*self.sigma) / 255)
        return image + sigma * rng.standard_normal(image.shape, np.float32)
