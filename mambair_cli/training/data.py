"""Training pairs: patches are cropped first, then degraded on the fly, ahead of the loop."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..degradations.base import Degradation, from_pixels
from ..errors import CallError
from ..images.folders import Pixels
from .config import TrainConfig
from .photos import Photos
from .schedule import stage_at

MIXED_SHARE = 0.5
"""Share of the batches that are mixed, with mixup."""
ATTEMPTS = 100
"""Photographs drawn for one sample before all count as damaged."""


def degraded(
    image: Pixels, degradation: Degradation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A degraded copy of an image: H x W x C uint8 -> h x w x C float32, where 1 is white.

    Gray goes through as three equal channels.
    """
    channels = image.shape[2]
    return degradation(from_pixels(np.repeat(image, 3 // channels, 2)), rng)[:, :, :channels]


class TrainingPairs:
    """Random patches of photographs, with flips and transposition, degraded on the fly.

    A sample depends on (seed, iteration, index) alone. Images are drawn in proportion to their
    area, among those that are as large as a patch.

    Args:
        photos: to cut from.
        degradation: makes a degraded patch of a patch; None: the photographs' own degraded forms
            are cut.
        seed: of everything random.
        mixup: parameter of the Beta distribution of the shares in which samples are mixed; 0: none
            is.
        teacher: weight of the photographs' targets, where they have any, beside the truth.
    """

    def __init__(
        self,
        photos: Photos,
        degradation: Degradation | None,
        seed: int,
        mixup: float = 0.0,
        teacher: float = 0.0,
    ):
        self.photos, self.degradation, self.seed = photos, degradation, seed
        self.mixup, self.teacher = mixup, teacher
        self._drawn_by: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}

    def check(self, patch: int) -> None:
        """Raise CallError where no photograph is as large as such a patch."""
        smallest = patch * self.photos.scale
        fit = np.flatnonzero(self.photos.shorter >= smallest)
        if not len(fit):
            raise CallError(
                f"no image can be used for patches of {patch}:"
                f" all are smaller than {smallest} pixels a side"
            )
        self._drawn_by[patch] = fit, np.cumsum(self.photos.area[fit])

    def sample(self, iteration: int, index: int, patch: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """A degraded patch (p,p,C) and what to make of it (s*p,s*p,C).

        Both are uint8; the first is float32 where it was degraded on the fly, the second where a
        teacher has its share in it.
        Raises CallError where photographs are damaged, time and again.
        """
        rng, s = np.random.default_rng((self.seed, iteration, index)), self.photos.scale
        if patch not in self._drawn_by:
            self.check(patch)
        numbers, up_to = self._drawn_by[patch]
        for _ in range(ATTEMPTS):
            drawn = np.searchsorted(up_to, rng.integers(up_to[-1]), side="right")
            photo = self.photos.get(int(numbers[drawn]))
            if photo:
                break
        else:
            raise CallError(f"the images can hardly be used; the last: {self.photos.skipped[-1]}")
        top, left = (int(rng.integers(side // s - patch + 1)) for side in photo.high.shape[:2])
        flips = rng.integers(2, size=3)
        rows = slice(top * s, (top + patch) * s)
        columns = slice(left * s, (left + patch) * s)
        high = _flipped(photo.high[rows, columns], flips)
        wanted: NDArray[Any] = high
        if photo.target is not None:
            target = _flipped(photo.target[rows, columns], flips)
            wanted = _blended(high, target, self.teacher)
        if self.degradation:
            return degraded(high, self.degradation, rng), wanted
        assert photo.low is not None
        return _flipped(photo.low[top : top + patch, left : left + patch], flips), wanted

    def batch(
        self, iteration: int, indices: range, patch: int, total: int
    ) -> tuple[Tensor, Tensor]:
        """Some of the `total` samples of an iteration.

        Returns (B,C,p,p) and (B,C,s*p,s*p) float32, where 1 is white.
        Each may be mixed with the one before it in the iteration, whatever else this device takes.
        """
        rng = np.random.default_rng((self.seed, iteration))
        mixed = self.mixup > 0 and rng.random() < MIXED_SHARE
        wanted = [(indices[0] - 1) % total, *indices] if mixed else [*indices]
        made = {index: self.sample(iteration, index, patch) for index in dict.fromkeys(wanted)}
        lows, highs = zip(*(made[index] for index in wanted), strict=True)
        low, high = to_tensor(np.stack(lows)), to_tensor(np.stack(highs))
        if mixed:
            share = rng.beta(self.mixup, self.mixup)
            low, high = (torch.lerp(images[:-1], images[1:], share) for images in (low, high))
        return low, high


def _flipped(image: Pixels, flips: NDArray[Any]) -> Pixels:
    image = image[:: 1 - 2 * flips[0], :: 1 - 2 * flips[1]]
    return image.swapaxes(0, 1) if flips[2] else image


def _blended(truth: Pixels, target: Pixels, weight: float) -> NDArray[np.float32]:
    """Truth and a teacher's target in the shares 1 - weight and weight, where 1 is white."""
    share = np.float32(weight)
    return (1 - share) * from_pixels(truth) + share * from_pixels(target)


def to_tensor(images: NDArray[Any]) -> Tensor:
    """B x H x W x C uint8 or float32 -> (B,C,H,W) float32 in channels-last, where 1 is white."""
    # a stack of transposed images is not contiguous
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor


class Part(NamedTuple):
    """What a device takes at once: some of the `total` samples of an iteration."""

    iteration: int
    indices: range
    patch: int
    total: int


def parts_of(
    config: TrainConfig, sizes: dict[int, int], first: int, rank: int, world: int
) -> Iterator[Part]:
    """What a process takes, from an iteration to the end of the run.

    Args:
        config: the recipe.
        sizes: samples that a device takes at once, by patch.
        first: the iteration to begin with.
        rank: number of the process.
        world: how many processes there are.
    """
    for iteration in range(first, config.iterations):
        patch, batch = stage_at(config, iteration)
        share = batch // world
        for start in range(rank * share, (rank + 1) * share, sizes[patch]):
            yield Part(iteration, range(start, start + sizes[patch]), patch, batch)


class Loader:
    """Makes parts in threads, ahead of the loop that takes them in order.

    Attributes:
        waited: seconds that the loop has waited for parts.
    """

    def __init__(
        self,
        make: Callable[[int, range, int, int], tuple[Tensor, Tensor]],
        parts: Iterator[Part],
        workers: int,
    ):
        self._make, self._parts = make, parts
        self._pool = ThreadPoolExecutor(workers)
        self._coming: deque[Future[tuple[Tensor, Tensor]]] = deque()
        self.waited = 0.0
        for _ in range(workers + 1):
            self._send()

    def _send(self) -> None:
        part = next(self._parts, None)
        if part:
            self._coming.append(self._pool.submit(self._make, *part))

    def next(self) -> tuple[Tensor, Tensor]:
        """The next part: degraded patches and their truths."""
        started = time.perf_counter()
        result = self._coming.popleft().result()
        self.waited += time.perf_counter() - started
        self._send()
        return result

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=True, cancel_futures=True)
