"""What all degradations share: seeded functions of an image, and the ranges they draw from.

Each is a frozen dataclass whose fields are ranges, two numbers from which every call draws anew,
uniformly unless the field's text says otherwise; two equal numbers fix a value.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..errors import CallError

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Range = tuple[float, float]


class Degradation(ABC):
    """Spoils an image; all that is random comes from the generator of the call.

    Subclasses are frozen dataclasses. LIMITS holds the limits of each range among their fields.
    """

    LIMITS: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        check_ranges(self, self.LIMITS)

    def __call__(self, image: Float, rng: Generator) -> Float:
        """Return a degraded copy.

        Args:
            image: H x W x 3 float32 in [0, 1], RGB.
            rng: what all random numbers are drawn from.

        Returns:
            float32, in [0, 1] in steps of 1/255 as a file would hold it, and of the size of the
            image, unless the class says otherwise.

        Raises:
            ValueError: the image has another shape, type or range, is empty or holds NaN.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.float32:
            raise ValueError(
                f"expected float32, got {getattr(image, 'dtype', type(image).__name__)}"
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"expected an image of H x W x 3, got the shape {image.shape}")
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("expected values in [0, 1], got others or NaN")
        return self._degrade(image, rng)

    @abstractmethod
    def _degrade(self, image: Float, rng: Generator) -> Float:
        """Degrade an image that `__call__` has checked."""


def check_ranges(owner: object, limits: Mapping[str, Range]) -> None:
    """Raise CallError where a field of these names is no range or leaves its limits."""
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        numbers = isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value)
        if not (numbers and len(value) == 2 and low <= value[0] <= value[1] <= high):
            kind = type(owner).__name__.lower()
            raise CallError(
                f"{kind}: {name} must be two numbers from {low:g} to {high:g} in order,"
                f" not {value!r}"
            )


def draw_log(rng: Generator, limits: Range) -> float:
    """Draw a number between two positive ones; each octave is as likely as any other."""
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def from_pixels(pixels: Pixels) -> Float:
    """Convert 0..255 to float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)
