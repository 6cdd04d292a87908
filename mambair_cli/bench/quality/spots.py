"""Where two results differ most: the place of an image that is worth to be shown enlarged."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def find_spot(a: NDArray[Any], b: NDArray[Any], side: int) -> tuple[int, int, int]:
    """(top, left, side) of the square with the largest squared difference; smaller where the image is.

    Args:
        a: H x W or H x W x C, any type.
        b: the same shape.
        side: pixels.
    """
    change = (a.astype(np.float32) - b.astype(np.float32)) ** 2
    change = change if change.ndim == 2 else change.mean(2)
    height, width = change.shape
    side = min(side, height, width)
    sums = cv2.boxFilter(change, -1, (side, side), anchor=(0, 0))[
        : height - side + 1, : width - side + 1
    ]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(top), int(left), side
