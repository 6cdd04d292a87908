"""What photographs go through on the web before they reach a screen as small, poor files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import cv2
import numpy as np
from numpy.random import Generator

from ..errors import CallError
from ..images.resize import modcrop
from ..images.samples import to_uint8
from .base import Degradation, Float, Range, check_ranges, from_pixels
from .jpeg import HALF_CHROMA, recompress


@dataclass(frozen=True)
class Pass:
    """Once through other people's hands (Real-ESRGAN, Wang et al. 2021): blur, resize, noise, JPEG.

    blur: standard deviations in pixels of the kernel along its two axes, where it is a Gaussian or
        like one.
    resize: factor by which it shrinks or grows.
    gaussian: standard deviation of Gaussian noise, of 255.
    poisson: what comes instead half of the time; 1 is the noise of 255 quanta at white.
    quality: of the JPEG.
    """

    blur: Range
    resize: Range
    gaussian: Range
    poisson: Range
    quality: tuple[int, int]

    LIMITS: ClassVar[Mapping[str, Range]] = {
        "blur": (0.01, 20),
        "resize": (0.05, 4),
        "gaussian": (0, 255),
        "poisson": (0, 20),
        "quality": (1, 100),
    }

    def __post_init__(self) -> None:
        check_ranges(self, self.LIMITS)

    def soil(self, image: Float, rng: Generator) -> Float:
        """Blur, resize and add noise."""
        image = _filter(image, _kernel(self.blur, rng))
        factor = rng.uniform(*self.resize)
        height, width = (max(1, round(side * factor)) for side in image.shape[:2])
        image = _resize(image, height, width, rng)
        # of one value for all channels, or of three
        # one value for all channels, or three
        channels = 1 if rng.random() < 0.4 else 3
        noise = rng.standard_normal((*image.shape[:2], channels), np.float32) / 255
        if rng.random() < 0.5:
            return image + noise * np.float32(rng.uniform(*self.gaussian))
        return image + noise * np.sqrt(255 * image) * np.float32(rng.uniform(*self.poisson))

    def compress(self, image: Float, rng: Generator) -> Float:
        """Compress as JPEG."""
        quality = int(rng.integers(*self.quality, endpoint=True))
        return recompress(image, quality, HALF_CHROMA, rng)


@dataclass(frozen=True)
class RealWorld(Degradation):
    """Blurred, resized and compressed twice, then `scale` times smaller than its truth.

    The second-order degradation of Real-ESRGAN (Wang et al. 2021) with its ranges, and plainer
    odds. The result is H//scale x W//scale: images are cropped to a multiple first, as by
    `downscale`.
    """

    scale: int = field(default=4, metadata={"limits": (1, 8)})
    first: Pass = Pass((0.2, 3), (0.15, 1.5), (1, 30), (0.05, 3), (30, 95))
    second: Pass = Pass((0.2, 1.5), (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95))

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, int) and self.scale >= 1):
            raise CallError(
                f"realworld: scale must be a whole number from 1 on, not {self.scale!r}"
            )

    def _degrade(self, image: Float, rng: Generator) -> Float:
        height, width = (side // self.scale for side in image.shape[:2])
        if not (height and width):
            raise ValueError(
                f"expected at least {self.scale} pixels a side, got the shape {image.shape}"
            )
        image = self.first.compress(self.first.soil(modcrop(image, self.scale), rng), rng)
        image = self.second.soil(image, rng)
        compressed_first = rng.random() < 0.5
        if compressed_first:
            image = self.second.compress(image, rng)
        image = _resize(image, height, width, rng)
        if rng.random() < 0.8:
            image = _filter(image, _sinc(rng))
        if not compressed_first:
            image = self.second.compress(image, rng)
        return from_pixels(to_uint8(image))


def _resize(image: Float, height: int, width: int, rng: Generator) -> Float:
    """Resize by a method drawn from three, and clip to [0, 1]."""
    method = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
    return cv2.resize(image, (width, height), interpolation=method).clip(0, 1)


def _filter(image: Float, kernel: Float) -> Float:
    return np.asarray(cv2.filter2D(image, cv2.CV_32F, kernel), np.float32)


def _kernel(deviation: Range, rng: Generator) -> Float:
    """Draw a blur: round or oval; a Gaussian or sharper, flatter, a plateau, or ringing."""
    if rng.random() < 0.1:
        return _sinc(rng)
    x, y = _grid(rng)
    first, second = rng.uniform(*deviation, size=2)
    if rng.random() < 0.6:
        second = first
    turn = rng.uniform(0, math.pi)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    squared = (along / first) ** 2 + (across / second) ** 2
    profile = rng.random()
    if profile < 0.7:
        kernel = np.exp(-squared / 2)
    elif profile < 0.85:
        kernel = np.exp(-(squared ** rng.uniform(0.5, 4)) / 2)
    else:
        kernel = 1 / (1 + squared ** rng.uniform(1, 2))
    return np.float32(kernel / kernel.sum())


def _sinc(rng: Generator) -> Float:
    """Draw a circular low-pass with the ringing of oversharpened photographs (Wang et al. 2021)."""
    cutoff = rng.uniform(math.pi / 3, math.pi)
    x, y = _grid(rng)
    radius = np.maximum(np.hypot(x, y), 1e-6)
    angles = (np.arange(64) + 0.5) * math.pi / 64
    # J1, by its integral
    bessel = np.cos(angles - (cutoff * radius)[..., None] * np.sin(angles)).mean(-1)
    kernel = bessel / radius
    return np.float32(kernel / kernel.sum())


def _grid(rng: Generator) -> tuple[Float, Float]:
    """Return offsets from the middle of a kernel of 7 to 21 pixels, across and down."""
    reach = int(rng.integers(3, 10, endpoint=True))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    return x, y
