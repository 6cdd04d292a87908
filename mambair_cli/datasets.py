"""Photographs as training pairs and benchmark sets: high-resolution images, and what they shrink to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import CallError, ImageError
from .image_io import OUTPUT_SUFFIXES, read_image
from .resize import downscale, modcrop

Pixels = NDArray[np.uint8]


def list_images(folder: Path) -> list[Path]:
    """The image files under `folder` (recursively), sorted. Raises CallError where there is none."""
    if not folder.is_dir():
        raise CallError(f"{folder} is not a folder; give a folder of images")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in OUTPUT_SUFFIXES and p.is_file())
    if not files:
        raise CallError(f"{folder} holds no image")
    return files


def read_rgb(path: Path) -> Pixels:
    """H x W x 3 uint8, gray as three equal channels, 16 bits rounded to 8. Raises ImageError."""
    pixels = read_image(path).pixels
    if pixels.dtype == np.uint16:
        pixels = (pixels / 257 + 0.5).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(pixels[:, :, None], 3, 2) if pixels.ndim == 2 else pixels


@dataclass(frozen=True)
class Pair:
    """A low-resolution image (h x w x 3) and its truth (s*h x s*w x 3), uint8."""

    name: str
    low: Pixels
    high: Pixels


def make_pair(name: str, image: Pixels, scale: int) -> Pair:
    """Crop to a multiple of the scale and shrink as the benchmarks do (MATLAB's bicubic, uint8)."""
    return Pair(name, downscale(image, scale), modcrop(image, scale))


def read_pairs(
    files: Sequence[Path], scale: int, smallest: int, crop: int | None = None
) -> tuple[list[Pair], list[str]]:
    """Pairs of all images that can be used, and for each of the others the reason why not.

    Args:
        files: high-resolution images.
        scale: how many times smaller the low-resolution ones are.
        smallest: pixels that the shorter side of a low-resolution image needs.
        crop: pixels a side of the high-resolution image that are kept, from its centre; None keeps all.

    Raises:
        CallError: no image can be used.
    """
    pairs, skipped = [], []
    for path in files:
        try:
            image = read_rgb(path)
        except ImageError as error:
            skipped.append(str(error))
            continue
        if min(image.shape[:2]) < smallest * scale:
            skipped.append(f"{path}: smaller than {smallest * scale} pixels a side")
            continue
        if crop:
            top, left = (max(0, side - crop) // 2 for side in image.shape[:2])
            image = image[top : top + crop, left : left + crop]
        pairs.append(make_pair(path.name, image, scale))
    if not pairs:
        raise CallError(f"none of {len(files)} images can be used; the first: {''.join(skipped[:1])}")
    return pairs, skipped


class TrainingPairs:
    """Random crops of the images of a folder, held decoded in memory, with flips and transposition.

    A batch depends on (seed, iteration) alone. Images are drawn in proportion to their area; those that
    cannot be read or are smaller than a patch are left out; `skipped` holds the reasons.
    """

    def __init__(self, files: Sequence[Path], scale: int, patch: int, seed: int):
        self.scale, self.patch, self.seed = scale, patch, seed
        self.pairs, self.skipped = read_pairs(files, scale, patch)
        areas = np.array([pair.low.size for pair in self.pairs], float)
        self._share = areas / areas.sum()

    def batch(self, iteration: int, size: int) -> tuple[Tensor, Tensor]:
        """(size,3,p,p) and (size,3,s*p,s*p) float32 in [0,1], the batch of this iteration."""
        rng = np.random.default_rng((self.seed, iteration))
        lows: list[Pixels] = []
        highs: list[Pixels] = []
        for index in rng.choice(len(self.pairs), size, p=self._share):
            pair = self.pairs[index]
            top, left = (int(rng.integers(side - self.patch + 1)) for side in pair.low.shape[:2])
            flips = rng.integers(2, size=3)
            for crops, image, s in ((lows, pair.low, 1), (highs, pair.high, self.scale)):
                crop = image[top * s : (top + self.patch) * s, left * s : (left + self.patch) * s]
                crop = crop[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]
                crops.append(crop.swapaxes(0, 1) if flips[2] else crop)
        return _to_tensor(np.stack(lows)), _to_tensor(np.stack(highs))


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
