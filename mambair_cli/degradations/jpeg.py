"""Compression as JPEG."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import PIL.Image
from numpy.random import Generator

from ..images.samples import to_uint8
from .base import Degradation, Float, Pixels, Range, draw_log, from_pixels

FULL_CHROMA, HALF_CHROMA = 0, 2
"""Pillow's numbers for JPEG's chroma subsampling, 4:4:4 and 4:2:0."""


def compress(pixels: Pixels, quality: int, subsampling: int = HALF_CHROMA) -> Pixels:
    """Compress an image by Pillow's JPEG encoder. Published JPEG benchmarks use gray images.

    Args:
        pixels: H x W (gray) or H x W x 3 (RGB) uint8.
        quality: 1..100, of the Independent JPEG Group's scale.
        subsampling: of chroma, FULL_CHROMA or HALF_CHROMA.

    Returns:
        The same shape.

    Raises:
        ValueError: the pixels are none of these, or the quality is outside.
    """
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    ):
        raise ValueError(f"expected H x W or H x W x 3 uint8, got {pixels.dtype} {pixels.shape}")
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG quality is 1..100, got {quality}")
    buffer = io.BytesIO()
    options = {"subsampling": subsampling} if pixels.ndim == 3 else {}
    PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, **options)
    with PIL.Image.open(buffer) as image:
        return np.asarray(image)


def recompress(image: Float, quality: int, subsampling: int, rng: Generator) -> Float:
    """Compress a float image in blocks that begin anywhere, as those of a cropped file do."""
    up, left = (int(n) for n in rng.integers(8, size=2))
    padded = np.pad(to_uint8(image), ((up, 0), (left, 0), (0, 0)), "symmetric")
    return from_pixels(compress(padded, quality, subsampling)[up:, left:])


@dataclass(frozen=True)
class Jpeg(Degradation):
    """Pillow's JPEG in colour, 4:4:4 or 4:2:0.

    quality: whole numbers of the Independent JPEG Group's scale, drawn by octaves.
    aligned: share of images whose blocks begin in the corner, as in a file; else they begin
        anywhere, as in a cropped one.
    """

    quality: tuple[int, int] = (10, 60)
    aligned: float = field(default=0.0, metadata={"limits": (0, 1)})

    LIMITS: ClassVar[Mapping[str, Range]] = {"quality": (1, 100)}

    def _degrade(self, image: Float, rng: Generator) -> Float:
        quality = round(draw_log(rng, self.quality))
        subsampling = (FULL_CHROMA, HALF_CHROMA)[rng.integers(2)]
        if self.aligned and rng.random() < self.aligned:
            return from_pixels(compress(to_uint8(image), quality, subsampling))
        return recompress(image, quality, subsampling, rng)
