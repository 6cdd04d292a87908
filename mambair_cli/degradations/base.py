"""What spoils photographs, as seeded functions of an image: noise, JPEG, a camera's sensor, a careless web.

Each is a frozen dataclass whose fields are ranges, two numbers from which every call draws anew, uniformly
unless the field's text says otherwise; two equal numbers fix a value. Rain and what happens on the web have modules of
their own.
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
import PIL.Image
from numpy.random import Generator
from numpy.typing import NDArray

from ..errors import CallError

Float = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Range = tuple[float, float]

FULL_CHROMA, HALF_CHROMA = 0, 2
"""Pillow's numbers for JPEG's chroma subsampling, 4:4:4 and 4:2:0."""

BILINEAR = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4
BILINEAR_GREEN = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
"""Demosaicing of a Bayer pattern: they interpolate a plane that is zero where the sensor has other colours."""

CODES = 16 * 255
"""Steps in which the tones of images are turned into light: those of 8 bits, and 15 between them."""

COLOUR = 1.35
"""How much a camera's colour matrix, from its sensor's colours to sRGB, enlarges differences between channels."""


class Degradation(ABC):
    """Spoils an image; all that is random comes from the generator of the call.

    Subclasses are frozen dataclasses. LIMITS holds what each range among their fields must stay within.
    """

    LIMITS: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        check_ranges(self, self.LIMITS)

    def __call__(self, image: Float, rng: Generator) -> Float:
        """A degraded copy.

        Args:
            image: H x W x 3 float32 in [0, 1], RGB.
            rng: what all random numbers are drawn from.

        Returns:
            float32, in [0, 1] in steps of 1/255 as a file would hold it, and of the size of the image, unless
            the class says otherwise.

        Raises:
            ValueError: the image has another shape, type or range, is empty or holds NaN.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.float32:
            raise ValueError(
                f"expected float32, got {getattr(image, 'dtype', type(image).__name__)}"
            )
        if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"expected an image of H x W x 3, got the shape {image.shape}")
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("expected values in [0, 1], got others or NaN")
        return self._degrade(image, rng)

    @abstractmethod
    def _degrade(self, image: Float, rng: Generator) -> Float:
        """What `__call__` does with an image that it has checked."""


def check_ranges(owner: object, limits: Mapping[str, Range]) -> None:
    """Raises CallError where a field of these names is no range or leaves its limits."""
    for name, (low, high) in limits.items():
        value = getattr(owner, name)
        numbers = isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value)
        if not (numbers and len(value) == 2 and low <= value[0] <= value[1] <= high):
            kind = type(owner).__name__.lower()
            raise CallError(
                f"{kind}: {name} must be two numbers from {low:g} to {high:g} in order, not {value!r}"
            )


def draw_log(rng: Generator, limits: Range) -> float:
    """A number between two positive ones, of which each octave is as likely as any other."""
    return math.exp(rng.uniform(math.log(limits[0]), math.log(limits[1])))


def to_pixels(image: Float) -> Pixels:
    """Clipped to [0, 1] and rounded to 0..255."""
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def from_pixels(pixels: Pixels) -> Float:
    """0..255 as float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def published_noise(height: int, width: int, sigma: float, seed: int = 0) -> NDArray[np.float64]:
    """The noise of published colour denoising benchmarks, to be added to an image in [0, 1], unclipped.

    It is the same for all images of a size: NumPy's legacy generator, drawn in B, G, R order.

    Args:
        height: rows.
        width: columns.
        sigma: standard deviation, of 255.
        seed: 0 in what is published.

    Returns:
        height x width x 3 in R, G, B order.
    """
    return np.random.RandomState(seed).normal(0, sigma / 255, (height, width, 3))[:, :, ::-1]


def compress(pixels: Pixels, quality: int, subsampling: int = HALF_CHROMA) -> Pixels:
    """What a JPEG file of Pillow's encoder holds of an image. Published JPEG benchmarks use gray images.

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
    """`compress` of a float image, whose blocks of 8 x 8 begin anywhere, as those of a cropped file do."""
    up, left = (int(n) for n in rng.integers(8, size=2))
    padded = np.pad(to_pixels(image), ((up, 0), (left, 0), (0, 0)), "symmetric")
    return from_pixels(compress(padded, quality, subsampling)[up:, left:])


@dataclass(frozen=True)
class Noise(Degradation):
    """White Gaussian noise. As in the published trainings the result is neither clipped nor rounded.

    sigma: standard deviation, of 255.
    """

    sigma: Range = (0, 55)

    LIMITS: ClassVar[Mapping[str, Range]] = {"sigma": (0, 255)}

    def _degrade(self, image: Float, rng: Generator) -> Float:
        sigma = np.float32(rng.uniform(*self.sigma) / 255)
        return image + sigma * rng.standard_normal(image.shape, np.float32)


