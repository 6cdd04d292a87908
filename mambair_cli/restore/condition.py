"""What an image has suffered: which networks it needs, and what would help its result.

The limits were found on photos that were only made smaller (at most 2 of 483 go over them) and on
made inputs with known truth, where both networks were compared.
"""

import shlex
from dataclasses import dataclass

import cv2
import numpy as np

from ..degradations.estimate import bandwidth, jpeg_quality, noise_sigma, stored_quality
from ..degradations.processed import processed
from ..images.image import Image
from ..models.tasks import TASKS

NOISY = 5.7
"""Sigma of white noise, of 255, from which on the networks for real photos do better.

At 4, those for clean photos are still 0.2 dB better on Kodak24 shrunk by 4; at 6, 1.3 dB worse.
"""

FAINT = 2.0
"""Sigma below which there is no white noise to take out."""

MIXED = 8.0
"""Sigma of white noise up to which there may be more of the kind that cameras leave."""

COMPRESSED = 82
"""JPEG quality up to which blocks and ringing show.

In dB, the networks for clean photos stay ahead down to 60 (by 0.2 at 70, 0.4 at 80, 0.9 at 90); but
from 82 down, their enlarged blocks and ringing look worse than the smoother result.
"""

SOFT = 0.9
"""Share of the frequencies up to which a blurred or enlarged image holds anything."""

PROCESSED = 3.2
"""Log-odds from which on a photo counts as processed."""

CLEAN, NOISE, JPEG, BLUR, TRACES = "clean", "noisy", "compressed", "blurred", "processed"


@dataclass(frozen=True)
class Finding:
    """What was measured of an image, and what follows for its networks.

    Attributes:
        kind: clean, noisy, compressed, blurred or processed; empty if nothing was judged.
        words: the same for the user, with numbers, such as "looks compressed (JPEG 62)".
        level: of the degradation, for networks that are for levels; None if nothing depends on it.
        real: whether the networks for real photos fit.
    """

    kind: str = ""
    words: str = ""
    level: int | None = None
    real: bool = False


UNKNOWN = Finding()
"""For an image that nobody looked at, or that is too small to judge."""


def judge(image: Image) -> Finding:
    """Find what a photo to be enlarged has suffered, the worst first; takes about 0.2 s."""
    sigma = noise_sigma(image.pixels)
    if sigma is None:
        return Finding()
    if sigma >= NOISY:
        return Finding(NOISE, f"looks noisy (sigma {sigma:.0f})", real=True)
    quality = worse_quality(image)
    if quality is not None and quality <= COMPRESSED:
        return Finding(JPEG, f"looks compressed (JPEG {quality})", real=True)
    if quality is not None:
        # Weak compression leaves traces that mean nothing, and no noise.
        if sigma >= FAINT:
            return Finding(NOISE, "looks like a camera's noise", real=True)
        return Finding(CLEAN, f"looks clean (JPEG {quality})")
    share = bandwidth(image.pixels)
    if share is not None and share < SOFT:
        return Finding(BLUR, f"looks blurred or enlarged (detail up to {share:.0%})", real=True)
    odds = processed(image.pixels)
    if odds is not None and odds > PROCESSED:
        return Finding(TRACES, "looks processed (resized, filtered or compressed)", real=True)
    return Finding(CLEAN, "looks clean")


def judge_noise(image: Image) -> Finding:
    """Find which noise a photo holds; the level is the sigma of white noise.

    The noise of cameras is wider than a pixel and cannot be told from texture; but who denoises a
    JPEG file in which there is little white noise means that. One network removes both.
    """
    sigma = noise_sigma(image.pixels)
    if sigma is None:
        return Finding()
    level = round(sigma)
    if sigma < MIXED:
        if worse_quality(image) is not None:
            return Finding(NOISE, "looks like a camera's noise", level)
        if sigma < FAINT:
            return Finding(CLEAN, "looks clean", level)
    return Finding(NOISE, "", level)


def judge_jpeg(image: Image) -> Finding:
    """Find the quality at which a photo was compressed."""
    quality = worse_quality(image)
    return Finding(CLEAN if quality is None else JPEG, "", quality)


JUDGES = {"upscale": judge, "denoise": judge_noise, "dejpeg": judge_jpeg}
"""The judge of each task whose networks are for different photos."""


def worse_quality(image: Image) -> int | None:
    """Return the lower of the JPEG quality that a file states and that its pixels show."""
    stated = stored_quality(image.quantization) if image.quantization else None
    seen = jpeg_quality(image.pixels)
    known = [quality for quality in (stated, seen) if quality is not None]
    return min(known, default=None)


def advice(result: Image, scale: float, task: str, real: bool, name: str) -> str | None:
    """Say what is left in a result and what would help; None if there is nothing to say.

    Args:
        result: what the networks made.
        scale: how many times larger it is than its input.
        task: what was done, a name of TASKS.
        real: whether a network for real photos did it.
        name: the file of the result, as in the command; - for stdout.
    """
    pixels = result.pixels
    if scale > 1:
        size = round(pixels.shape[1] / scale), round(pixels.shape[0] / scale)
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(small).astype(pixels.dtype)
    sigma = noise_sigma(pixels)
    if sigma is None:
        return None
    # What went to stdout can only go through another pipe.
    file = "- -o -" if name == "-" else shlex.quote(name)
    done = name.rpartition(".")[0]
    if sigma >= NOISY:
        left = f"still looks noisy (sigma about {sigma:.0f})"
        if task == "upscale" and not real:
            return f"{left}; what would help: `degradation=real`, and no `model`"
        if task != "denoise" and not done.endswith(TASKS["denoise"].suffix):
            return f"{left}; what may help: mambair denoise {file}"
        return left
    quality = jpeg_quality(pixels)
    if quality is not None and quality <= COMPRESSED:
        left = f"still looks compressed (JPEG {quality})"
        if task == "upscale" and not real:
            return f"{left}; what would help: `degradation=real`, and no `model`"
        if task != "dejpeg" and not done.endswith(TASKS["dejpeg"].suffix):
            return f"{left}; what may help: mambair dejpeg {file}"
        return left
    return None
