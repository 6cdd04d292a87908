"""Validation: whole images or their middles, by the restorer and the metrics of `bench`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..degradations.base import Degradation
from ..errors import ImageError
from ..images.folders import Pixels
from ..images.metrics import psnr, psnr_y
from ..images.resize import downscale
from ..images.samples import to_uint8
from ..restore.restorer import Options, Restorer
from .config import TrainConfig
from .data import degraded
from .photos import Photo, Source, read_photo

SEED = 0
SMALLEST = 8
"""Degraded pixels a side, so that something is left within the border."""


@dataclass(frozen=True)
class Pair:
    """A degraded image and its truth.

    Attributes:
        low: h x w x C, uint8 or float32 where 1 is white.
        high: s*h x s*w x C uint8.
    """

    low: NDArray[Any]
    high: Pixels


def validation_pairs(
    sources: Sequence[Source],
    scale: int,
    degradation: Degradation | None,
    channels: int,
    crop: int | None = None,
) -> tuple[list[Pair], list[str]]:
    """Whole images, or their centres, as pairs, and why other images are left out.

    The pairs are the same in every run. A degradation with just one range (noise, JPEG) takes
    values that are spread evenly over it.

    Args:
        sources: the files.
        scale: how many times smaller the degraded images are.
        degradation: makes them where no file has them; None: they are shrunk as the benchmarks do.
        channels: 3, or 1 for luma.
        crop: degraded pixels a side at most.
    """
    photos, skipped, pairs = [], [], []
    for source in sources:
        try:
            photo = read_photo(source, scale, channels, shrink=False)
        except ImageError as error:
            skipped.append(str(error))
            continue
        if min(photo.high.shape[:2]) < SMALLEST * scale:
            skipped.append(f"{source.high}: smaller than {SMALLEST * scale} pixels a side")
            continue
        photos.append(photo)
    for i, photo in enumerate(photos):
        high, low, _ = photo if crop is None else _centre(photo, crop, scale)
        if low is not None:
            pairs.append(Pair(low, high))
        elif degradation is None:
            pairs.append(Pair(downscale(high, scale), high))
        else:
            strength = _at(degradation, (i + 0.5) / len(photos))
            rng = np.random.default_rng((SEED, i))
            pairs.append(Pair(degraded(high, strength, rng), high))
    return pairs, skipped


def _centre(photo: Photo, crop: int, scale: int) -> Photo:
    """The middle of a photograph, at most `crop` degraded pixels a side."""
    high, low, _ = photo
    top, left = (max(0, side // scale - crop) // 2 for side in high.shape[:2])
    rows = slice(top * scale, (top + crop) * scale)
    columns = slice(left * scale, (left + crop) * scale)
    if low is not None:
        low = low[top : top + crop, left : left + crop]
    return Photo(high[rows, columns], low)


def _at(degradation: Any, position: float) -> Any:
    """The degradation at a position, 0 to 1, in its range if it has just one; else as it is."""
    if len(degradation.LIMITS) != 1:
        return degradation
    (name,) = degradation.LIMITS
    low, high = getattr(degradation, name)
    level = type(low)(low + position * (high - low))
    return replace(degradation, **{name: (level, level)})


def metric_of(config: TrainConfig) -> str:
    """The metric of the papers: `psnr_y` for enlarging and rain, else `psnr` on all channels."""
    return "psnr_y" if config.task in ("upscale", "derain") else "psnr"


def restored(model: nn.Module, pairs: Sequence[Pair], device: torch.device) -> list[Pixels]:
    """What a network makes of degraded images: H x W x C uint8 each."""
    name = str(device) if device.type == "cuda" else device.type
    restorer = Restorer(model, "the network in training", Options(name))
    results = []
    for pair in pairs:
        low = pair.low[:, :, 0] if pair.low.shape[2] == 1 else pair.low
        out = restorer.restore(np.ascontiguousarray(low), squeeze=False)
        out = out if out.dtype == np.uint8 else to_uint8(out)
        results.append(out.reshape(pair.high.shape))
    return results


def score(results: Sequence[Pixels], pairs: Sequence[Pair], scale: int, metric: str) -> float:
    """Mean PSNR in dB, a border of `scale` pixels left out where the network enlarges.

    metric: `psnr_y` or `psnr`, see `metric_of`.
    """
    border = scale if scale > 1 else 0
    measure = psnr_y if metric == "psnr_y" else psnr
    pictures = zip(results, pairs, strict=True)
    return float(np.mean([measure(out, pair.high, border=border) for out, pair in pictures]))
