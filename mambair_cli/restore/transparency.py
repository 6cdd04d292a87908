"""The colour under transparent pixels, which no network should see."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..images.image import WHITE
from ..system import scratch

Array = NDArray[Any]

RADII = (1, 3, 9, 27)
"""Pixels within which colour is looked for, one blur after the other."""

SPREAD = sum(RADII)

FILL_ROWS = 256
"""Rows of a picture that are filled at a time."""


def fill_transparent(pixels: Array, alpha: Array) -> Array:
    """Give fully transparent pixels the colour of visible ones at most SPREAD pixels away."""
    if alpha.min() > 0 or not alpha.max():
        return pixels
    filled = scratch.allocate(pixels.shape, pixels.dtype)
    for top in range(0, len(pixels), FILL_ROWS):
        first = max(0, top - SPREAD)
        seen = slice(first, top + FILL_ROWS + SPREAD)
        band = _filled(pixels[seen], alpha[seen])
        filled[top : top + FILL_ROWS] = band[top - first :][:FILL_ROWS]
        scratch.release(pixels, alpha, filled)
    return filled


def _filled(pixels: Array, alpha: Array) -> Array:
    hidden = alpha == 0
    weight: Array = alpha.astype(np.float32)
    colour: Array = pixels.astype(np.float32) * (weight if pixels.ndim == 2 else weight[:, :, None])
    filled = pixels.copy()
    # The nearest colour that there is: each blur looks farther.
    for radius in RADII:
        side = (2 * radius + 1, 2 * radius + 1)
        weight, colour = cv2.blur(weight, side), cv2.blur(colour, side)
        near = hidden & (weight > 1e-6 * WHITE[alpha.dtype])
        share = weight[near] if pixels.ndim == 2 else weight[near][:, None]
        found = colour[near] / share
        filled[near] = found if pixels.dtype == np.float32 else np.rint(found)
        hidden &= ~near
    return filled
