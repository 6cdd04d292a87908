"""What a user should know of an input that is not like those a model was trained for: one line, with a better command.

Judged from estimates of noise, JPEG compression and sharpness; limits that clean photographs seldom reach.
"""

import shlex
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..degradations.estimate import bandwidth, jpeg_quality, noise_sigma
from ..models.catalog import CAMERA, REAL, Model

NOISY = 5.0  # sigma of 255, from which on noise is enlarged visibly
FAINT = 2.0  # sigma below which there is nothing to take out
COMPRESSED = 80  # JPEG quality, down from which blocks and ringing are
SOFT = 0.55  # share of the frequencies up to which an enlarged or blurred image holds anything
STRONGER = 1.5  # times what a model was trained for


@dataclass
class Advisor:
    """Looks at the inputs of a run until there is advice to give, which it gives once.

    Attributes:
        done: whether the advice has been given.
    """

    done: bool = False

    def __call__(
        self, pixels: NDArray[np.generic], name: str, model: Model, level: int | None = None
    ) -> str | None:
        """The advice on an image, if there is any; to look takes about 0.1 s.

        Args:
            pixels: as `image.Image` holds them.
            name: of the file, as in the command.
            model: what restores it first.
            level: of the degradation, if it was measured.
        """
        advice = None if self.done else _look(pixels, shlex.quote(name), model, level)
        self.done = self.done or advice is not None
        return advice and f"{name}: {advice}"


def _look(pixels: NDArray[np.generic], name: str, model: Model, level: int | None) -> str | None:
    levels, task = model.levels, model.task
    if task == "derain" or model.degradation in (REAL, CAMERA):
        return None
    sigma = float(level) if task == "denoise" and level is not None else noise_sigma(pixels) or 0.0
    quality = None if sigma >= NOISY else jpeg_quality(pixels)  # noise hides it
    noise = f"looks noisy (sigma about {sigma:.0f} of 255)" if sigma >= NOISY else None
    jpeg = (
        f"looks compressed as JPEG (quality about {quality})"
        if quality and quality <= COMPRESSED
        else None
    )
    cameras = (
        f"for the noise of cameras, which cannot be measured: mambair denoise {name} `noise=real`"
    )
    if task == "upscale":
        if damage := noise or jpeg:
            first = f"first: mambair {'denoise' if noise else 'dejpeg'} {name}"
            at_once = (
                f"if it is small and spoilt in more ways: mambair upscale {name} `degradation=real`"
            )
            return f"{damage}, which {model.name} enlarges with the rest; {first}; {at_once}"
        share = bandwidth(pixels)
        if share is not None and share < SOFT:
            soft = f"looks blurred or enlarged before (no detail finer than {share:.0%} of what its size can hold)"
            return f"{soft}, which {model.name} does not mend; better: mambair upscale {name} `degradation=real`"
    elif task == "denoise":
        if jpeg:
            return f"{jpeg} rather than evenly noisy; {cameras}; if there is none: mambair dejpeg {name}"
        if sigma < FAINT:
            return f"shows hardly any even noise (sigma about {sigma:.0f} of 255); {cameras}"
        if levels and not model.bundled and sigma > STRONGER * levels[1]:
            return (
                f"{noise}, more than {model.name} was trained for; better: mambair denoise {name}"
            )
    elif noise:
        return f"{noise} rather than compressed as JPEG; better: mambair denoise {name}"
    elif levels and quality and not model.bundled and STRONGER * quality < levels[0]:
        return f"{jpeg}, more than {model.name} was trained for; better: mambair dejpeg {name}"
    return None