@dataclass(frozen=True)
class Jpeg(Degradation):
    """Pillow's JPEG in colour, 4:4:4 or 4:2:0, its blocks beginning anywhere.

    quality: whole numbers of the Independent JPEG Group's scale, drawn by octaves, so that the strong ones count.
    """

    quality: tuple[int, int] = (10, 60)

    LIMITS: ClassVar[Mapping[str, Range]] = {"quality": (1, 100)}

    def _degrade(self, image: Float, rng: Generator) -> Float:
        quality = round(draw_log(rng, self.quality))
        return recompress(image, quality, (FULL_CHROMA, HALF_CHROMA)[rng.integers(2)], rng)


@dataclass(frozen=True)
class Sensor(Degradation):
    """Noise of a camera: photons and electronics under a Bayer filter, demosaiced, smoothed, toned, as JPEG.

    Only the noise passes the demosaicing and smoothing, so that the image itself stays as sharp as its truth.
    The defaults are matched to the flat parts of PolyU's Canon pairs (strength, and correlation of luma and
    chroma between neighbours), and reach beyond these in strength.

    shot: variance of the photon noise in linear light at white, drawn by octaves.
    read: standard deviation of the electronics' noise in linear light, drawn by octaves.
    gain: amplification of red and blue against green.
    luma, chroma: standard deviations in pixels of the Gaussians that smooth the noise.
    contrast: share of an S-curve in the tones; 0 leaves plain gamma 2.2.
    quality: of the JPEG, 4:2:0.
    """

    shot: Range = (2e-4, 5e-3)
    read: Range = (5e-4, 5e-3)
    gain: Range = (1.4, 2.4)
    luma: Range = (0.2, 0.65)
    chroma: Range = (1.5, 5.0)
    contrast: Range = (0.35, 0.85)
    quality: tuple[int, int] = (70, 95)

    LIMITS: ClassVar[Mapping[str, Range]] = {
        "shot": (1e-9, 1),
        "read": (1e-9, 1),
        "gain": (0.1, 10),
        "luma": (0.01, 20),
        "chroma": (0.01, 20),
        "contrast": (0, 0.9),
        "quality": (1, 100),
    }

    def _degrade(self, image: Float, rng: Generator) -> Float:
        shot, read = draw_log(rng, self.shot), draw_log(rng, self.read)
        red, blue = rng.uniform(*self.gain, size=2)
        gains = np.array([red, 1, blue], np.float32)
        contrast = rng.uniform(*self.contrast)
        codes = np.linspace(0, 1, CODES + 1)
        light_of_code = np.float32(np.interp(codes, _tone(codes, contrast), codes) ** 2.2)
        light = light_of_code[(image * CODES + 0.5).astype(np.int32)]
        noise = self._noise(np.sqrt(gains * shot * light + (gains * read) ** 2), rng)
        toned = _tone(cv2.pow((light + noise).clip(0, 1), 1 / 2.2), contrast)
        quality = int(rng.integers(*self.quality, endpoint=True))
        return recompress(toned, quality, HALF_CHROMA, rng)

    def _noise(self, deviation: Float, rng: Generator) -> Float:
        """Noise of H x W x 3, given its standard deviation at the sensor."""
        raw = deviation * rng.standard_normal((*deviation.shape[:2], 1), np.float32)
        row, column = np.ogrid[: raw.shape[0], : raw.shape[1]]
        odd_row, odd_column = (row + rng.integers(2)) % 2 == 1, (column + rng.integers(2)) % 2 == 1
        sites = (
            ~odd_row & ~odd_column,
            odd_row ^ odd_column,
            odd_row & odd_column,
        )  # of red, green, blue
        kernels = (BILINEAR, BILINEAR_GREEN, BILINEAR)
        planes = [cv2.filter2D(raw[..., c] * sites[c], -1, kernels[c]) for c in range(3)]
        luma = 0.25 * planes[0] + 0.5 * planes[1] + 0.25 * planes[2]
        colour = cv2.GaussianBlur(
            np.dstack([COLOUR * (p - luma) for p in planes]), (0, 0), rng.uniform(*self.chroma)
        )
        return colour + cv2.GaussianBlur(luma, (0, 0), rng.uniform(*self.luma))[:, :, None]


def _tone(values: NDArray[np.floating], contrast: float) -> NDArray[np.floating]:
    """[0, 1] to [0, 1], steeper in the middle than at its ends; contrast 0 leaves it as it is."""
    return values * (1 - contrast + contrast * values * (3 - 2 * values))
