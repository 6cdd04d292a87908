"""The named ways in which a benchmark hands an image to a network, as results differ between them."""

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import CallError

Array = NDArray[Any]
Tiler = Literal["auto", "whole", "published"]

PART = 200  # pixels; a side of 200 or more is split
MARGIN = 10  # a part is enlarged by a tenth of its side


def check_tiler(name: str) -> Tiler:
    """The name itself. Raises CallError where there is no such tiler."""
    if name not in get_args(Tiler):
        raise CallError(f"--tiler must be {', '.join(get_args(Tiler))}, not {name!r}")
    return cast(Tiler, name)


def restore_split(image: Array, scale: int, restore: Callable[[Array, float], Array]) -> Array:
    """Restore an image in parts as the published MambaIR numbers were made.

    Each side of n pixels is cut into n // 200 + 1 equal parts, after reflection padding at its end; each is enlarged
    by a tenth of it towards its neighbours, restored alone, and cut hard.

    Args:
        image: H x W or H x W x C.
        scale: of the results against the parts.
        restore: takes a part and the share of the image that it stands for.

    Returns:
        scale * H x scale * W (x C).
    """
    height, width = image.shape[:2]
    rows, columns = _parts(height), _parts(width)
    padding = [
        (0, rows[-1][1].stop - height),
        (0, columns[-1][1].stop - width),
        *[(0, 0)] * (image.ndim - 2),
    ]
    padded = np.pad(image, padding, "reflect")
    result = np.empty(
        (scale * padded.shape[0], scale * padded.shape[1], *image.shape[2:]), image.dtype
    )
    for seen_rows, kept_rows in rows:
        for seen_columns, kept_columns in columns:
            part = restore(padded[seen_rows, seen_columns], 1 / len(rows) / len(columns))
            top, left = (
                scale * (k.start - s.start)
                for k, s in ((kept_rows, seen_rows), (kept_columns, seen_columns))
            )
            inner = result[_times(kept_rows, scale), _times(kept_columns, scale)]
            inner[:] = part[top : top + inner.shape[0], left : left + inner.shape[1]]
    return result[: scale * height, : scale * width]


def _parts(side: int) -> list[tuple[slice, slice]]:
    """For each part of a side, what the network sees and what of that is kept."""
    count = side // PART + 1
    length = -(-side // count)
    margin = length // MARGIN
    whole = count * length
    kept = [slice(start, start + length) for start in range(0, whole, length)]
    return [
        (slice(max(0, part.start - margin), min(whole, part.stop + margin)), part) for part in kept
    ]


def _times(part: slice, scale: int) -> slice:
    return slice(scale * part.start, scale * part.stop)
