"""How each task is measured in the literature: its inputs, channel and border."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ...degradations.jpeg import compress
from ...degradations.noise import published_noise
from ...errors import CallError
from ...images.folders import Pixels
from ...images.metrics import y_in_8_bits
from ...images.resize import bicubic, downscale
from ...images.samples import to_uint8
from ...models.choice import find_models
from ...models.tasks import TASKS
from .sets import DataSet

Channel = Literal["y", "rgb", "gray"]
Array = NDArray[Any]
INPUT = "input"
BICUBIC = "bicubic"


@dataclass(frozen=True)
class Protocol:
    """How a task is measured.

    Args:
        task: of the networks, a name of TASKS.
        setting: of the task, such as x4, sigma25 or q10, as in the papers' tables.
        tables: the names of those tables.
        channel: what of the images counts.
        scale: of truths against inputs.
        border: pixels on each side that do not count.
        make: makes the input of the truth; None where only files can give it.
        made: how that is done, in words, with the seed.
        baseline: the name of what the networks have to beat: the input itself, or enlarged.
        seed: of what is random in the input.
        real: whether the networks are those for real photographs.
        level: of the noise or the quality, which decides between networks.
    """

    task: str
    setting: str
    tables: tuple[str, ...]
    channel: Channel
    scale: int = 1
    border: int = 0
    make: Callable[[Pixels], Array] | None = None
    made: str = "read from files"
    baseline: str = INPUT
    seed: int | None = None
    real: bool = False
    level: int | None = None

    @property
    def default_model(self) -> str:
        """The bundled one that a command would take."""
        return find_models(self.task, self.scale, real=self.real, level=self.level)[0].name

    @property
    def reads_inputs(self) -> bool:
        """Whether input files count where they are there, as low-resolution files do."""
        return self.make is None or self.scale > 1

    def prepare(self, truth: Pixels) -> Pixels:
        """H x W x 3 of a file as this protocol compares it: gray as H x W, the Y of colours."""
        if self.channel != "gray":
            return truth
        if (truth == truth[:, :, :1]).all():
            return truth[:, :, 0]
        return y_in_8_bits(truth)

    def enlarge(self, image: Array, size: tuple[int, ...]) -> Pixels:
        """The baseline: the input as pixels of the truth's (height, width)."""
        if image.dtype != np.uint8:
            image = to_uint8(image)
        return image if image.shape[:2] == size else bicubic(image, *size)


def super_resolution(scale: int) -> Protocol:
    """Enlarge what MATLAB's bicubic made small: on Y, without a border of the scale."""
    return Protocol(
        task="upscale",
        setting=f"x{scale}",
        tables=("classic_sr", "light_sr"),
        channel="y",
        scale=scale,
        border=scale,
        make=lambda truth: downscale(truth, scale),
        made="MATLAB's bicubic, made here",
        baseline=BICUBIC,
    )


def denoising(sigma: float, seed: int = 0) -> Protocol:
    """Remove white Gaussian noise of this sigma (of 255), neither clipped nor rounded: on RGB."""

    def make(truth: Pixels) -> Array:
        height, width = truth.shape[:2]
        noise = published_noise(height, width, sigma, seed)
        return (truth / 255 + noise).astype(np.float32)

    made = f"Gaussian noise of sigma {sigma:g}, NumPy's legacy generator, seed {seed}"
    return Protocol(
        task="denoise",
        setting=f"sigma{sigma:g}",
        tables=("denoise_color",),
        channel="rgb",
        make=make,
        made=made,
        seed=seed,
        level=round(sigma),
    )


def jpeg(quality: int) -> Protocol:
    """Mend what JPEG of this quality leaves of gray images."""
    return Protocol(
        task="dejpeg",
        setting=f"q{quality}",
        tables=("jpeg_gray",),
        channel="gray",
        make=lambda truth: compress(truth, quality),
        made=f"JPEG of quality {quality} by Pillow",
        level=quality,
    )


def clean(task: str) -> Protocol:
    """How much a task's networks change photographs that need no restoration, on RGB."""
    made = "the truths themselves"
    return Protocol(task, "clean", (), "rgb", make=lambda truth: truth, made=made)


# By the task of the data set.
PAIRED = {
    "derain": Protocol("derain", "-", ("derain",), "y"),
    "denoise-real": Protocol("denoise", "-", ("denoise_real",), "rgb", real=True),
}
CLEAN = [task.name for task in TASKS.values() if task.scale == 1]


def choose_protocol(
    row: DataSet | None,
    *,
    scale: int | None = None,
    noise: float | None = None,
    quality: int | None = None,
    pairs: str | None = None,
    unspoilt: str | None = None,
    channel: str | None = None,
    border: int | None = None,
    seed: int = 0,
) -> Protocol:
    """The protocol that a call asks for, or the one of a known data set; x4 for any other folder.

    Args:
        row: the data set, if it is a known one.
        scale: asks for super-resolution.
        noise: asks for denoising of this sigma.
        quality: asks for JPEG artefacts of this quality.
        pairs: asks for input files as they are, for a task of PAIRED.
        unspoilt: asks for what a task of CLEAN does to the truths.
        channel: instead of the protocol's: y, rgb or gray.
        border: pixels instead of the protocol's.
        seed: of the noise.

    Raises CallError where the call asks for two things or for none that fits the data set.
    """
    asked = [value for value in (scale, noise, quality, pairs, unspoilt) if value is not None]
    if len(asked) > 1:
        raise CallError(
            "`scale`, `noise`, `jpeg`, `pairs` and `clean` exclude each other; give one of them"
        )
    if pairs is None and not asked and row:
        pairs = row.task if row.task in PAIRED else None
    if noise is not None:
        protocol = denoising(noise, seed)
    elif quality is not None:
        protocol = jpeg(quality)
    elif unspoilt is not None:
        if unspoilt not in CLEAN:
            raise CallError(f"`clean` must be {', '.join(CLEAN)}, not {unspoilt!r}")
        protocol = clean(unspoilt)
    elif pairs is not None:
        if pairs not in PAIRED:
            raise CallError(f"`pairs` must be {' or '.join(PAIRED)}, not {pairs!r}")
        protocol = PAIRED[pairs]
    elif scale is None and row and row.task != "upscale":
        usual = {"denoise": "`noise` 15, 25 or 50", "dejpeg": "`jpeg` 10, 20, 30 or 40"}
        raise CallError(
            f"{row.name} is measured at several settings; give {usual[row.task]}, or `scale` to"
            " enlarge its images"
        )
    else:
        protocol = super_resolution(scale or 4)
    if channel is not None:
        if channel not in get_args(Channel):
            raise CallError(f"`channel` must be {', '.join(get_args(Channel))}, not {channel!r}")
        protocol = replace(protocol, channel=cast(Channel, channel))
    return protocol if border is None else replace(protocol, border=border)
