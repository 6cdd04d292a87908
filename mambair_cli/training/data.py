"""Photographs as training and validation pairs: patches are cropped first, then spoilt on the fly."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets import Pixels, list_images, read_rgb
from ..degrade import Degradation, from_pixels
from ..errors import CallError, ImageError
from ..metrics import to_y
from ..resize import downscale, modcrop

VALIDATION_SEED = 0
VALIDATION_CROP = 192  # low-resolution pixels a side at most, so that a validation takes seconds
VALIDATION_SMALLEST = 8  # low-resolution pixels a side, so that something is left within the border


def split(data: Path, val: Path | None, held_out: int) -> tuple[list[Path], list[Path]]:
    """Training and validation files: those of `data` and `val`, or some held out of `data`; none is both.

    Raises CallError where no file is left for one of the two.
    """
    files = list_images(data)
    if val:
        chosen = list_images(val)
    elif len(files) > held_out:
        chosen = [files[i] for i in np.random.default_rng(0).choice(len(files), held_out, replace=False)]
    else:
        raise CallError(f"{data} holds too few images to put {held_out} aside for validation; give --val")
    held = {path.resolve() for path in chosen}
    files = [path for path in files if path.resolve() not in held]
    if not files:
        raise CallError(f"all images of {data} are in {val} too; none is left to train on")
    return files, chosen


def read_images(files: Sequence[Path], smallest: int, channels: int) -> tuple[list[Pixels], list[str]]:
    """All images that can be used, H x W x `channels` uint8, and for each of the others the reason why not.

    Args:
        files: high-resolution images.
        smallest: pixels that the shorter side needs.
        channels: 3, or 1 for luma (BT.601, as the metrics take it).

    Raises:
        CallError: no image can be used.
    """
    images, skipped = [], []
    for path in files:
        try:
            image = read_rgb(path)
        except ImageError as error:
            skipped.append(str(error))
            continue
        if min(image.shape[:2]) < smallest:
            skipped.append(f"{path}: smaller than {smallest} pixels a side")
            continue
        images.append(image if channels == 3 else (to_y(image) + 0.5).astype(np.uint8)[:, :, None])
    if not images:
        raise CallError(f"none of {len(files)} images can be used; the first: {''.join(skipped[:1])}")
    return images, skipped


def _degraded(image: Pixels, degradation: Degradation, rng: np.random.Generator) -> NDArray[np.float32]:
    """H x W x C uint8 -> h x w x C float32; gray goes through as three equal channels."""
    channels = image.shape[2]
    return degradation(from_pixels(np.repeat(image, 3 // channels, 2)), rng)[:, :, :channels]


@dataclass(frozen=True)
class Pair:
    """A degraded image (h x w x C float32, 1 is white) and its truth (s*h x s*w x C uint8)."""

    low: NDArray[np.float32]
    high: Pixels


def validation_pairs(
    files: Sequence[Path], scale: int, degradation: Degradation | None, channels: int
) -> tuple[list[Pair], list[str]]:
    """The centres of images as pairs that are the same in every run, and why others are left out.

    A degradation of one strength that varies (noise, JPEG) takes values spread evenly over its range.
    Raises CallError: no image can be used.
    """
    images, skipped = read_images(files, VALIDATION_SMALLEST * scale, channels)
    crop, pairs = VALIDATION_CROP * scale, []
    for i, image in enumerate(images):
        top, left = (max(0, side - crop) // 2 for side in image.shape[:2])
        high = modcrop(image[top : top + crop, left : left + crop], scale)
        if degradation is None:
            pairs.append(Pair(from_pixels(downscale(high, scale)), high))
        else:
            level = _at(degradation, (i + 0.5) / len(images))
            pairs.append(Pair(_degraded(high, level, np.random.default_rng((VALIDATION_SEED, i))), high))
    return pairs, skipped


def _at(degradation: Any, position: float) -> Any:
    """The degradation at a position from 0 to 1 in its range, where it has just one; else as it is."""
    ranges = [f.name for f in fields(degradation) if isinstance(getattr(degradation, f.name), tuple)]
    if len(ranges) != 1:
        return degradation
    low, high = getattr(degradation, ranges[0])
    level = type(low)(low + position * (high - low))
    return replace(degradation, **{ranges[0]: (level, level)})


class TrainingPairs:
    """Random patches of photographs that are held decoded in memory, with flips and transposition.

    A sample depends on (seed, iteration, index) alone. Images are drawn in proportion to their area; those
    that cannot be read or are smaller than a patch are left out; `skipped` holds the reasons.

    Args:
        files: high-resolution images.
        scale: how many times smaller the low-resolution ones are.
        degradation: what makes a low-resolution patch of a high-resolution one; None: each whole image is
            shrunk once, as the benchmarks do.
        patch: low-resolution pixels a side that an image needs.
        channels: 3, or 1 for luma.
        seed: of all that is random.
    """

    def __init__(
        self,
        files: Sequence[Path],
        scale: int,
        degradation: Degradation | None,
        patch: int,
        channels: int,
        seed: int,
    ):
        self.scale, self.degradation, self.patch, self.seed = scale, degradation, patch, seed
        images, self.skipped = read_images(files, scale * patch, channels)
        self._highs = [modcrop(image, scale) for image in images]
        self._lows = [] if degradation else [downscale(image, scale) for image in self._highs]
        self._up_to = np.cumsum([high.size for high in self._highs])

    def sample(self, iteration: int, index: int) -> tuple[NDArray[Any], Pixels]:
        """(p,p,C) and (s*p,s*p,C); the first is uint8 where it was only shrunk, else float32."""
        rng, s, p = np.random.default_rng((self.seed, iteration, index)), self.scale, self.patch
        image = int(np.searchsorted(self._up_to, rng.integers(self._up_to[-1]), side="right"))
        high = self._highs[image]
        top, left = (int(rng.integers(side // s - p + 1)) for side in high.shape[:2])
        flips = rng.integers(2, size=3)
        high = _flipped(high[top * s : (top + p) * s, left * s : (left + p) * s], flips)
        if self.degradation:
            return _degraded(high, self.degradation, rng), high
        return _flipped(self._lows[image][top : top + p, left : left + p], flips), high

    def batch(self, iteration: int, size: int) -> tuple[Tensor, Tensor]:
        """(size,C,p,p) and (size,C,s*p,s*p) float32, 1 is white, the batch of this iteration."""
        lows, highs = zip(*(self.sample(iteration, index) for index in range(size)), strict=True)
        return to_tensor(np.stack(lows)), to_tensor(np.stack(highs))


def _flipped(image: Pixels, flips: NDArray[Any]) -> Pixels:
    image = image[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]
    return image.swapaxes(0, 1) if flips[2] else image


def to_tensor(images: NDArray[Any]) -> Tensor:
    """B x H x W x C uint8 (255 is white) or float32 -> (B,C,H,W) float32 in channels-last, 1 is white."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor
