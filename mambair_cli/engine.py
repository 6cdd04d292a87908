"""From an image to a restored image: device, memory, tiles, precision; `load_restorer` is the way in."""

import logging
import math
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import runtime, tiling
from .archs.ss2d import SS2D, use_backend
from .errors import BackendError, CallError, MemoryLimitError, RestorationError
from .image_io import Image
from .ops import resolve_backend
from .registry import find_models
from .resize import Size, bicubic
from .weights import find_checkpoint, load_network

log = logging.getLogger(__name__)
Array = NDArray[Any]
Progress = Callable[[float], None]

TILE_OVERLAP = 32  # pixels of the input; a quarter of it is cut off at each edge
MIN_TILE = 64
LARGEST_TILE = 2**31
MEMORY_SHARE = 0.6  # of what is free now
MEMORY_ERROR = 1.25  # the estimate may be this much too low (`mambair bench memory`)
TRANSFORMS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]
FULL = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def resolve_device(name: str) -> torch.device:
    """`auto` (the fastest there is), `cpu`, `cuda`, `cuda:N` or `mps` as a device that works here.

    Raises CallError for an unknown name, BackendError for a device this machine or PyTorch build lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise CallError(f"unknown device {name!r}; there are auto, cpu, cuda, cuda:N and mps")
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU is visible to it" if built else "this PyTorch is built without CUDA"
        raise BackendError(f"the device {name!r} cannot be used: {reason}; try --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise BackendError(f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU for each process
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BackendError("the device 'mps' cannot be used: it needs an Apple GPU; try --device cpu")
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` (fp16 on a GPU of NVIDIA or AMD, fp32 elsewhere), `fp32`, `fp16` or `bf16` as a type that works there.

    Raises CallError for an unknown name, BackendError for a type that the device lacks.
    """
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name not in types:
        raise CallError(f"--dtype must be auto, {', '.join(types)}, not {name!r}")
    lacking = device.type == "mps" or (device.type == "cuda" and name == "bf16" and not torch.cuda.is_bf16_supported())
    if name != "fp32" and lacking:
        raise BackendError(f"{device.type} does not compute in {name} here; try --dtype fp32")
    return types[name]


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now: of the GPU's memory, or of the system's within the process's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: assume that half of all memory is free, or else 4 GiB
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages > 0 else 4 * 2**30
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        parts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cache = int(parts["inactive_file"])  # counts as used, but is given back on demand
    except (OSError, ValueError, KeyError):  # no limit
        return free
    return max(0, min(free, limit - used + cache))


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds now, of the GPU's memory or of the system's."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: what a process with torch holds at least
        return 2**29


@dataclass(frozen=True)
class Options:
    """How to restore.

    device: auto, cpu, cuda, cuda:N or mps. backend: of the scan; auto or a name of `ops.BACKENDS`.
    tile: auto (by the free memory), off (whole image) or the largest side of a tile in input pixels.
    tile_overlap: input pixels that neighbouring tiles share. memory_limit: bytes that the process (on a GPU:
    of its memory) may take. ensemble: average over the eight symmetries, MambaIR+ (section 4.2), 8 times the
    work. alpha: how transparency is enlarged; model or bicubic. dtype: of convolutions and linear layers; auto, fp32,
    fp16 or bf16.
    """

    device: str = "auto"
    backend: str = "auto"
    tile: str | int = "auto"
    tile_overlap: int = TILE_OVERLAP
    memory_limit: int | None = None
    ensemble: bool = False
    alpha: str = "model"
    dtype: str = "auto"


