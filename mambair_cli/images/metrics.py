"""PSNR and SSIM, measured as the literature does: on BT.601 luma, RGB or gray, a border cut off.

The peak is 255 throughout, so every image has the range [0, 255].
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PEAK = 255.0
SSIM_WINDOW = 11
"""Pixels a side."""
SSIM_SIGMA = 1.5
"""Of the Gaussian window, in pixels."""


def to_y(rgb: Array) -> NDArray[np.float64]:
    """Compute BT.601 studio-range luma as MATLAB's `rgb2ycbcr` does, but without rounding.

    Args:
        rgb: H x W x 3 in R, G, B order, or H x W (gray, taken as three equal channels); uint8 or
            float, in [0, 255].

    Returns:
        H x W in [16, 235].

    Raises:
        ValueError: the image has another shape.
    """
    image = rgb.astype(np.float64)
    if image.ndim == 2:
        return 16 + 219 / 255 * image
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected H x W x 3 or H x W, got the shape {rgb.shape}")
    return 16 + (65.481 * image[..., 0] + 128.553 * image[..., 1] + 24.966 * image[..., 2]) / 255


def y_in_8_bits(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Compute the luma of `to_y`, rounded (halves up): H x W of an image of 8 bits."""
    return (to_y(rgb) + 0.5).astype(np.uint8)


def psnr(a: Array, b: Array, *, border: int = 0) -> float:
    """Measure PSNR in dB over all pixels and channels; infinite if the images are equal.

    Args:
        a: H x W or H x W x C in [0, 255], any type.
        b: the same shape; the result does not depend on which of the two is the reference.
        border: pixels left out on each of the four sides.

    Raises:
        ValueError: the shapes differ, or nothing is left within the border.
    """
    a, b = _within_border(a, b, border)
    error = float(np.mean((a - b) ** 2))
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")


def ssim(a: Array, b: Array, *, border: int = 0) -> float:
    """Measure mean structural similarity, at most 1 (Wang et al. 2004, equation 13).

    The window is their 11 x 11 Gaussian. Only windows that lie wholly
    inside the image count, as in the authors' `ssim_index.m`.

    Args:
        a: H x W in [0, 255], any type.
        b: the same shape; the result does not depend on which of the two is the reference.
        border: pixels left out on each of the four sides.

    Raises:
        ValueError: the shapes differ, there is a channel axis, or no window fits within the border.
    """
    a, b = _within_border(a, b, border)
    if a.ndim != 2:
        raise ValueError(f"SSIM takes one channel, H x W, got the shape {a.shape}")
    if min(a.shape) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side within the border, got {a.shape}")
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a = _windowed(a * a) - mean_a * mean_a
    variance_b = _windowed(b * b) - mean_b * mean_b
    covariance = _windowed(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    most = (mean_a * mean_a + mean_b * mean_b + c1) * (variance_a + variance_b + c2)
    return float(np.mean(likeness / most))


def _windowed(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean under the Gaussian window wherever it fits: H x W -> (H - 10) x (W - 10)."""
    radius = SSIM_WINDOW // 2
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    means = cv2.sepFilter2D(image, cv2.CV_64F, weights, weights)
    return np.asarray(means[radius:-radius, radius:-radius])


def psnr_y(a: Array, b: Array, *, border: int) -> float:
    """PSNR on luma of two uint8 images, H x W x 3 (RGB) or H x W.

    Super-resolution is measured with a `border` of the scale.

    Raises:
        ValueError: an image is not uint8 (published figures are of stored images), or as `to_y` and
            `psnr`.
    """
    return psnr(_stored_y(a), _stored_y(b), border=border)


def ssim_y(a: Array, b: Array, *, border: int) -> float:
    """SSIM on luma of two uint8 images, H x W x 3 (RGB) or H x W.

    Super-resolution is measured with a `border` of the scale.

    Raises:
        ValueError: an image is not uint8 (published figures are of stored images), or as `to_y` and
            `ssim`.
    """
    return ssim(_stored_y(a), _stored_y(b), border=border)


def scores(restored: Array, truth: Array, *, channel: str, border: int) -> tuple[float, float]:
    """Compute PSNR in dB and SSIM of two uint8 images as a task's tables count them.

    Args:
        restored: H x W x 3 (RGB) or H x W.
        truth: the same shape.
        channel: `y` for luma, `rgb` for all channels (their SSIM is the mean of the three) or
            `gray` for H x W.
        border: pixels left out on each of the four sides.

    Raises:
        ValueError: as `psnr_y` and `ssim`, or the images lack the channels that are asked for.
    """
    if channel == "y":
        return psnr_y(restored, truth, border=border), ssim_y(restored, truth, border=border)
    if truth.ndim != {"rgb": 3, "gray": 2}[channel]:
        raise ValueError(f"the channel {channel} does not fit an image of the shape {truth.shape}")
    planes = zip(
        np.atleast_3d(restored).transpose(2, 0, 1),
        np.atleast_3d(truth).transpose(2, 0, 1),
        strict=True,
    )
    mean = np.mean([ssim(a, b, border=border) for a, b in planes])
    return psnr(restored, truth, border=border), float(mean)


def _stored_y(image: Array) -> NDArray[np.float64]:
    if image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 image, got {image.dtype}")
    return to_y(image)


def _within_border(
    a: Array, b: Array, border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both images as float64, with `border` pixels cut off each side."""
    if a.shape != b.shape:
        raise ValueError(f"cannot compare images of the shapes {a.shape} and {b.shape}")
    if a.ndim not in (2, 3):
        raise ValueError(f"expected images of H x W or H x W x C, got the shape {a.shape}")
    height, width = a.shape[:2]
    if border < 0 or min(height, width) <= 2 * border:
        raise ValueError(f"a border of {border} leaves nothing of {height} x {width} pixels")
    inner = (slice(border, height - border), slice(border, width - border))
    return a[inner].astype(np.float64, order="C"), b[inner].astype(np.float64, order="C")
