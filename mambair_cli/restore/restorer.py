"""From an image to a restored image: device, memory, tiles, precision.

`load_restorer` is the way in.
"""

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..archs.layers import Padding
from ..archs.ss2d import use_backend
from ..errors import CallError, MemoryLimitError, RestorationError
from ..images.image import WHITE, Image, each_frame
from ..images.resize import bicubic
from ..images.samples import in_bands
from ..models.fetch import find_checkpoint
from ..models.recognise import load_network
from ..ops import resolve_backend
from ..system import runtime, scratch
from ..system.devices import (
    free_memory,
    is_out_of_memory,
    resolve_device,
    resolve_dtype,
    used_memory,
)
from . import tiling
from .kinds import Part, T, reporting, unpack
from .options import GRAPHS, TILE_OVERLAP, Options
from .runner import Counter, Progress, Runner, Wait
from .transparency import fill_transparent

log = logging.getLogger(__name__)
Array = NDArray[Any]

MIN_TILE = 64
LARGEST_TILE = 2**31

BATCH_PIXELS = 2**20
"""Of tiles that a GPU takes at once; so many give every processor its share of a scan."""

MEMORY_SHARE = 0.6
"""Of what is free now."""

MEMORY_ERROR = 1.25
"""The estimate may be this much too low (`mambair bench memory`)."""