class Restorer:
    """A network ready to restore images of any size on one device.

    Attributes:
        model: the plain module, (B,C,H,W) float in [0,1] in, (B,C,sH,sW) float out.
        name: of the model or file. scale: s. device, backend, dtype: where, by which scan and in
        which precision (of convolutions and linear layers) it runs.
    """

    def __init__(self, model: nn.Module, name: str, options: Options):
        self.device = resolve_device(options.device)
        if self.device.type == "cpu":
            runtime.keep_freed_memory()
        self.dtype = resolve_dtype(options.dtype, self.device)
        self.backend = resolve_backend(options.backend, self.device.type).name
        self.model, self.name = model.to(self.device).eval(), name
        self.config = cast(Any, model.config)
        self.scale: int = self.config.upscale
        self.tile, self.tile_overlap = _parse_tile(options.tile, options.tile_overlap), options.tile_overlap
        if options.alpha not in ("model", "bicubic"):
            raise CallError(f"--alpha must be model or bicubic, not {options.alpha!r}")
        self.memory_limit, self.ensemble, self.alpha = options.memory_limit, options.ensemble, options.alpha
        self._largest = LARGEST_TILE  # halved whenever memory runs out
        use_backend(model, self.backend)
        if self.memory_limit and self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.memory_limit / total), self.device)

    def bytes_per_pixel(self) -> int:
        """Estimated peak memory of the network for each pixel of a tile (`mambair bench memory` measures it)."""
        c = self.config
        C, D, N, M = c.embed_dim, c.inner, c.d_state, -(-c.embed_dim // 16) + 2 * c.d_state
        scan = 4 * D + 4 * M  # x, z, two planes, x_dbl
        if self.backend in ("reference", "mamba-ssm"):  # sequences of x, dt, inputs; B, C; four buffers of states
            scan += 4 * (5 * D + 4 * N) + 4 * 4 * N * D // 32
        tail = {"pixelshuffle": 2 * 64 * c.upscale**2, "pixelshuffledirect": 9 * c.upscale**2, "": 9}
        return int(4 * 1.25 * (6 * C + max(scan, 4 * C, tail[c.upsampler])))

    def peak_memory(self, tiles: tiling.TilePlan, itemsize: int = 1) -> int:
        """Estimated bytes that restoring a colour image in these tiles takes; of a GPU, those of its memory.

        The finished image counts with `itemsize` bytes a sample: 0 where it is handed out in strips.
        """
        network = self.bytes_per_pixel() * tiles.tile_height * tiles.tile_width
        if self.device.type != "cpu":
            return network
        band = tiles.tile_height * tiles.width * self.scale**2 * 3
        return network + 3 * 4 * band + tiles.height * tiles.width * self.scale**2 * 3 * itemsize

    def plan(self, height: int, width: int, itemsize: int = 1) -> tiling.TilePlan:
        """The tiles for an image of this size: one where it fits into memory, unless a size was asked for.

        Raises MemoryLimitError where not even small tiles fit; CallError for a tile not above the overlap.
        """
        if self.tile == "off":
            return tiling.plan(height, width, max(height, width), 0)
        if isinstance(self.tile, int):
            return tiling.plan(height, width, self.tile, self.tile_overlap)
        budget = self._budget()
        least = self.tile_overlap + MIN_TILE
        plans = []
        for rows in _sides(height, least):
            for columns in _sides(width, least):
                tiles = tiling.plan(height, width, (max(rows, least), max(columns, least)), self.tile_overlap)
                if self.peak_memory(tiles, itemsize) <= budget:
                    plans.append(tiles)
                    break
        if plans:  # the one that computes the fewest pixels twice
            return min(plans, key=lambda tiles: len(tiles.boxes) * tiles.tile_height * tiles.tile_width)
        raise MemoryLimitError(
            f"an image of {width}x{height} does not fit into {budget / 2**30:.2f} GiB of memory;"
            " close other programs, raise --memory-limit or give --tile 64"
        )

    def _budget(self) -> float:
        """Bytes that a run may take now."""
        free = MEMORY_SHARE * free_memory(self.device)
        if self.memory_limit is None:
            return free
        return min(free, (self.memory_limit - used_memory(self.device)) / MEMORY_ERROR)

    def restore(self, image: Array, progress: Progress | None = None) -> Array:
        """Restore H x W or H x W x 3 of uint8, uint16 or float32: the same type, s times as large.

        Networks of three channels see gray as three equal ones, averaged afterwards; networks of one channel
        see colours one by one. Integers are the range [0,1] of the network; floats that run beyond it are
        squeezed into it and stretched again. `progress` is called with the share done, from 0 to 1.

        Raises ValueError (another shape or type, not a number), MemoryLimitError, RestorationError.
        """
        low, full = _value_range(image)
        height, width = image.shape[:2]
        tiles = self.plan(height, width, image.itemsize)
        result = np.empty((self.scale * height, self.scale * width, *image.shape[2:]), image.dtype)
        row = 0
        with closing(self._strips(image, low, full, tiles, progress)) as strips:
            for strip in strips:
                result[row : row + len(strip)] = strip
                row += len(strip)
        return result

    def restore_rows(self, image: Array, progress: Progress | None = None) -> Generator[Array, None, None]:
        """As `restore`, in strips from top to bottom as they are finished: never the whole result at once."""
        low, full = _value_range(image)
        height, width = image.shape[:2]
        return self._strips(image, low, full, self.plan(height, width, 0), progress)

    def _strips(
        self, image: Array, low: float, full: float, tiles: tiling.TilePlan, progress: Progress | None
    ) -> Generator[Array, None, None]:
        counter = _Counter(self.model, progress or (lambda share: None))
        passes = len(TRANSFORMS) if self.ensemble else 1

        def outputs() -> Generator[Array, None, None]:
            share = 1 / len(tiles.boxes) / passes
            for top, left in tiles.boxes:
                crop = image[top : top + tiles.tile_height, left : left + tiles.tile_width]
                crop = crop.reshape(*crop.shape[:2], -1).astype(np.float32)
                yield self._restore_tile((crop - np.float32(low)) / np.float32(full), (top, left), counter, share)

        with counter, closing(outputs()) as results:
            for strip in tiling.merge_rows(tiles, results, self.scale):
                strip = strip[:, :, 0] if image.ndim == 2 else strip
                strip.clip(0, 1, out=strip)
                strip *= np.float32(full)
                strip += np.float32(low if image.dtype == np.float32 else 0.5)
                yield strip.astype(image.dtype, copy=False)
                del strip  # or it would stay in memory while the next one is made

    def _restore_tile(self, crop: Array, place: tuple[int, int], counter: "_Counter", share: float) -> Array:
        """(h,w,c) float32 -> (sh,sw,c); in smaller tiles where memory runs out, then and from then on."""
        height, width = crop.shape[:2]
        if max(height, width) > self._largest:
            tiles = tiling.plan(height, width, self._largest, min(self.tile_overlap, self._largest // 2))
            results = (
                self._restore_tile(
                    crop[y : y + tiles.tile_height, x : x + tiles.tile_width],
                    (place[0] + y, place[1] + x),
                    counter,
                    share / len(tiles.boxes),
                )
                for y, x in tiles.boxes
            )
            return tiling.merge(tiles, results, self.scale)
        before = counter.begin(share)
        try:
            result = self._apply(crop)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if max(height, width) <= MIN_TILE:
                raise MemoryLimitError(
                    f"out of memory on {self.device} even with tiles of {max(height, width)} pixels; close other"
                    " programs or use another --device"
                ) from error
            self._largest = max(MIN_TILE, max(height, width) // 2)
            log.warning("out of memory on %s: going on with tiles of %d", self.device, self._largest)
            counter.done = before
        else:
            if not np.isfinite(result).all():
                raise RestorationError(
                    f"{self.name} gave values that are no numbers for the tile of {width}x{height} pixels at"
                    f" ({place[1]}, {place[0]}); the weights may be damaged: try another model with -m"
                    + (", or --dtype fp32" if self.dtype != torch.float32 else "")
                )
            return result
        if self.device.type == "cuda":  # only now, as the error held tensors
            torch.cuda.empty_cache()
        return self._restore_tile(crop, place, counter, share)

    @torch.inference_mode()
    def _apply(self, crop: Array) -> Array:
        """The network's result for one tile; with `ensemble` the mean over the eight symmetries."""
        channels = crop.shape[2]
        image = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).to(self.device)  # (c,h,w)
        # (b,C,h,w): one channel at a time, or gray as three equal ones.
        image = image[:, None] if self.config.in_chans == 1 else image.expand(3, -1, -1)[None]
        total: torch.Tensor | None = None
        for quarters, mirrored in TRANSFORMS if self.ensemble else TRANSFORMS[:1]:
            seen = torch.rot90(image.flip(3) if mirrored else image, quarters, (2, 3))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                out = torch.rot90(self.model(seen), -quarters, (2, 3))
            out = out.flip(3) if mirrored else out
            total = out if total is None else total + out
        assert total is not None
        if self.ensemble:
            total = total / len(TRANSFORMS)
        planes = total[:, 0] if self.config.in_chans == 1 else total[0]
        planes = planes if len(planes) == channels else planes.mean(0, keepdim=True)
        return planes.permute(1, 2, 0).cpu().numpy()

    def restore_image(self, image: Image, progress: Progress | None = None) -> Image:
        """Restore a picture and its transparency; all else that it holds is carried over.

        What lies under transparent pixels takes no part: their colour is first replaced by that of their
        visible neighbours, so that no fringe appears. Transparency is restored as a gray image, or with
        `alpha="bicubic"` resized. Raises as `restore`.
        """
        if image.alpha is None:
            return replace(image, pixels=self.restore(image.pixels, progress))
        report = progress or (lambda share: None)
        by_model = self.alpha == "model" and image.alpha.min() < image.alpha.max()
        pixels = _fill_transparent(image.pixels, image.alpha)
        pixels = self.restore(pixels, (lambda share: report(share / 2)) if by_model else progress)
        if by_model:
            alpha = self.restore(image.alpha, lambda share: report(0.5 + share / 2))
        else:
            alpha = _resized(image.alpha, *pixels.shape[:2])
        return replace(image, pixels=pixels, alpha=alpha)


class Upscaler:
    """Restores pictures to any size: with the networks that reach it, then antialiased bicubic downwards.

    Attributes:
        restorers: the networks loaded so far, by name. device, backend: where and by which scan they run.
    """

    def __init__(self, model: str | Path | None, options: Options, task: str = "upscale"):
        """Load `model`, a name or a file, which repeats for factors above its own; None: the task's bundled ones."""
        self.model, self.options, self.task = model, options, task
        self.device = resolve_device(options.device)
        self.backend = resolve_backend(options.backend, self.device.type).name
        self.restorers: dict[str, Restorer] = {}
        if model:
            self._load(str(model))

    def chain(self, scale: float) -> list[Restorer]:
        """The networks to run one after the other. Raises CallError where none reach the factor."""
        if self.model is None:
            return [self._load(row.name) for row in find_models(self.task, scale)]
        restorer = self._load(str(self.model))
        if restorer.scale == 1 and scale > 1:
            raise CallError(f"{restorer.name} does not enlarge; choose another model with -m")
        return [restorer] * (max(1, math.ceil(round(math.log(scale, restorer.scale), 9))) if scale > 1 else 1)

    def _load(self, name: str) -> Restorer:
        if name not in self.restorers:
            self.restorers[name] = load_restorer(name, **asdict(self.options))
        return self.restorers[name]

    def tiles(self, size: Size, height: int, width: int) -> int:
        """How many tiles a picture of this height and width is cut into now, by all networks together."""
        count = 0
        for restorer in self.chain(size.factor(height, width)):
            count += len(restorer.plan(height, width).boxes)
            height, width = restorer.scale * height, restorer.scale * width
        return count

    def restore_image(self, image: Image, size: Size, progress: Progress | None = None) -> Image:
        """Restore a picture and all that belongs to it to a size.

        `progress` is called with the share done, from 0 to 1.
        Raises as `Restorer.restore_image`; CallError where no network reaches the size.
        """
        height, width = image.pixels.shape[:2]
        chain, report = self.chain(size.factor(height, width)), progress or (lambda share: None)
        height, width = size.of(height, width)
        work = np.cumprod([1, *(restorer.scale**2 for restorer in chain[:-1])])  # pixels each one sees
        for i, restorer in enumerate(chain):
            before, share = work[:i].sum() / work.sum(), work[i] / work.sum()
            image = restorer.restore_image(image, lambda part: report(round(before + share * part, 9)))  # noqa: B023
        alpha = None if image.alpha is None else _resized(image.alpha, height, width)
        return replace(image, pixels=_resized(image.pixels, height, width), alpha=alpha)


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
) -> Restorer:
    """Load a model by its name or from a checkpoint file and make it ready on a device.

    Args:
        name_or_file: such as "tiny-x4", or a .safetensors, .pth or .pt file of any published MambaIR form.
        device: see `Options`.
        backend: see `Options`.
        tile: see `Options`.
        tile_overlap: see `Options`.
        memory_limit: see `Options`.
        ensemble: see `Options`.
        alpha: see `Options`.
        dtype: see `Options`.

    Raises:
        CallError: no such model, file, device or back end. CheckpointError: the file is damaged, unsafe or of
        another network. BackendError: the device or back end cannot run here.
    """
    model, _ = load_network(find_checkpoint(name_or_file))
    options = Options(device, backend, tile, tile_overlap, memory_limit, ensemble, alpha, dtype)
    return Restorer(model, str(name_or_file), options)


def _value_range(image: Array) -> tuple[float, float]:
    """What becomes 0 for the network, and how far above it lies what becomes 1.

    Raises ValueError for what is no image.
    """
    fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype not in (*FULL, np.float32) or not fits or not image.size:
        raise ValueError(f"expected H x W or H x W x 3 of uint8, uint16 or float32, got {image.dtype} {image.shape}")
    if image.dtype != np.float32:
        return 0.0, float(FULL[image.dtype])
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("the image holds values that are no numbers")
    return min(0.0, low), max(1.0, high) - min(0.0, low)


def _parse_tile(tile: str | int, overlap: int) -> str | int:
    if overlap < 0:
        raise CallError(f"--tile-overlap cannot be negative, got {overlap}")
    if tile in ("auto", "off"):
        return tile
    if not str(tile).isdecimal() or int(tile) == 0:
        raise CallError(f"--tile must be auto, off or a number of pixels, not {tile!r}")
    if int(tile) <= overlap:
        raise CallError(
            f"a tile of {tile} pixels must be larger than the overlap of {overlap} (--tile-overlap)"
        )
    return int(tile)


def _sides(length: int, least: int) -> list[int]:
    """Of tiles to be tried, from the whole length down to the least."""
    sides = [length]
    while sides[-1] > least:
        sides.append(max(least, int(0.8 * sides[-1])))
    return sides


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("allocate memory", "out of memory"))  # on CPU, on MPS


def _resized(pixels: Array, height: int, width: int) -> Array:
    """By antialiased bicubic, whose overshoot stays in the range of the pixels."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = bicubic(pixels, height, width)
    return resized.clip(min(0, pixels.min()), max(1, pixels.max())) if pixels.dtype == np.float32 else resized


def _fill_transparent(pixels: Array, alpha: Array) -> Array:
    """Give what is fully transparent the colour of its visible neighbours, within 40 pixels of them."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return pixels
    weight: Array = alpha.astype(np.float32)
    colour: Array = pixels.astype(np.float32) * (weight if pixels.ndim == 2 else weight[:, :, None])
    filled = pixels.copy()
    for radius in (1, 3, 9, 27):  # the nearest colour that there is
        side = (2 * radius + 1, 2 * radius + 1)
        weight, colour = cv2.blur(weight, side), cv2.blur(colour, side)
        near = hidden & (weight > 1e-6 * FULL.get(alpha.dtype, 1))
        share = weight[near] if pixels.ndim == 2 else weight[near][:, None]
        filled[near] = colour[near] / share
        hidden &= ~near
    return filled


class _Counter:
    """Counts the share of the work that is done, block by block of the network, and reports it."""

    def __init__(self, model: nn.Module, report: Progress):
        self.scans = [m for m in model.modules() if isinstance(m, SS2D)]
        self.done, self.step, self.report = 0.0, 0.0, report

    def begin(self, share: float) -> float:
        """Let the next run of the network count as this share; returns what is done before it."""
        self.step = share / max(1, len(self.scans))
        return self.done

    def __enter__(self) -> None:
        self.handles = [m.register_forward_hook(self._step) for m in self.scans]

    def _step(self, *_: object) -> None:
        self.done += self.step
        self.report(min(1.0, round(self.done, 9)))  # or the last one would not be 1

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
