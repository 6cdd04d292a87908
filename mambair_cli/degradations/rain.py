"""Rain over a photograph: layers of streaks, and the haze of what falls far away."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.random import Generator

from ..images.samples import to_uint8
from .base import Degradation, Float, Range, draw_log, from_pixels

EDGE = 0.3
"""Over how much distance rain goes from before a thing to behind it."""


@dataclass(frozen=True)
class Rain(Degradation):
    """Streaks of falling drops before a veil that thickens with distance.

    A layer is the rain at one distance: the nearer, the longer and wider its streaks. All streaks
    are of one light, which is added where they are and hides `cover` of what lies behind. At 0 they
    are those of Rain100H, towards 1 those of photographs. The defaults reach from a few faint
    streaks to the downpours of Rain100H.

    layers: their number, whole; none leaves the photograph as it is but for the veil.
    angle: main direction, degrees from the vertical; positive falls to the left.
    crossing: how far the direction of a layer may be off the main one, degrees to either side.
    length, width: of streaks in pixels, drawn by octaves.
    density: share of the image that the streaks of a layer cover, overlaps counted twice; drawn by
        octaves.
    brightness: of the brightest streaks of a layer, 1 being white; drawn by octaves.
    soft: share of a streak's length over which it fades in and out.
    cover: share of the background that a fully bright streak hides.
    veil: share of the haze at the farthest point of the image.
    hidden: share of a layer's light that nearer things hide, so that far rain is seen before far
        things alone.
    """

    layers: tuple[int, int] = (1, 8)
    angle: Range = (-30, 30)
    crossing: Range = (1, 15)
    length: Range = (6, 120)
    width: Range = (0.6, 4)
    density: Range = (0.02, 0.5)
    brightness: Range = (0.08, 0.8)
    soft: Range = (0.1, 1)
    cover: Range = (0, 1)
    veil: Range = (0, 0.3)
    hidden: Range = (0, 0)

    LIMITS: ClassVar[Mapping[str, Range]] = {
        "layers": (0, 20),
        "angle": (-90, 90),
        "crossing": (0, 90),
        "length": (2, 1000),
        "width": (0.3, 50),
        "density": (1e-4, 2),
        "brightness": (1e-3, 1),
        "soft": (0, 1),
        "cover": (0, 1),
        "veil": (0, 1),
        "hidden": (0, 1),
    }

    def _degrade(self, image: Float, rng: Generator) -> Float:
        height, width = image.shape[:2]
        main, crossing = rng.uniform(*self.angle), rng.uniform(*self.crossing)
        layers = [
            self._layer(height, width, main + rng.uniform(-crossing, crossing), rng)
            for _ in range(rng.integers(*self.layers, endpoint=True))
        ]
        # drops are nearly gray
        light = (rng.uniform(0.7, 1) * rng.uniform(0.96, 1, 3)).astype(np.float32)
        veil, distance = rng.uniform(*self.veil), _distance(height, width, rng)
        haze = (veil * distance)[:, :, None]
        hazy = image + haze * (np.float32(rng.uniform(0.6, 1)) * light - image)
        cover = np.float32(rng.uniform(*self.cover))
        hidden = np.float32(rng.uniform(*self.hidden))
        rain = np.zeros((height, width), np.float32)
        for near, layer in layers:
            before = ((distance - (1 - near)) / EDGE + 0.5).clip(0, 1)
            rain += layer * (1 - hidden * (1 - before))
        return from_pixels(to_uint8(hazy + rain[:, :, None] * (light - cover * hazy)))

    def _layer(self, height: int, width: int, angle: float, rng: Generator) -> tuple[float, Float]:
        """Draw streaks of one direction and of similar size.

        They are drawn upright, as steps up and down that are summed along their columns, and then
        turned.

        Returns:
            How near they are, 0 being the farthest point of the image and 1 the camera, and their
            light, H x W.
        """
        near, soft = rng.uniform(), rng.uniform(*self.soft)
        length, thickness = (
            _at(r, 0.7 * near + 0.3 * rng.uniform()) for r in (self.length, self.width)
        )
        density, brightness = draw_log(rng, self.density), draw_log(rng, self.brightness)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        rows = math.ceil(height * abs(cos) + width * abs(sin)) + 2
        columns = math.ceil(width * abs(cos) + height * abs(sin)) + 2
        count = rng.poisson(density * (rows + length) * columns / (length * thickness))
        top, column = rng.uniform(-length, rows, count), rng.integers(columns, size=count)
        bottom = top + length * rng.uniform(0.6, 1.4, count)
        light = rng.uniform(rng.uniform(0.2, 1), 1, count).astype(np.float32)
        steps = np.zeros((rows + 1, columns), np.float32)
        np.add.at(steps, (top.clip(0, rows).astype(int), column), light)
        np.add.at(steps, (bottom.clip(0, rows).astype(int), column), -light)
        fade = max(1.0, soft * length)
        upright = cv2.sepFilter2D(steps.cumsum(axis=0), -1, _box(thickness), _box(fade) / fade)
        turn = np.array([[cos, sin, columns / 2], [-sin, cos, rows / 2]])
        turn[:, 2] -= turn[:, :2] @ (width / 2, height / 2)
        layer = cv2.warpAffine(
            upright, turn, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        return near, np.float32(brightness) * layer.clip(max=1)


def _at(limits: Range, share: float) -> float:
    """Return the number at a share, from 0 to 1, of the octaves between two positive ones."""
    return limits[0] * (limits[1] / limits[0]) ** share


def _box(size: float) -> Float:
    """Make the kernel of a box: how much it covers of each pixel; the sum is `size`, in pixels."""
    reach = math.ceil(size / 2)
    x = np.arange(-reach, reach + 1)
    return (size / 2 + 0.5 - np.abs(x)).clip(0, min(1, size)).astype(np.float32)


def _distance(height: int, width: int, rng: Generator) -> Float:
    """H x W in [0, 1]: smooth hills, mostly farther away towards the top."""
    hills = rng.random((3, 3), np.float32) / 2 + np.array([[0.5], [0.25], [0]], np.float32)
    return cv2.resize(hills, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
