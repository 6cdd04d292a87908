"""Tells from its pixels what an image has suffered: noise, JPEG, enlargement.

Each estimate takes a few hundredths of a second.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float32]

SMALLEST = 32
"""Pixels that the shorter side needs for an estimate."""

WINDOW = 768
"""Pixels a side of the middle of an image, searched for traces of JPEG and of enlargement."""

# pixels a side, even
PATCH = 6
# positions that are looked at, up to four times as many in small images
PATCHES = 10000
# patches whose values are compared
FLATTEST = 2500
HALVING = np.kron(*2 * [np.kron(np.eye(PATCH // 2), [[0.5], [0.5]])]).astype(np.float32)
"""Turns the values of a patch into the means of its squares of 2 x 2."""

TEXTURE = 11.0
"""Strength, of 255, that the finest texture of clean photographs can have in a single channel."""

LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
"""The table of steps for luma in annex K of the JPEG standard; encoders scale it by quality."""

QUALITIES = np.arange(5, 96)
# of 8 x 8 pixels that are looked at
BLOCKS = 192
FREQUENCIES = tuple(sorted(((i, n - i) for n in range(1, 5) for i in range(n + 1)), key=sum)[:12])
COSINES = np.sqrt([[0.125]] + 7 * [[0.25]]) * np.cos(
    np.outer(np.arange(8), 2 * np.arange(8) + 1) * math.pi / 16
)
"""The orthonormal cosine transform of 8 values."""

ROUNDING = 0.45
"""Standard deviation of what rounding to 8-bit RGB adds to a coefficient."""

# share of coefficients that may be anything
STRAY = 1e-3
# mean logarithm of the likelihood ratio from which on an image counts as JPEG
EVIDENCE = 0.15

# pixels in a row whose spectrum is taken
SEGMENT = 64
SEGMENTS = 4000
# the lowest frequencies of a segment, which soft light and gradients hold as well
SHADING = 4
# of noise in a luma of 0..255; rounding is 0.04, and the finest detail of photographs 1 to 100
POWER = 0.6


def noise_sigma(pixels: NDArray[np.generic]) -> float | None:
    """Estimate the standard deviation, of 255, of the white Gaussian noise in an image.

    The smallest eigenvalues of the covariance of patches are those of noise alone (Chen, Zhu and
    Heng 2015, algorithm 1), here of the flattest patches that noise does not drive out of the
    range. Over the three channels of a colour image texture is told from noise best; but where
    chroma was subsampled, as in most JPEG files, noise shows in single channels only, and there
    just what exceeds any texture counts. In gray images the finest texture passes for noise of up
    to about 5. Correlated noise, as cameras leave it in their JPEG files, is hardly seen.

    Args:
        pixels: H x W or H x W x 3 as `Image` holds them: uint8, uint16, or float32 in [0, 1].

    Returns:
        0 and more; None where the image has less than 32 pixels a side, too few to tell.

    Raises:
        ValueError: the pixels are none of these or hold NaN.
    """
    if not _large_enough(pixels):
        return None
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // PATCHES))
    positions = sliding_window_view(pixels, (PATCH, PATCH), axis=(0, 1))[::step, ::step]
    patches = as_255(positions.reshape(-1, 1 if pixels.ndim == 2 else 3, PATCH * PATCH))
    # three equal channels are gray
    if (patches == patches[:, :1]).all():
        patches = patches[:, :1]
    channels = patches.reshape(-1, 1, PATCH * PATCH)
    coarse = (channels[:, 0] @ HALVING)[:, None]
    single = _sigma(channels, coarse)
    if len(channels) == len(patches):
        return single
    return max(
        _sigma(patches, coarse.reshape(len(patches), 3, -1)),
        math.sqrt(max(0.0, single**2 - TEXTURE**2)),
    )


def jpeg_quality(pixels: NDArray[np.generic]) -> int | None:
    """Estimate at which quality, of the Independent JPEG Group's scale, an image was compressed.

    The coefficients of its blocks lie close to multiples of the steps of some quantisation table
    (Fan and de Queiroz 2003). The blocks may begin anywhere; noise or resizing after the
    compression hides them.

    Args:
        pixels: as for `noise_sigma`.

    Returns:
        5..95; None where no compression shows, be it for the lack of it, or of size or detail.

    Raises:
        ValueError: as for `noise_sigma`.
    """
    if not _large_enough(pixels):
        return None
    values = as_255(middle(pixels))
    luma = _luma(values)
    top, left = _first_block(luma.T), _first_block(luma)
    blocks = _detailed_blocks(luma[top:, left:], values[top:, left:])
    if len(blocks) < 8:
        return None
    coefficients = np.abs(COSINES @ blocks @ COSINES.T)
    tables = _tables(QUALITIES)
    evidence, distance, best = np.zeros(len(QUALITIES)), np.zeros(len(QUALITIES)), 0.0
    for i, j in FREQUENCIES:
        steps, of_quality = np.unique(tables[:, i, j], return_inverse=True)
        ratios = _log_likelihood_ratios(coefficients[:, i, j], steps)
        evidence += ratios[of_quality]
        best += ratios.max()
        distance += np.abs(np.log(tables[:, i, j] / steps[ratios.argmax()]))
    if best < EVIDENCE * len(blocks) * len(FREQUENCIES):
        return None
    # the other tables are foreign
    return _best(QUALITIES, evidence if evidence.max() > 0.8 * best else -distance)


def stored_quality(quantization: Sequence[int]) -> int:
    """Tell the quality, of the Independent JPEG Group's scale, from a table of a JPEG file.

    Args:
        quantization: the 64 steps for luma, row by row.

    Returns:
        1..100, of foreign tables the nearest one.

    Raises:
        ValueError: they are not 64.
    """
    stored = np.array(quantization, float).reshape(8, 8)
    qualities, (i, j) = np.arange(1, 101), np.transpose(FREQUENCIES)
    distances = np.abs(np.log(stored / _tables(qualities)))
    # what is seen most, first
    return _best(qualities, -distances[:, i, j].sum(1) - 1e-3 * distances.sum((1, 2)))


def bandwidth(pixels: NDArray[np.generic]) -> float | None:
    """Estimate which share of the frequencies that fit into an image, from the lowest up, it holds.

    Sharp photographs hold all of them; those enlarged two or three times by a smooth filter at most
    0.95 or 0.7, as do blurred ones. Compression as JPEG, noise, and repeated pixels fill the
    spectrum and hide enlargement.

    Args:
        pixels: as for `noise_sigma`.

    Returns:
        0..1; None where the image has less than 64 pixels a side, or holds no more than tones that
        change slowly, such as a plain colour or a gradient: too little to tell.

    Raises:
        ValueError: as for `noise_sigma`.
    """
    if not _large_enough(pixels, SEGMENT):
        return None
    luma = _luma(as_255(middle(pixels)))
    window = np.hanning(SEGMENT).astype(np.float32)
    slope = np.linspace(-1, 1, SEGMENT, dtype=np.float32)
    slope /= np.linalg.norm(slope)
    power = np.zeros(SEGMENT // 2 + 1)
    for image in (luma, luma.T):
        columns = image.shape[1] // SEGMENT * SEGMENT
        segments = image[:, :columns].reshape(-1, SEGMENT)
        segments = segments[:: max(1, len(segments) // SEGMENTS)]
        segments = segments - segments.mean(1, keepdims=True)
        # which would leak from it
        segments = (segments - np.outer(segments @ slope, slope)) * window
        power += (np.abs(np.fft.rfft(segments)) ** 2).mean(0) / (2 * (window**2).sum())
    gaps = np.flatnonzero(power[1:] < POWER)
    held = int(gaps[0]) if len(gaps) else len(power) - 1
    return held / (len(power) - 1) if held >= SHADING else None


def _large_enough(pixels: NDArray[np.generic], side: int = SMALLEST) -> bool:
    """Check that an image has enough pixels a side. Raises ValueError where it is no image."""
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"expected uint8, uint16 or float32, got {pixels.dtype}")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"expected H x W or H x W x 3, got the shape {pixels.shape}")
    return min(pixels.shape[:2]) >= side


def as_255(pixels: NDArray[np.generic]) -> Array:
    """Scale pixels to [0, 255]. Raises ValueError where some are NaN."""
    scaled = pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        scaled /= 257
    elif pixels.dtype == np.float32:
        scaled *= 255
        if np.isnan(scaled).any():
            raise ValueError("some pixels are NaN")
    return scaled


def middle(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    """At most WINDOW x WINDOW pixels of the middle of an image, a view."""
    top, left = (max(0, side - WINDOW) // 2 for side in pixels.shape[:2])
    return pixels[top : top + WINDOW, left : left + WINDOW]


def _luma(pixels: Array) -> Array:
    return (
        pixels
        if pixels.ndim == 2
        else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.float32)
    )


def _sigma(patches: Array, coarse: Array) -> float:
    """Estimate the standard deviation of noise.

    Args:
        patches: N x channels x (PATCH * PATCH) in [0, 255].
        coarse: N x channels x (PATCH * PATCH / 4), means of their squares of 2 x 2.
    """
    flatness, mean = coarse.var(2).sum(1), coarse.mean(2)
    room = np.minimum(mean, 255 - mean).min(1)
    sigma = 0.0
    # once it is known how far noise reaches, patches that it clips are avoided
    for _ in range(2):
        cost = flatness + 1e6 * np.maximum(0, 1.5 + 2.5 * sigma - room)
        chosen = np.argpartition(cost, min(FLATTEST, len(cost)) - 1)[:FLATTEST]
        values = patches[chosen].reshape(len(chosen), -1)
        values -= values.mean(0)
        eigenvalues = np.linalg.eigvalsh(values.T @ values / len(values)).clip(0)
        counts = np.arange(1, len(eigenvalues) + 1)
        # of the smallest, as they ascend
        means = eigenvalues.cumsum() / counts
        medians = np.searchsorted(eigenvalues, means) <= counts / 2
        sigma = math.sqrt(means[medians][-1])
    return sigma


def _first_block(luma: Array) -> int:
    """Find the column, 0..7, in which blocks begin: where third differences are largest."""
    some = np.ascontiguousarray(luma[::2])
    jumps = (
        np.abs(some[:, 3:] - some[:, :-3] - 3 * (some[:, 2:-1] - some[:, 1:-2]))
        .clip(max=20)
        .mean(0)
    )
    # between columns 1 and 2
    return (int(np.argmax([jumps[start::8].mean() for start in range(8)])) + 2) % 8


def _detailed_blocks(luma: Array, values: Array) -> Array:
    """Choose the blocks of luma, N x 8 x 8, that vary most, none with black or white values."""
    height, width = (side // 8 for side in luma.shape)
    luma, size = luma[: 8 * height, : 8 * width], (width, height)
    mean = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA))
    variance = np.asarray(cv2.resize(luma**2, size, interpolation=cv2.INTER_AREA)) - mean**2
    inside = ((values > 0) & (values < 255))[: 8 * height, : 8 * width].astype(np.float32)
    share = np.asarray(cv2.resize(inside, size, interpolation=cv2.INTER_AREA))
    variance[share.reshape(height, width, -1).min(2) < 1] = -1
    most = np.argsort(-variance, axis=None)[: min(BLOCKS, (variance >= 0).sum())]
    rows, columns = np.unravel_index(most, variance.shape)
    return luma.reshape(height, 8, width, 8)[rows, :, columns]


def _best(qualities: NDArray[np.int64], scores: NDArray[np.float64]) -> int:
    """Choose the quality of the highest score, of equals the best quality; qualities ascend."""
    return int(qualities[::-1][scores[::-1].argmax()])


def _tables(qualities: NDArray[np.int64]) -> NDArray[np.int64]:
    """Build the luma tables of the Independent JPEG Group's encoder, one for each quality."""
    percent = np.where(qualities < 50, 5000 // qualities, 200 - 2 * qualities)[:, None, None]
    return ((LUMINANCE * percent + 50) // 100).clip(1, 255)


def _log_likelihood_ratios(coefficients: Array, steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum log p(quantised) - log p(not quantised) over absolute coefficients, for each step.

    Both follow a Laplace distribution before the quantisation; after it, Gaussians around multiples
    of the step.
    """
    step = steps[:, None].astype(np.float32)
    scale = max(float(coefficients.mean()), 0.1)
    multiple = np.rint(coefficients / step)
    error = coefficients - multiple * step
    gaussian = np.exp(-((error / ROUNDING) ** 2) / 2) / (ROUNDING * math.sqrt(2 * math.pi))
    zero = (1 - np.exp(-step / (2 * scale))) * 2 * scale * np.exp(coefficients / scale)
    others = step * np.exp(error / scale)
    ratio = np.where(multiple == 0, zero, others) * gaussian
    return np.log((1 - STRAY) * ratio + STRAY).sum(1)
