"""Noise of a camera's sensor, as it is left in a developed photograph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .base import Degradation, Float, Range, draw_log
from .jpeg import HALF_CHROMA, recompress

BILINEAR = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4
BILINEAR_GREEN = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
"""Demosaicing of a Bayer pattern: interpolates a plane that is zero at the other colours' sites."""

CODES = 16 * 255
"""Steps in which tones are turned into light: those of 8 bits, and 15 between each two."""

COLOUR = 1.35
"""How much a camera's colour matrix, from sensor to sRGB, enlarges differences of channels."""


@dataclass(frozen=True)
class Sensor(Degradation):
    """Noise of photons and electronics under a Bayer filter, demosaiced, smoothed, toned, as JPEG.

    Only the noise passes the demosaicing and smoothing, so that the image itself stays as sharp as
    its truth. The defaults are matched to the flat parts of PolyU's Canon pairs (strength, and
    correlation of luma and chroma between neighbours), and reach beyond these in strength.

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
        """Draw noise of H x W x 3, given its standard deviation at the sensor."""
        raw = deviation * rng.standard_normal((*deviation.shape[:2], 1), np.float32)
        row, column = np.ogrid[: raw.shape[0], : raw.shape[1]]
        odd_row, odd_column = (row + rng.integers(2)) % 2 == 1, (column + rng.integers(2)) % 2 == 1
        # of red, green, blue
        sites = (~odd_row & ~odd_column, odd_row ^ odd_column, odd_row & odd_column)
        kernels = (BILINEAR, BILINEAR_GREEN, BILINEAR)
        planes = [cv2.filter2D(raw[..., c] * sites[c], -1, kernels[c]) for c in range(3)]
        luma = 0.25 * planes[0] + 0.5 * planes[1] + 0.25 * planes[2]
        chroma = np.dstack([COLOUR * (plane - luma) for plane in planes])
        colour = cv2.GaussianBlur(chroma, (0, 0), rng.uniform(*self.chroma))
        return colour + cv2.GaussianBlur(luma, (0, 0), rng.uniform(*self.luma))[:, :, None]


def _tone(values: NDArray[np.floating], contrast: float) -> NDArray[np.floating]:
    """Map [0, 1] to [0, 1], steeper in the middle than at the ends; contrast 0 changes nothing."""
    return values * (1 - contrast + contrast * values * (3 - 2 * values))
