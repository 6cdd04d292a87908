"""Samples of images: their types, ranges and alpha, converted some rows at a time.

Samples are H x W (gray, alpha) or H x W x 3 (RGB) of uint8, uint16 or float32, see `Image`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from ..errors import ImageError, MemoryLimitError
from ..system import scratch
from ..system.memory import free_memory
from .image import WHITE, Image

Samples = tuple[np.ndarray, np.ndarray | None]
"""The pixels, and the alpha where there is one."""

UINT8, UINT16 = np.dtype(np.uint8), np.dtype(np.uint16)

DECODING = 14
"""Bytes of memory that reading a pixel takes; 256 megapixels of WebP took 3.4 GB."""

SMALL = 2**24
"""Pixels that are read without a look at the free memory."""

BAND = 2**21
"""Large images are worked on in pieces of about this many bytes, which saves memory."""


def in_bands(change: Callable[..., np.ndarray], dtype: np.dtype, *arrays: np.ndarray) -> np.ndarray:
    """Apply change to some rows of the arrays at a time, and join the results as dtype: saves
    memory.
    """
    result = scratch.allocate(arrays[0].shape, dtype)
    step = band_rows(arrays[0])
    for top in range(0, len(result), step):
        rows = slice(top, top + step)
        result[rows] = change(*(array[rows] for array in arrays))
        scratch.release(result, *arrays)
    return result


def band_rows(samples: np.ndarray) -> int:
    """Count the rows of a band: BAND bytes, but at most 64 rows."""
    return max(1, min(64, BAND // samples[0].nbytes))


def bands(image: Image) -> Iterator[np.ndarray]:
    """Yield the samples of some rows after the other, each h x W x C with alpha last."""
    planes = [plane for plane in (image.pixels, image.alpha) if plane is not None]
    step = band_rows(image.pixels)
    for top in range(0, len(image.pixels), step):
        yield np.dstack([plane[top : top + step] for plane in planes])
        scratch.release(*planes)


def interleaved(image: Image) -> np.ndarray:
    """Join all samples in one array: H x W, or H x W x C with alpha last."""
    return image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])


def channel_count(image: Image) -> int:
    """Count the samples of a pixel, alpha included."""
    return (3 if image.pixels.ndim == 3 else 1) + (image.alpha is not None)


def to_uint8(samples: np.ndarray) -> np.ndarray:
    """Round floats, clipped to 0..1, or uint16 to 0..255. The one conversion of the package."""
    return reduced(samples, UINT8)


def reduced(samples: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round samples to a narrower type of integers; floats are clipped to 0..1."""
    white = 1.0 if samples.dtype.kind == "f" else WHITE[samples.dtype]
    scale = np.float32(WHITE[dtype] / white)
    return in_bands(lambda samples: np.rint(samples.clip(0, white) * scale), dtype, samples)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay pixels with alpha on a white ground."""
    white = WHITE[pixels.dtype]

    def lay(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        share = (alpha if pixels.ndim == 2 else alpha[..., None]).clip(0, white) / np.float32(white)
        laid = pixels * share + np.float32(white) * (1 - share)
        return laid if white == 1 else np.rint(laid)

    return in_bands(lay, pixels.dtype, pixels, alpha)


def in_range(samples: np.ndarray) -> np.ndarray:
    """Convert integers to uint16 and floats to float32.

    Raises ImageError for integers outside 0..65535, infinite values and NaN.
    """
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):
            samples = samples.astype(np.float32, copy=False)
        if not np.isfinite(samples).all():
            raise ImageError("has NaN or infinite values; export it again")
        return samples
    if not (samples.min() >= 0 and samples.max() <= 65535):
        raise ImageError("its samples run outside 0..65535; scale them into that range")
    return samples.astype(np.uint16, copy=False)


def stretched(samples: np.ndarray, maximum: int, dtype: np.dtype = UINT16) -> np.ndarray:
    """Stretch integers of 0..maximum to all of uint16 or uint8; larger ones count as maximum."""
    white = int(WHITE[dtype])
    if maximum == white:
        return samples.astype(dtype)

    def stretch(samples: np.ndarray) -> np.ndarray:
        return (np.minimum(samples, maximum).astype(np.uint64) * white + maximum // 2) // maximum

    return in_bands(stretch, dtype, samples)


def straight(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo the multiplication of pixels by alpha."""
    white = WHITE[pixels.dtype]

    def divide(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        gain = np.divide(
            white, alpha, out=np.zeros(alpha.shape, np.float32), where=alpha > white / 2**17
        )
        with np.errstate(over="ignore"):
            result = pixels * (gain if pixels.ndim == 2 else gain[..., None])
        return result if white == 1 else np.rint(result.clip(0, white))

    return in_bands(divide, pixels.dtype, pixels, alpha)


def check_pixels(size: tuple[int, ...], max_pixels: int, each: int = DECODING) -> None:
    """Raise if an image of this (width, height) cannot be read: before anything is decoded.

    each: bytes of memory that reading a pixel takes.

    Raises ImageError (over the limit), MemoryLimitError (too little memory is free) and ValueError
    (empty).
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{width}x{height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} pixels are over the limit of {max_pixels} in all, a guard against"
            " files that fill the memory; raise it with `max_pixels`"
        )
    if width * height > SMALL and width * height * each > (free := free_memory()):
        raise MemoryLimitError(
            f"{width}x{height} pixels take {width * height * each / 2**30:.1f} GiB of memory to be"
            f" read, and {free / 2**30:.1f} GiB are free; make it smaller, or close other programs"
        )


def most_pixels() -> int:
    """Count the pixels that can be read with the memory that is free."""
    return max(SMALL, free_memory() // DECODING)


def alpha_of_key(pixels: np.ndarray, key: Any, bits: int) -> np.ndarray:
    """Make the alpha that hides the one value or colour that a file declares transparent.

    bits: of a gray sample in the file.
    """
    # Pillow scales these samples to 8 bits, but not the key; some versions scale it for 1 bit
    if bits < 8:
        key = min(key * 255 // (2**bits - 1), 255)
    hidden = pixels == key if pixels.ndim == 2 else (pixels == key).all(axis=2)
    return np.where(hidden, 0, WHITE[pixels.dtype]).astype(pixels.dtype)


def upright(samples: np.ndarray, orientation: Any) -> np.ndarray:
    """Turn samples as EXIF orientation 1..8 asks; any other value means 1."""
    if orientation in {5, 6, 7, 8}:
        samples = samples.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        samples = samples[::-1]
    if orientation in {2, 3, 6, 7}:
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


def opencv(data: bytes) -> np.ndarray:
    """Read an image file by OpenCV: H x W x C, colours as BGR or BGRA. Raises ValueError."""
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise ValueError("the file is damaged, or of a kind that OpenCV does not know")
    return samples
