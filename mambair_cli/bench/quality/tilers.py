"""The named ways to hand an image to a network; results differ between them."""

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import CallError

Array = NDArray[Any]
Tiler = Literal["auto", "whole", "published"]

PART = 200
"""Pixels; a side of as many or more is split."""
MARGIN = 10
"""A part is enlarged by a tenth of its side."""


def check_tiler(name: str) -> Tiler:
    """The name itself. Raises CallError where there is no such tiler."""
    if name not in get_args(Tiler):
        raise CallError(f"`tiler` must be {', '.join(get_args(Tiler))}, not {name!r}")
    return cast(Tiler, name)


def restore_split(image: Array, scale: int, restore: Callable[[Array, float], Array]) -> Array:
    """Restore an image in parts as the published MambaIR numbers were made.

    Each side of n pixels is cut into n // 200 + 1 equal parts, after reflection padding at its end.
    Each part is enlarged by a tenth of it towards its neighbours, restored alone, and cut hard.

    Args:
        image: H x W or H x W x C.
        scale: of the results against the parts.
        restore: takes a part and the share of the image that it stands for.

    Returns:
        scale * H x scale * W (x C).
    """
    height, width = image.shape[:2]
    rows, columns = _parts(height), _parts(width)
    below, beside = rows[-1][1].stop - height, columns[-1][1].stop - width
    padding = [(0, below), (0, beside), *[(0, 0)] * (image.ndim - 2)]
    padded = np.pad(image, padding, "reflect")
    size = (scale * padded.shape[0], scale * padded.shape[1], *image.shape[2:])
    result = np.empty(size, image.dtype)
    for seen_rows, kept_rows in rows:
        for seen_columns, kept_columns in columns:
            part = restore(padded[seen_rows, seen_columns], 1 / len(rows) / len(columns))
            top = scale * (kept_rows.start - seen_rows.start)
            left = scale * (kept_columns.start - seen_columns.start)
            inner = result[_times(kept_rows, scale), _times(kept_columns, scale)]
            inner[:] = part[top : top + inner.shape[0], left : left + inner.shape[1]]
    return result[: scale * height, : scale * width]


def _parts(side: int) -> list[tuple[slice, slice]]:
    """For each part of a side, what the network sees and what of that is kept."""
    count = side // PART + 1
    length = -(-side // count)
    margin = length // MARGIN
    whole = count * length
    parts = []
    for start in range(0, whole, length):
        stop = start + length
        seen = slice(max(0, start - margin), min(whole, stop + margin))
        parts.append((seen, slice(start, stop)))
    return parts


def _times(part: slice, scale: int) -> slice:
    return slice(scale * part.start, scale * part.stop)
