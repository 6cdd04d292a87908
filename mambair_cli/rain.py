"""Rain over a photograph: layers of streaks, from drizzle to downpour, and the haze of what falls far away."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from .degrade import Degradation, Float, Range, draw_log, from_pixels, to_pixels

SHEETS = 2
"""Parts of a layer, which differ a little in angle and in all else, as drops that fall side by side do."""


@dataclass(frozen=True)
class Rain(Degradation):
    """Streaks as motion-blurred drops leave them, and before them a veil that thickens with distance.

    A layer is a share of the rain at one distance: the nearer, the longer and wider its streaks. All streaks
    are of one light, which is added where they are and hides `cover` of what lies behind: additive white, as
    in Rain100H, at 0; haze, as in photographs, towards 1.

    layers: their number, whole.
    angle: main direction, degrees from the vertical; positive falls to the left.
    crossing: how far a layer's direction may be off the main one, degrees to either side.
    length, width: of streaks in pixels, drawn by octaves.
    density: share of the image that the streaks of a layer cover, overlaps counted twice; drawn by octaves.
    brightness: of streaks, 1 being white; a layer's are drawn up to this.
    soft: share of a streak's length over which it fades in and out.
    cover: share of the background that a fully bright streak hides.
    veil: share of the haze at the farthest point of the image.
    """

    layers: tuple[int, int] = (1, 6)
    angle: Range = (-30, 30)
    crossing: Range = (0, 15)
    length: Range = (8, 120)
    width: Range = (0.6, 4)
    density: Range = (0.03, 0.7)
    brightness: Range = (0.08, 0.8)
    soft: Range = (0.1, 0.8)
    cover: Range = (0, 0.8)
    veil: Range = (0, 0.3)

    LIMITS = {
        "layers": (1, 20),
        "angle": (-90, 90),
        "crossing": (0, 90),
        "length": (1, 1000),
        "width": (0.1, 50),
        "density": (1e-4, 5),
        "brightness": (1e-3, 1),
        "soft": (0, 1),
        "cover": (0, 1),
        "veil": (0, 1),
    }

    def degrade(self, image: Float, rng: Generator) -> Float:
        height, width = image.shape[:2]
        main, crossing = rng.uniform(*self.angle), rng.uniform(*self.crossing)
        cover, veil = rng.uniform(*self.cover), rng.uniform(*self.veil)
        rain = np.zeros((height, width), np.float32)
        for _ in range(rng.integers(*self.layers, endpoint=True)):
            rain += self._layer(height, width, main + rng.uniform(-crossing, crossing), rng)
        light = np.float32(rng.uniform(0.7, 1) * (1 + rng.uniform(-0.04, 0.04, 3)))  # nearly gray
        haze = veil * _depth(height, width, rng)[:, :, None]
        hazy = image + haze * (light * np.float32(rng.uniform(0.6, 1)) - image)
        return from_pixels(to_pixels(hazy + rain[:, :, None] * (light - cover * hazy)))

    def _layer(self, height: int, width: int, angle: float, rng: Generator) -> Float:
        """height x width, how bright the streaks of one distance are."""
        near = rng.uniform()
        density, brightness = draw_log(rng, self.density), draw_log(rng, self.brightness)
        layer = np.zeros((height, width), np.float32)
        for _ in range(SHEETS):
            size = [_at(limits, 0.7 * near + 0.3 * rng.uniform()) for limits in (self.length, self.width)]
            layer += _sheet(
                height, width, angle + rng.normal(0, 1.5), *size, density / SHEETS, rng.uniform(*self.soft), rng
            )
        return brightness * layer.clip(max=1)


def _at(limits: Range, share: float) -> float:
    """The number that lies at a share, from 0 to 1, of the octaves between two positive ones."""
    return limits[0] * (limits[1] / limits[0]) ** share


def _sheet(
    height: int, width: int, angle: float, length: float, thickness: float, density: float, soft: float, rng: Generator
) -> Float:
    """height x width, streaks of one direction and of about one size, each of a brightness of up to 1.

    They are drawn upright, as steps up and down that are summed along their columns, and then turned.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    rows = math.ceil(height * abs(cos) + width * abs(sin)) + 2
    columns = math.ceil(width * abs(cos) + height * abs(sin)) + 2
    count = rng.poisson(density * (rows + length) * columns / (length * thickness))
    top = rng.uniform(-length, rows, count)
    bottom = top + length * rng.uniform(0.6, 1.4, count)
    column, bright = rng.integers(columns, size=count), rng.uniform(rng.uniform(0.2, 1), 1, count).astype(np.float32)
    steps = np.zeros((rows + 1, columns), np.float32)
    np.add.at(steps, (top.clip(0, rows).astype(int), column), bright)
    np.add.at(steps, (bottom.clip(0, rows).astype(int), column), -bright)
    fade = max(1.0, soft * length)
    upright = cv2.sepFilter2D(steps.cumsum(axis=0), -1, _box(thickness), _box(fade) / fade)
    turn = np.array([[cos, sin, columns / 2], [-sin, cos, rows / 2]])
    turn[:, 2] -= turn[:, :2] @ (width / 2, height / 2)
    return cv2.warpAffine(upright, turn, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def _box(size: float) -> Float:
    """How much of each pixel around a middle one a box of `size` pixels covers, as a kernel; their sum is `size`."""
    reach = math.ceil(size / 2)
    x = np.arange(-reach, reach + 1)
    return np.float32((size / 2 + 0.5 - np.abs(x)).clip(0, min(1, size)))


def _depth(height: int, width: int, rng: Generator) -> Float:
    """height x width in [0, 1]: smooth hills, and mostly farther away towards the top."""
    rise = np.linspace(1, 0, 3, dtype=np.float32)[:, None]
    hills = cv2.resize(0.5 * rng.random((3, 3), np.float32) + 0.5 * rise, (width, height), interpolation=cv2.INTER_CUBIC)
    return hills.clip(0, 1)