class Restorer:
    """A network ready to restore images of any size on one device.

    Attributes:
        model: the plain module, (B,C,H,W) float in [0,1] in, (B,C,sH,sW) float out.
        name: of the model or file.
        scale: s.
        device: where it runs.
        backend: which scan it runs.
        dtype: in which precision convolutions and linear layers run.
        largest_tile: pixels a side that may fit into memory; halved whenever memory runs out.
        largest_batch: how many tiles may be computed at once; also halved when memory runs out,
            and 1 on a CPU, where more at once are no faster.
        runner: runs the network.
    """

    def __init__(self, model: nn.Module, name: str, options: Options):
        self.device = resolve_device(options.device)
        if self.device.type == "cpu":
            runtime.keep_freed_memory()
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.backend = resolve_backend(options.backend, self.device.type).name
        self.model, self.name = model, name
        self.config = cast(Any, model.config)
        self.scale: int = self.config.upscale
        self.tile = _parse_tile(options.tile, options.tile_overlap)
        self.tile_overlap = options.tile_overlap
        self.memory_limit = options.memory_limit
        if options.alpha not in ("model", "bicubic"):
            raise CallError(f"`alpha` must be model or bicubic, not {str(options.alpha)!r}")
        self.alpha = options.alpha
        self.ensemble = options.ensemble
        if options.seed is not None:
            _set_seed(model, name, options.seed)
        self.runner = Runner(model, self.device, options.ensemble, options.graphs)
        self.largest_tile = LARGEST_TILE
        self.largest_batch = BATCH_PIXELS if self.device.type == "cuda" else 1
        # Whether half precision was not enough for some tile.
        self._overflowed = False
        use_backend(model, self.backend)
        if self.memory_limit and self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, self.memory_limit / total), self.device
            )

    @property
    def graphs(self) -> int:
        """How many shapes are recorded at the same time; 0 once a recording has failed."""
        return self.runner.graphs.limit

    def bytes_per_pixel(self) -> int:
        """Estimated peak memory of the network for each pixel of a tile.

        `mambair bench memory` measures it.
        """
        return int(4 * 1.15 * self.config.floats_per_pixel(self.backend))

    def peak_memory(self, tiles: tiling.TilePlan, itemsize: int = 1) -> int:
        """Estimated bytes that restoring a colour image in these tiles takes.

        On a GPU, bytes of its memory. The finished image counts with `itemsize` bytes a sample,
        unless it is so large that it lies on disk.
        """
        network = self.bytes_per_pixel() * tiles.tile_height * tiles.tile_width
        if self.device.type != "cpu":
            return network
        band = tiles.tile_height * tiles.width * self.scale**2 * 3
        result = tiles.height * tiles.width * self.scale**2 * 3 * itemsize
        return network + 3 * 4 * band + (result if result < scratch.LARGE else 0)

    def plan(self, height: int, width: int, itemsize: int = 1) -> tiling.TilePlan:
        """The tiles for an image of this size: one where it fits into memory.

        They cover sides that are rounded up to the multiple that the network needs. A tile size
        that the caller chose is kept.

        Raises:
            MemoryLimitError: not even small tiles fit.
            CallError: a tile is not larger than the overlap.
        """
        multiple = self.config.multiple
        rows, columns = (-(-side // multiple) * multiple for side in (height, width))
        if self.tile == "off":
            return tiling.plan(rows, columns, max(rows, columns), 0)
        if isinstance(self.tile, int):
            return tiling.plan(rows, columns, self.tile, self.tile_overlap, multiple)
        budget = self._budget()
        least = self.tile_overlap + MIN_TILE
        plans = []
        for high in _sides(rows, least):
            for wide in _sides(columns, least):
                largest = max(high, least), max(wide, least)
                tiles = tiling.plan(rows, columns, largest, self.tile_overlap, multiple)
                if self.peak_memory(tiles, itemsize) <= budget:
                    plans.append(tiles)
                    break
        if plans:
            return min(plans, key=_computed_pixels)
        if self.memory_limit and budget < 0:
            taken, limit = (n / 2**30 for n in (used_memory(self.device), self.memory_limit))
            raise MemoryLimitError(
                f"mambair alone takes {taken:.2f} GiB, more than the {limit:.2f} GiB of"
                " `memory_limit`; raise it"
            )
        raise MemoryLimitError(
            f"an image of {width}x{height} does not fit into {budget / 2**30:.2f} GiB of memory;"
            " close other programs, raise `memory_limit` or give `tile=64`"
        )

    def _budget(self) -> float:
        """Bytes that a run may take now."""
        free = MEMORY_SHARE * free_memory(self.device)
        if self.memory_limit is None:
            return free
        return min(free, (self.memory_limit - used_memory(self.device)) / MEMORY_ERROR)

    def restore(
        self, image: T, progress: Progress | bool | None = None, *, squeeze: bool = True
    ) -> T:
        """Restore one image; the result is of the same kind, s times as large.

        Networks of three channels see gray as three equal ones, averaged afterwards; networks of
        one channel see colours one by one. Integers are the range [0,1] of the network. Floats
        beyond it are squeezed into it and stretched again.

        Args:
            image: an array, H x W or H x W x 3 of uint8, uint16 or float32; an image of Pillow,
                whose transparency, profile and EXIF are kept (palettes, CMYK and the like become
                RGB); or a tensor (C,H,W) or (B,C,H,W) of floats in [0,1] on any device, C 1 or 3,
                whose result has no gradient.
            progress: True shows a bar; a function is called with the share done, from 0 to 1.
            squeeze: with False the network sees floats as they are, and the result is clipped to
                [0,1].

        Raises:
            ValueError: the image has another shape or type, or holds NaN or infinite values.
            MemoryLimitError: the image does not fit into memory.
            RestorationError: the network gave NaN or infinite values.
        """
        return self.restore_batch([image], progress, squeeze=squeeze)[0]

    def restore_batch(
        self,
        images: Sequence[T],
        progress: Progress | bool | None = None,
        *,
        squeeze: bool = True,
    ) -> list[T]:
        """Restore several images, each as by `restore`.

        Arrays of one size go through the network together, as many at once as a GPU takes. All
        results are in memory at the same time.

        Args:
            images: of any kinds and sizes.
            progress: see `restore`.
            squeeze: see `restore`.

        Raises as `restore`.
        """
        unpacked = [unpack(image) for image in images]
        parts = [part for given, _ in unpacked for part in given]
        for part in parts:
            if not isinstance(part, Image):
                _value_range(part, squeeze)
        label = self.name if len(images) == 1 else f"{self.name}, {len(images)} images"
        with reporting(progress, label) as report:
            results = iter(self._restore_parts(parts, squeeze, report))
        return [pack(list(islice(results, len(given)))) for given, pack in unpacked]

    def _restore_parts(self, parts: Sequence[Part], squeeze: bool, report: Progress) -> list[Part]:
        """Restore arrays, those of one size together, and images with transparency."""
        groups: dict[Any, list[int]] = {}
        for i, part in enumerate(parts):
            alike = i if isinstance(part, Image) else (part.shape, part.dtype)
            groups.setdefault(alike, []).append(i)
        pixels = [_plane(part).shape[0] * _plane(part).shape[1] for part in parts]
        results: dict[int, Part] = {}
        before = 0.0
        for members in groups.values():
            share = sum(pixels[i] for i in members) / sum(pixels)

            def inner(done: float, before: float = before, share: float = share) -> None:
                report(min(1.0, round(before + share * done, 9)))

            first = parts[members[0]]
            if isinstance(first, Image):
                results[members[0]] = self.restore_image(first, inner)
            else:
                arrays = [_plane(parts[i]) for i in members]
                results |= zip(members, self._restore_arrays(arrays, inner, squeeze), strict=True)
            before += share
        return [results[i] for i in range(len(parts))]

    def _restore_arrays(
        self, images: Sequence[Array], progress: Progress, squeeze: bool = True
    ) -> list[Array]:
        """Restore arrays of one shape and type, see `restore`."""
        ranged = [(image, *_value_range(image, squeeze)) for image in images]
        height, width, *rest = images[0].shape
        tiles = self.plan(height, width, images[0].itemsize)
        counter = Counter(self.model, progress)
        results = []
        with counter, closing(self._outputs(ranged, tiles, counter)) as outputs:
            for image, low, full in ranged:
                result = scratch.allocate(
                    (self.scale * height, self.scale * width, *rest), image.dtype
                )
                row = 0
                own = islice(outputs, len(tiles.boxes))
                for strip in self._strips(image, low, full, tiles, own):
                    result[row : row + len(strip)] = strip
                    row += len(strip)
                    scratch.release(image, result)
                results.append(result)
        return results

    def _strips(
        self,
        image: Array,
        low: float,
        full: float,
        tiles: tiling.TilePlan,
        outputs: Iterator[Array],
    ) -> Generator[Array, None, None]:
        """The restored rows, from top to bottom, from the network's result for each tile."""
        rows, columns = self.scale * image.shape[0], self.scale * image.shape[1]
        for strip in tiling.merge_rows(tiles, outputs, self.scale):
            strip = strip[:rows, :columns, 0] if image.ndim == 2 else strip[:rows, :columns]
            rows -= len(strip)
            strip.clip(0, 1, out=strip)
            strip *= np.float32(full)
            strip += np.float32(low if image.dtype == np.float32 else 0.5)
            yield strip.astype(image.dtype, copy=False)
            # Or it would stay in memory while the next one is made.
            del strip

    def _outputs(
        self,
        images: Sequence[tuple[Array, float, float]],
        tiles: tiling.TilePlan,
        counter: Counter,
    ) -> Generator[Array, None, None]:
        """The network's result for each tile of each image with its range, in order.

        On a GPU the next batch is begun before the results of one are handed out.
        """
        boxes = [(image, place) for image in images for place in tiles.boxes]
        size = self._batch(tiles)
        begun: deque[_Batch] = deque()
        for i in range(0, len(boxes), size):
            some = boxes[i : i + size]
            crops = np.stack(
                [
                    (_crop(image, tiles, place, self.config.padding) - np.float32(low))
                    / np.float32(full)
                    for (image, low, full), place in some
                ]
            )
            places = [place for _, place in some]
            batch = _Batch(crops, places, len(places) / len(boxes), self.dtype)
            begun.append(self._start(batch, counter))
            if len(begun) > self.runner.ahead:
                yield from self._finish(begun.popleft(), counter)
        for batch in begun:
            yield from self._finish(batch, counter)

    def _batch(self, tiles: tiling.TilePlan) -> int:
        """How many tiles to compute at once: enough to fill a GPU, if they fit into memory."""
        pixels = tiles.tile_height * tiles.tile_width
        most = min(self.largest_batch, BATCH_PIXELS // pixels)
        if most <= 1:
            return 1
        fitting = int(self._budget() // (self.bytes_per_pixel() * pixels))
        return max(1, min(most, fitting))

    def _start(self, batch: "_Batch", counter: Counter) -> "_Batch":
        """Start the network on a batch, unless the batch does not fit into memory."""
        count, height, width, _ = batch.crops.shape
        if count > self.largest_batch or max(height, width) > self.largest_tile:
            return batch
        before = counter.begin(batch.share)
        try:
            batch.wait = self.runner.start(batch.crops, batch.dtype)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if count == 1 and max(height, width) <= MIN_TILE:
                raise MemoryLimitError(
                    f"out of memory on {self.device} even with tiles of {max(height, width)}"
                    " pixels; close other programs or choose another `device`"
                ) from error
        else:
            counter.end()
            return batch
        counter.done = before
        if count > 1:
            self.largest_batch = count // 2
            log.warning(
                "out of memory on %s: going on with %d tiles at once",
                self.device,
                self.largest_batch,
            )
        else:
            self.largest_tile = max(MIN_TILE, max(height, width) // 2)
            log.warning(
                "out of memory on %s: going on with tiles of %d", self.device, self.largest_tile
            )
        if self.device.type == "cuda":
            # Only now: the error held tensors.
            torch.cuda.empty_cache()
        return batch

    def _finish(self, batch: "_Batch", counter: Counter) -> Array:
        """Wait for the network's result for a batch, (n,sh,sw,c).

        A batch that did not fit into memory is computed part by part.
        """
        if batch.wait is None:
            return self._in_parts(batch, counter)
        results = batch.wait()
        for i in np.flatnonzero(~np.isfinite(results).all((1, 2, 3))):
            results[i] = self._in_full_precision(batch, int(i), counter)
        return results

    def _in_parts(self, batch: "_Batch", counter: Counter) -> Array:
        count, height, width, _ = batch.crops.shape

        def part(crops: Array, places: list[tuple[int, int]], share: float) -> Array:
            smaller = _Batch(crops, places, batch.share * share, batch.dtype)
            return self._finish(self._start(smaller, counter), counter)

        if count > 1:
            size = self.largest_batch if count > self.largest_batch else 1
            spans = [slice(i, i + size) for i in range(0, count, size)]
            parts = [
                part(batch.crops[s], batch.places[s], len(batch.places[s]) / count) for s in spans
            ]
            return np.concatenate(parts)
        overlap, multiple = min(self.tile_overlap, self.largest_tile // 2), self.config.multiple
        tiles = tiling.plan(height, width, self.largest_tile, overlap, multiple)
        top, left = batch.places[0]
        results = (
            part(
                batch.crops[:, y : y + tiles.tile_height, x : x + tiles.tile_width],
                [(top + y, left + x)],
                1 / len(tiles.boxes),
            )[0]
            for y, x in tiles.boxes
        )
        return tiling.merge(tiles, results, self.scale)[None]

    def _in_full_precision(self, batch: "_Batch", index: int, counter: Counter) -> Array:
        """Compute one tile of a batch again in float32, if its result is not finite: (sh,sw,c)."""
        place, (height, width) = batch.places[index], batch.crops.shape[1:3]
        if batch.dtype == torch.float32:
            raise RestorationError(
                f"{self.name} gave NaN or infinite values for the tile of {width}x{height} pixels"
                f" at ({place[1]}, {place[0]}); its weights may be damaged: try another `model`"
            )
        if not self._overflowed:
            log.warning(
                "%s gave NaN or infinite values in %s: these tiles are computed again in fp32",
                self.name,
                batch.dtype,
            )
        self._overflowed = True
        alone = _Batch(batch.crops[index : index + 1], [place], 0.0, torch.float32)
        return self._finish(self._start(alone, counter), counter)[0]

    def restore_image(self, image: Image, progress: Progress | bool | None = None) -> Image:
        """Restore a picture and its transparency; all else that it holds is carried over.

        The colour under transparent pixels takes no part: it is first replaced by that of their
        visible neighbours, so that no fringe appears. Transparency is resized, or with
        `alpha="model"` restored as a gray image where the resized one is neither 0 nor full.

        Raises as `restore`.
        """
        with reporting(progress, self.name) as report:
            return each_frame(image, self._restore_frame, report)

    def _restore_frame(self, image: Image, progress: Progress) -> Image:
        if image.alpha is None:
            return replace(image, pixels=self.restore(image.pixels, progress))
        by_model = self.alpha == "model" and image.alpha.min() < image.alpha.max()
        pixels = fill_transparent(image.pixels, image.alpha)
        pixels = self.restore(pixels, (lambda share: progress(share / 2)) if by_model else progress)
        alpha = resized(image.alpha, *pixels.shape[:2])
        if by_model:
            restored = self.restore(image.alpha, lambda share: progress(0.5 + share / 2))
            # A network hardly ever gives exactly nothing or everything.
            ends = 0, WHITE[alpha.dtype]
            alpha = in_bands(
                lambda a, b: np.select([np.isin(a, ends)], [a], b), alpha.dtype, alpha, restored
            )
        return replace(image, pixels=pixels, alpha=alpha)


def load_restorer(
    name_or_file: str | Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    tile: str | int = "auto",
    tile_overlap: int = TILE_OVERLAP,
    memory_limit: int | None = None,
    ensemble: bool = False,
    alpha: str = "model",
    dtype: str = "auto",
    graphs: int = GRAPHS,
    seed: int | None = None,
) -> Restorer:
    """Load a model by its name or from a checkpoint file and make it ready on a device.

    Args:
        name_or_file: such as "tiny-x4" (fetched if it is neither bundled nor in the cache), a
            .safetensors, .pth or .pt file of any published form, or hf:OWNER/REPO[/FILE] on
            Hugging Face (with the extra mambair[hub]).
        device: see `Options`.
        backend: see `Options`.
        tile: see `Options`.
        tile_overlap: see `Options`.
        memory_limit: see `Options`.
        ensemble: see `Options`.
        alpha: see `Options`.
        dtype: see `Options`.
        graphs: see `Options`.
        seed: see `Options`.

    Raises:
        CallError: there is no such model, file, device or back end, or an option is wrong.
        CheckpointError: the file is damaged, unsafe or of another network.
        DownloadError: it cannot be fetched.
        BackendError: the device or back end cannot run here.
    """
    model, _ = load_network(find_checkpoint(name_or_file))
    options = Options(
        device, backend, tile, tile_overlap, memory_limit, ensemble, alpha, dtype, graphs, seed
    )
    return Restorer(model, str(name_or_file), options)


def _value_range(image: Array, squeeze: bool = True) -> tuple[float, float]:
    """Return the value that becomes 0 for the network, and its distance to the one that becomes 1.

    Raises:
        ValueError: this is no image.
    """
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype not in WHITE or not fits or not image.size:
        raise ValueError(
            "expected H x W or H x W x 3 of uint8, uint16 or float32,"
            f" got {image.dtype} {image.shape}"
        )
    if image.dtype != np.float32:
        return 0.0, WHITE[image.dtype]
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("the image holds NaN or infinite values")
    if not squeeze:
        return 0.0, 1.0
    return min(0.0, low), max(1.0, high) - min(0.0, low)


def _set_seed(model: Any, name: str, seed: int) -> None:
    """Let a network draw its routing at random. Raises CallError if it has none to draw."""
    if not hasattr(model, "seed"):
        raise CallError(f"{name} draws nothing at random, only MambaIRv2 does; leave out `seed`")
    model.seed = seed


def _plane(part: Part) -> Array:
    """The pixels, without their transparency."""
    return part.pixels if isinstance(part, Image) else part


def _parse_tile(tile: str | int, overlap: int) -> str | int:
    if overlap < 0:
        raise CallError(f"`tile_overlap` cannot be negative, got {overlap}")
    if tile in ("auto", "off"):
        return tile
    if not str(tile).isdecimal() or int(tile) == 0:
        raise CallError(f"`tile` must be auto, off or a number of pixels, not {tile!r}")
    if int(tile) <= overlap:
        raise CallError(
            f"a tile of {tile} pixels must be larger than the overlap of {overlap} (`tile_overlap`)"
        )
    return int(tile)


def _computed_pixels(tiles: tiling.TilePlan) -> int:
    """Count the pixels of all tiles; those that two tiles share count twice."""
    return len(tiles.boxes) * tiles.tile_height * tiles.tile_width


def _sides(length: int, least: int) -> list[int]:
    """List the sides of tiles to try, from the whole length down to the least."""
    sides = [length]
    while sides[-1] > least:
        sides.append(max(least, int(0.8 * sides[-1])))
    return sides


def resized(pixels: Array, height: int, width: int) -> Array:
    """Resize by antialiased bicubic; its overshoot is clipped to the range of the pixels."""
    if pixels.shape[:2] == (height, width):
        return pixels
    result = bicubic(pixels, height, width)
    if pixels.dtype == np.float32:
        low, high = min(0, pixels.min()), max(1, pixels.max())
        return in_bands(lambda band: band.clip(low, high), result.dtype, result)
    return result


@dataclass
class _Batch:
    """Tiles of one size on their way through the network.

    Attributes:
        crops: (n,h,w,c) float32.
        places: (top, left) of each.
        share: of the work.
        dtype: of convolutions and linear layers.
        wait: gives the results; None if the network has not begun, as they do not fit into memory.
    """

    crops: Array
    places: list[tuple[int, int]]
    share: float
    dtype: torch.dtype
    wait: Wait | None = None


def _crop(image: Array, tiles: tiling.TilePlan, place: tuple[int, int], padding: Padding) -> Array:
    """Cut out one tile, (tile_height,tile_width,c) float32, mirrored beyond the image."""
    top, left = place
    crop = image[top : top + tiles.tile_height, left : left + tiles.tile_width]
    crop = crop.reshape(*crop.shape[:2], -1).astype(np.float32)
    missing = [(0, tiles.tile_height - len(crop)), (0, tiles.tile_width - crop.shape[1]), (0, 0)]
    return np.pad(crop, missing, mode=padding)
