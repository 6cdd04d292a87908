"""Photographs to train on: found, paired with degraded files, and kept decoded in memory."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from ..errors import CallError, ImageError
from ..images.folders import Pixels, image_size, list_images, read_rgb
from ..images.metrics import y_in_8_bits
from ..images.resize import downscale, modcrop


class Source(NamedTuple):
    """A photograph's file, and if given those of its degraded form and a teacher's target."""

    high: Path
    low: Path | None = None
    target: Path | None = None


class Photo(NamedTuple):
    """A decoded photograph, H x W x C uint8, with sides that are multiples of the scale.

    `low` is its degraded form where that is not made on the fly, `target` what a teacher made of
    that form, of the size of the photograph.
    """

    high: Pixels
    low: Pixels | None
    target: Pixels | None = None


def find_sources(data: Path, low: Path | None, scale: int) -> list[Source]:
    """The images of a folder, each with the file of its degraded form where `low` is given.

    A degraded form lies in the same subfolder of `low` under the same name (its suffix may differ),
    or under that name with `x2` (the scale) at its end, as in DIV2K. Raises CallError where a
    folder holds no image or a file is missing.
    """
    files = list_images(data)
    if low is None:
        return [Source(path) for path in files]
    found = {path.relative_to(low).with_suffix(""): path for path in list_images(low)}
    sources = []
    for path in files:
        name = path.relative_to(data).with_suffix("")
        pair = found.get(name) or found.get(name.with_name(f"{name.name}x{scale}"))
        if pair is None:
            names = f"{name} or {name}x{scale}"
            raise CallError(f"{low} holds no degraded form of {path}; its name would be {names}")
        sources.append(Source(path, pair))
    return sources


def add_targets(sources: Sequence[Source], data: Path, targets: Path) -> list[Source]:
    """Images of the folder `data`, each with the teacher's target of the same name in `targets`.

    A target lies in the same subfolder; its suffix may differ.
    Raises CallError where one is missing.
    """
    found = {path.relative_to(targets).with_suffix(""): path for path in list_images(targets)}
    with_targets = []
    for source in sources:
        name = source.high.relative_to(data).with_suffix("")
        if name not in found:
            raise CallError(
                f"{targets} holds no target for {source.high}; its name would be {name}"
            )
        with_targets.append(source._replace(target=found[name]))
    return with_targets


def split(
    data: list[Source], val: list[Source] | None, held_out: int
) -> tuple[list[Source], list[Source]]:
    """Files to train on and files to validate with (`val`, or some of `data`); none is both.

    Raises CallError where no file is left for one of the two.
    """
    if val:
        chosen = val
    elif len(data) > held_out:
        numbers = np.random.default_rng(0).choice(len(data), held_out, replace=False)
        chosen = [data[i] for i in numbers]
    else:
        fewer = ", or set data.validation=1" if len(data) > 1 else ""
        raise CallError(
            f"there are too few images to put {held_out} aside for validation;"
            f" give `val`, a folder of others{fewer}"
        )
    held = {source.high.resolve() for source in chosen}
    left = [source for source in data if source.high.resolve() not in held]
    if not left:
        raise CallError("all images of `data` are in `val` too; none is left to train on")
    return left, chosen


def read_photo(source: Source, scale: int, channels: int, *, shrink: bool) -> Photo:
    """Decode a photograph, its degraded form and its target.

    Args:
        source: the files.
        scale: how many times smaller the degraded form is.
        channels: 3, or 1 for luma (BT.601, as the metrics take it).
        shrink: make the degraded form as the benchmarks do where no file has it.

    Raises:
        ImageError: a file cannot be read, or they do not fit together.
    """
    high = modcrop(_in_channels(read_rgb(source.high), channels), scale)
    target = None
    if source.target:
        target = modcrop(_in_channels(read_rgb(source.target), channels), scale)
        if target.shape != high.shape:
            sizes = f"{_size(target)} pixels, but {_size(high)} belong to {source.high}"
            raise ImageError(f"{source.target}: has {sizes}")
    if source.low is None:
        return Photo(high, downscale(high, scale) if shrink else None, target)
    low = _in_channels(read_rgb(source.low), channels)
    height, width = (side // scale for side in high.shape[:2])
    if low.shape[:2] != (height, width):
        sizes = f"{_size(low)} pixels, but {width}x{height} belong to {source.high}"
        raise ImageError(f"{source.low}: has {sizes}")
    return Photo(high, low, target)


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _in_channels(image: Pixels, channels: int) -> Pixels:
    return image if channels == 3 else y_in_8_bits(image)[:, :, None]


class Photos:
    """Photographs by their number, decoded when they are first asked for. Threads may share it.

    Those that cannot be read, or whose degraded form has a side shorter than `smallest`, are left
    out; `skipped` holds the reasons for all that were found so far.

    Args:
        sources: the files.
        scale: how many times smaller their degraded forms are.
        channels: 3, or 1 for luma.
        shrink: see `read_photo`.
        smallest: pixels.
        memory: bytes that decoded images may take; those not used for the longest time leave first.

    Raises:
        CallError: no image can be used.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        scale: int,
        channels: int,
        *,
        shrink: bool,
        smallest: int,
        memory: float,
    ):
        self.scale, self.channels, self.shrink, self.memory = scale, channels, shrink, memory
        self.skipped: list[str] = []
        self.sources: list[Source] = []
        sizes = []
        for source in sources:
            try:
                size = image_size(source.high)
            except ImageError as error:
                self.skipped.append(str(error))
                continue
            if min(size) < smallest * scale:
                self.skipped.append(f"{source.high}: smaller than {smallest * scale} pixels a side")
                continue
            self.sources.append(source)
            sizes.append(sorted(size))
        if not sizes:
            first = "".join(self.skipped[:1])
            raise CallError(f"none of {len(sources)} images can be used; the first: {first}")
        self.shorter, longer = np.array(sizes).T
        self.area = self.shorter * longer
        self._damaged: set[int] = set()
        self._held: OrderedDict[int, Photo] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, number: int) -> Photo | None:
        """The photograph, or None for one that cannot be used after all."""
        with self._lock:
            if number in self._damaged:
                return None
            if number in self._held:
                self._held.move_to_end(number)
                return self._held[number]
        try:
            photo = read_photo(self.sources[number], self.scale, self.channels, shrink=self.shrink)
        except ImageError as error:
            with self._lock:
                if number not in self._damaged:
                    self._damaged.add(number)
                    self.skipped.append(str(error))
            return None
        with self._lock:
            if number not in self._held:
                self._held[number] = photo
                self._bytes += _bytes(photo)
            while self._bytes > self.memory:
                self._bytes -= _bytes(self._held.popitem(last=False)[1])
        return photo


def _bytes(photo: Photo) -> int:
    return sum(image.nbytes for image in photo if image is not None)
