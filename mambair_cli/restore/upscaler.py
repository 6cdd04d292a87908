"""Any size: the networks that reach it one after the other, then antialiased bicubic downwards."""

import math
from dataclasses import asdict, replace

import numpy as np

from ..degradations.estimate import jpeg_quality, noise_sigma, stored_quality
from ..errors import CallError
from ..images.io import Image
from ..images.resize import Size
from ..models.choice import Choice, check_task
from ..models.fetch import known_task
from ..models.tasks import TASKS
from ..ops import resolve_backend
from ..system.devices import resolve_device
from .restorer import Options, Progress, Restorer, load_restorer, resized


def _sigma(image: Image) -> int | None:
    sigma = noise_sigma(image.pixels)
    return None if sigma is None else round(sigma)


def _quality(image: Image) -> int | None:
    """The worse one of what the tables of its file stand for and what the pixels show."""
    stored = stored_quality(image.quantization) if image.quantization else None
    return min(filter(None, [stored, jpeg_quality(image.pixels)]), default=None)


MEASURES = {"sigma": _sigma, "quality": _quality}
"""By what the levels of a task count."""


class Upscaler:
    """Restores pictures to any size: with the networks that reach it, then antialiased bicubic downwards.

    Attributes:
        choice: of the networks. restorers: those loaded so far, by name. device, backend: where and by which scan
        they run.
    """

    def __init__(self, choice: Choice, options: Options):
        """Load the network that `choice` names, which repeats for factors above its own; others when they are needed.

        Raises as `load_restorer`; CallError where it is for another task, with the command that fits.
        """
        self.choice, self.options = choice, options
        self.device = resolve_device(options.device)
        self.backend = resolve_backend(options.backend, self.device.type).name
        self.restorers: dict[str, Restorer] = {}
        if choice.model:
            self._load(choice.model)

    def measure(self, image: Image) -> int | None:
        """The level of the degradation that an image seems to have suffered; None where nothing depends on it."""
        return MEASURES[TASKS[self.choice.task].level](image) if self.choice.by_level else None

    def chain(self, scale: float, level: int | None = None) -> list[Restorer]:
        """The networks to run one after the other, for a level as measured.

        Raises CallError where none reach the scale.
        """
        name = self.choice.model
        if name is None:
            return [self._load(row.name) for row in self.choice.models(scale, level)]
        restorer = self._load(name)
        if restorer.scale == 1 and scale > 1:
            raise CallError(f"{restorer.name} does not enlarge; choose another model with -m")
        return [restorer] * (
            max(1, math.ceil(round(math.log(scale, restorer.scale), 9))) if scale > 1 else 1
        )

    def _load(self, name: str) -> Restorer:
        if name not in self.restorers:
            restorer = load_restorer(name, **asdict(self.options))
            check_task(self.choice.task, name, known_task(name), restorer.scale)
            self.restorers[name] = restorer
        return self.restorers[name]

    def tiles(self, size: Size, height: int, width: int, level: int | None = None) -> int:
        """How many tiles a picture of this height and width is cut into now, by all networks of its `chain`."""
        count = 0
        for restorer in self.chain(size.factor(height, width), level):
            count += len(restorer.plan(height, width).boxes)
            height, width = restorer.scale * height, restorer.scale * width
        return count

    def restore_image(
        self, image: Image, size: Size, progress: Progress | None = None, level: int | None = None
    ) -> Image:
        """Restore a picture and all that belongs to it to a size, by the networks of `chain`.

        `progress` is called with the share done, from 0 to 1.
        Raises as `Restorer.restore_image`; CallError where no network reaches the size.
        """
        height, width = image.pixels.shape[:2]
        chain, report = (
            self.chain(size.factor(height, width), level),
            progress or (lambda share: None),
        )
        height, width = size.of(height, width)
        work = np.cumprod(
            [1, *(restorer.scale**2 for restorer in chain[:-1])]
        )  # pixels each one sees
        for i, restorer in enumerate(chain):
            before, share = work[:i].sum() / work.sum(), work[i] / work.sum()
            image = restorer.restore_image(
                image,
                lambda part: report(round(before + share * part, 9)),  # noqa: B023
            )
        alpha = None if image.alpha is None else resized(image.alpha, height, width)
        return replace(image, pixels=resized(image.pixels, height, width), alpha=alpha)
