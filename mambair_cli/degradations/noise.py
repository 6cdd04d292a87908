"""White Gaussian noise, drawn anew or as published benchmarks have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .base import Degradation, Float, Range


def published_noise(height: int, width: int, sigma: float, seed: int = 0) -> NDArray[np.float64]:
    """The noise of published colour denoising benchmarks, to be added to an image in [0, 1], unclipped.

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
    """White Gaussian noise. As in the published trainings the result is neither clipped nor rounded.

    sigma: standard deviation, of 255.
    """

    sigma: Range = (0, 55)

    LIMITS: ClassVar[Mapping[str, Range]] = {"sigma": (0, 255)}

    def _degrade(self, image: Float, rng: Generator) -> Float:
        sigma = np.float32(rng.uniform(*self.sigma) / 255)
        return image + sigma * rng.standard_normal(image.shape, np.float32)
