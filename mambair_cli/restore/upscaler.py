"""Any size: networks one after the other until it is reached, then antialiased bicubic down."""

import math
from dataclasses import asdict, replace

import numpy as np

from ..errors import CallError
from ..images.image import Image, each_frame
from ..models.choice import Choice, check_task
from ..models.fetch import known_task
from ..ops import resolve_backend
from ..system.devices import resolve_device
from .condition import JUDGES, UNKNOWN, Finding
from .options import Options
from .restorer import Restorer, load_restorer, resized
from .runner import Progress
from .size import Size


class Upscaler:
    """Restores pictures to any size, by networks and then antialiased bicubic down.

    Attributes:
        choice: of the networks.
        restorers: those loaded so far, by name.
        device: where they run.
        backend: which scan they run.
    """

    def __init__(self, choice: Choice, options: Options):
        """Load the network that `choice` names; others are loaded when they are needed.

        A named network runs as often as its scale needs to reach the size.

        Raises as `load_restorer`, and CallError if it is for another task.
        """
        self.choice, self.options = choice, options
        self.device = resolve_device(options.device)
        self.backend = resolve_backend(options.backend, self.device.type).name
        self.restorers: dict[str, Restorer] = {}
        if choice.model:
            self._load(choice.model)

    def measure(self, image: Image) -> Finding:
        """What an image has suffered, if the choice of its networks depends on it."""
        return JUDGES[self.choice.task](image) if self.choice.by_image else UNKNOWN

    def chain(self, scale: float, found: Finding = UNKNOWN) -> list[Restorer]:
        """The networks to run one after the other, for an image as measured.

        Raises CallError if none reach the scale.
        """
        name = self.choice.model
        if name is None:
            rows = self.choice.models(scale, found.level, found.real)
            return [self._load(row.name) for row in rows]
        restorer = self._load(name)
        if scale <= 1:
            return [restorer]
        if restorer.scale == 1:
            raise CallError(f"{restorer.name} does not enlarge; choose another `model`")
        # Rounded, as log(8, 2) may be a little more than 3.
        runs = math.ceil(round(math.log(scale, restorer.scale), 9))
        return [restorer] * max(1, runs)

    def _load(self, name: str) -> Restorer:
        if name not in self.restorers:
            restorer = load_restorer(name, **asdict(self.options))
            check_task(self.choice.task, name, known_task(name), restorer.scale)
            self.restorers[name] = restorer
        return self.restorers[name]

    def tiles(self, size: Size, height: int, width: int, found: Finding = UNKNOWN) -> int:
        """How many tiles a picture of `height` x `width` is cut into now, by its whole `chain`."""
        count = 0
        for restorer in self.chain(size.factor(height, width), found):
            count += len(restorer.plan(height, width).boxes)
            height, width = restorer.scale * height, restorer.scale * width
        return count

    def memory(self, size: Size, image: Image, found: Finding = UNKNOWN) -> int:
        """Estimated bytes that restoring a picture takes at most, by its whole `chain`."""
        height, width = image.pixels.shape[:2]
        needed = []
        for restorer in self.chain(size.factor(height, width), found):
            itemsize = image.pixels.itemsize
            needed.append(restorer.peak_memory(restorer.plan(height, width, itemsize), itemsize))
            height, width = restorer.scale * height, restorer.scale * width
        return max(needed)

    def restore_image(
        self,
        image: Image,
        size: Size,
        progress: Progress | None = None,
        found: Finding = UNKNOWN,
    ) -> Image:
        """Restore a picture and all that belongs to it to a size, by the networks of `chain`.

        `progress` is called with the share done, from 0 to 1.

        Raises as `Restorer.restore_image`, and CallError if no network reaches the size.
        """

        def restored(frame: Image, report: Progress) -> Image:
            return self._restore_frame(frame, size, report, found)

        return each_frame(image, restored, progress)

    def _restore_frame(self, image: Image, size: Size, report: Progress, found: Finding) -> Image:
        height, width = image.pixels.shape[:2]
        chain = self.chain(size.factor(height, width), found)
        height, width = size.of(height, width)
        # The work of each network: the pixels it sees, as multiples of the input's.
        work = np.cumprod([1, *(restorer.scale**2 for restorer in chain[:-1])])
        shares = work / work.sum()
        for i, restorer in enumerate(chain):
            before = shares[:i].sum()

            def report_part(part: float, before: float = before, share: float = shares[i]) -> None:
                report(round(before + share * part, 9))

            image = restorer.restore_image(image, report_part)
        alpha = None if image.alpha is None else resized(image.alpha, height, width)
        return replace(image, pixels=resized(image.pixels, height, width), alpha=alpha)
