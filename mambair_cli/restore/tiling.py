"""Cut an image into equal tiles and blend what a network made of them: only geometry and weights.

All tiles of a plan have one size, so a compiled or batched network sees one shape. Pixels near a
tile's edge lack context. Where two neighbours overlap, the quarter of the overlap next to each edge
therefore counts for nothing, and a raised cosine leads over from one tile to the other in between:

    A   1 1 1 1 1 1 1 . . . . 0 0 0|
                |0 0 0 . . . . 1 1 1 1 1 1 1   B
                |  q  |  ramp |  q |               q = overlap // 4

An operator that looks at most q pixels far therefore gives the same image in tiles as in one piece.
"""

import itertools
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CallError

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of a `height` x `width` image lie. All lengths are in pixels of the input."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def boxes(self) -> list[tuple[int, int]]:
        """The (top, left) corner of each tile, row by row, as `merge` expects the results."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def weights(self, scale: int = 1) -> list[tuple[Weights, Weights]]:
        """For each box, how much the rows and the columns of its result count in the blend.

        The weight of a pixel is the product of its row's and its column's. Over all tiles that
        cover a pixel of the image, these products sum to one.

        Args:
            scale: the results are this many times as large as the tiles.

        Returns:
            In the order of `boxes`, pairs of (scale * tile_height,) and (scale * tile_width,), in
            [0, 1].
        """
        rows = _axis_weights(self.height, self.tile_height, self.tops, scale)
        columns = _axis_weights(self.width, self.tile_width, self.lefts, scale)
        return [(row, column) for row in rows for column in columns]


def plan(
    height: int, width: int, tile: int | tuple[int, int], overlap: int, multiple: int = 1
) -> TilePlan:
    """Cover an image with the fewest tiles, then make these as small as the overlap allows.

    Args:
        height: rows of the image.
        width: columns of the image.
        tile: the largest side of a tile, or its largest height and width. A side of the image
            that is no longer gets one tile of its length.
        overlap: the least number of pixels that neighbours share; 0 cuts hard.
        multiple: starts and sides of tiles are multiples of it, and so must be a side that is cut.

    Raises:
        CallError: the overlap is negative, or not smaller than the tile (both in whole multiples).
        ValueError: a side is below 1, or is to be cut and is no multiple of `multiple`.
    """
    if overlap < 0:
        raise CallError(f"the overlap of tiles cannot be negative, got {overlap}")
    rows, columns = tile if isinstance(tile, tuple) else (tile, tile)
    if min(rows, columns) // multiple <= -(-overlap // multiple):
        steps = f" in steps of {multiple}" if multiple > 1 else ""
        raise CallError(
            f"a tile of {min(rows, columns)} pixels must be larger than the overlap of"
            f" {overlap} pixels{steps}"
        )
    tile_height, tops = _plan_axis(height, rows, overlap, multiple)
    tile_width, lefts = _plan_axis(width, columns, overlap, multiple)
    return TilePlan(height, width, tile_height, tile_width, tops, lefts)


def merge_rows(
    plan: TilePlan, outputs: Iterable[NDArray[Any]], scale: int = 1
) -> Generator[NDArray[np.float32], None, None]:
    """Blend the results of all tiles, and hand out the image from top to bottom as it is finished.

    Holds one row of tiles and one result at a time, however high the image is. Pixels whose weight
    is zero are never read, so whatever stands there (even NaN) leaves no trace. With one tile the
    result is that tile's, bit for bit.

    Args:
        plan: where the tiles lie.
        outputs: for each of `plan.boxes`, in that order, an array of (scale * tile_height) x
            (scale * tile_width) x C, any value range; a generator is fine.
        scale: the results are this many times as large as the tiles.

    Yields:
        Strips of (scale * width) x C that together have scale * height rows.

    Raises:
        ValueError: a result has another shape, or there are more or fewer results than boxes.
    """
    boxes = zip(plan.boxes, plan.weights(scale), outputs, strict=True)
    # The rows of the image, from `start` on, that are not finished.
    band = np.zeros((0, 0, 0), np.float32)
    start = 0
    for (top, left), (rows, columns), output in boxes:
        if not band.size:
            band = np.zeros((rows.size, scale * plan.width, output.shape[-1]), np.float32)
        expected = (rows.size, columns.size, band.shape[2])
        if output.shape != expected:
            raise ValueError(
                f"the result of a tile has the shape {output.shape}, expected {expected}"
            )
        if top > start:
            done = scale * (top - start)
            yield band[:done]
            rest = band[done:].copy()
            # A new band, as the strip is now the caller's.
            band = np.zeros(band.shape, np.float32)
            band[: len(rest)] = rest
            start = top
        y, x = _support(rows), _support(columns)
        weight = rows[y, None, None] * columns[None, x, None]
        target = band[:, scale * left :][:, : columns.size]
        target[y, x] += weight * output[y, x]
    yield band


def merge(plan: TilePlan, outputs: Iterable[NDArray[Any]], scale: int = 1) -> NDArray[np.float32]:
    """The image that the strips of `merge_rows` make up: (scale * height) x (scale * width) x C."""
    return np.concatenate(list(merge_rows(plan, outputs, scale)))


def _plan_axis(size: int, tile: int, overlap: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """The common length of the tiles along one axis, and their starts."""
    if size < 1:
        raise ValueError(f"cannot tile a side of {size} pixels")
    if size <= tile:
        return size, (0,)
    if size % multiple:
        raise ValueError(
            f"a side of {size} pixels that is cut into tiles must be a multiple of {multiple}"
        )
    # From here on, lengths count multiples; n tiles of length t cover n * t - (n - 1) * overlap.
    size, tile, overlap = size // multiple, tile // multiple, -(-overlap // multiple)
    count = -(-(size - overlap) // (tile - overlap))
    length = -(-(size + (count - 1) * overlap) // count)
    starts = (step * (size - length) // (count - 1) for step in range(count))
    return length * multiple, tuple(start * multiple for start in starts)


def _axis_weights(size: int, length: int, starts: tuple[int, ...], scale: int) -> list[Weights]:
    """One array of scale * length per tile; where they overlap, they sum to one."""
    overlaps = [start + length - following for start, following in itertools.pairwise(starts)]
    profiles = []
    for before, after in zip([None, *overlaps], [*overlaps, None], strict=True):
        profile = np.ones(scale * length)
        if before is not None:
            profile[: scale * before] *= _rise(before, scale)
        if after is not None:
            profile[scale * (length - after) :] *= _rise(after, scale)[::-1]
        profiles.append(profile)

    # Two neighbours' ramps sum to one; if more tiles overlap, only dividing makes it so.
    total = np.zeros(scale * size)
    spans = [slice(scale * start, scale * (start + length)) for start in starts]
    for span, profile in zip(spans, profiles, strict=True):
        total[span] += profile
    return [
        (profile / total[span]).astype(np.float32)
        for span, profile in zip(spans, profiles, strict=True)
    ]


def _rise(overlap: int, scale: int) -> NDArray[np.float64]:
    """From 0 at a tile's edge to 1 over scale * overlap pixels: flat, raised cosine, flat."""
    margin = overlap // 4
    ramp = scale * (overlap - 2 * margin)
    cosine = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / max(ramp, 1)) ** 2
    return np.concatenate([np.zeros(scale * margin), cosine, np.ones(scale * margin)])


def _support(weights: Weights) -> slice:
    """The stretch of an axis between its first and its last pixel that counts."""
    first, last = np.flatnonzero(weights)[[0, -1]]
    return slice(int(first), int(last) + 1)
