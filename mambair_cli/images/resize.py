"""MATLAB's bicubic `imresize`, which made the low-resolution images of every published benchmark.

Pillow and OpenCV give other pixels. What makes MATLAB's: Keys' cubic kernel with a = -1/2, widened
when the image shrinks; mirrored borders; heights first, then widths; integer images rounded after
*each* axis. Sums run in float64 and in one fixed order, so ties at .5 fall the same way on every
machine.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..system import scratch

Array = NDArray[Any]
Taps = tuple[tuple[Array, Array], ...]

BAND_VALUES = 1 << 16
"""Large images are resized in bands of about this many output values, which stay in the cache."""

# bands after which large arrays are taken out of memory
RELEASE = 64


def bicubic(image: Array, height: int, width: int, *, antialias: bool = True) -> Array:
    """Resize to `height` x `width` as MATLAB's `imresize(image, [height width], 'bicubic')` does.

    The scale of each axis is output / input size. For MATLAB's `imresize(image, 1/s)` see
    `downscale`.

    Args:
        image: H x W or H x W x C; uint8, uint16, float32 or float64, any value range.
        height: rows of the result, at least 1.
        width: columns of the result, at least 1.
        antialias: widen the kernel when shrinking.

    Returns:
        A new array of the image's type. uint8 and uint16 are rounded (halves up) and clipped after
        each axis; floats are not clipped, so they may overshoot the range of the input.

    Raises:
        ValueError: the image has another type or shape, or a size is below 1.
    """
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"expected an image of H x W or H x W x C, got the shape {image.shape}")
    if image.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise ValueError(f"expected uint8, uint16, float32 or float64, got {image.dtype}")
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height} x {width}")

    row_taps = _taps(image.shape[0], height, antialias)
    column_taps = _taps(image.shape[1], width, antialias)
    result = scratch.allocate((height, width, *image.shape[2:]), image.dtype)
    for i, band in enumerate(_bands(height, max(result[0].size, image[0].size))):
        # band x W x C
        rows = _weighted_sum(image, row_taps, band)
        # width x band x C
        columns = _weighted_sum(rows.swapaxes(0, 1), column_taps, slice(None))
        result[band] = columns.swapaxes(0, 1)
        if i % RELEASE == 0:
            scratch.release(result, image)
    return result


def downscale(image: Array, scale: int, *, antialias: bool = True) -> Array:
    """Crop to a multiple of `scale` and shrink by it, as benchmarks make their inputs.

    The scale is exactly 1/`scale` on both axes, as in MATLAB's `imresize(modcrop(image, s), 1/s)`.
    Takes, returns and raises what `bicubic` does; the result is H//scale x W//scale (x C).
    """
    cropped = modcrop(image, scale)
    return bicubic(
        cropped, cropped.shape[0] // scale, cropped.shape[1] // scale, antialias=antialias
    )


def modcrop(image: Array, scale: int) -> Array:
    """Cut off rows below and columns at the right that exceed a multiple of `scale` (a view).

    Raises:
        ValueError: `scale` is below 1.
    """
    if scale < 1:
        raise ValueError(f"a scale is at least 1, got {scale}")
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def cubic(x: Array) -> Array:
    """Keys' cubic convolution kernel, a = -1/2, zero from |x| = 2 on (Keys 1981, equation 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))


@lru_cache(maxsize=256)
def _taps(size: int, new_size: int, antialias: bool) -> Taps:
    """Find the inputs of each output: pairs (index, weight) of `new_size` each, summed in order.

    Follows `contributions` in MATLAB's imresize.m; positions count from 1 there and here.
    """
    scale = new_size / size
    shrink = min(scale, 1.0) if antialias else 1.0
    support = 4 / shrink
    centre = np.arange(1, new_size + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - support / 2)
    # new_size x taps
    position = first[:, None] + np.arange(int(np.ceil(support)) + 2)
    weight = shrink * cubic(shrink * (centre[:, None] - position))
    weight /= weight.sum(axis=1, keepdims=True)

    mirrored = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    index = mirrored[(position.astype(np.int64) - 1) % (2 * size)]
    used = weight.any(axis=0)
    return tuple(zip(index.T[used], weight.T[used], strict=True))


def _weighted_sum(image: Array, taps: Taps, band: slice) -> Array:
    """Resize the first axis, only the outputs in `band`; integers are rounded and clipped."""
    trailing = (-1, *[1] * (image.ndim - 1))
    total: Array = np.zeros(1)
    for index, weight in taps:
        total = total + weight[band].reshape(trailing) * image[index[band]]
    if image.dtype.kind == "f":
        return total
    largest = np.iinfo(image.dtype).max
    # the cast drops the fraction
    return np.clip(total + 0.5, 0, largest + 0.5).astype(image.dtype)


def _bands(height: int, row_values: int) -> Iterator[slice]:
    """Consecutive slices that cover `height` rows of `row_values` values each."""
    rows = max(1, BAND_VALUES // row_values)
    return (slice(top, top + rows) for top in range(0, height, rows))
