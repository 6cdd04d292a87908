"""From an image to a restored image: device, memory, tiles, precision; `load_restorer` is the way in."""

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import runtime, tiling
from .archs.ss2d import SS2D, use_backend
from .errors import BackendError, CallError, MemoryLimitError
from .image_io import Image
from .ops import resolve_backend
from .resize import bicubic
from .weights import find_checkpoint, load_network

Array = NDArray[Any]
Progress = Callable[[float], None]

TILE_OVERLAP = 32  # pixels of the input; a quarter of it is cut off at each edge
MIN_TILE = 64
MEMORY_SHARE = 0.6  # of what is free now
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


class Restorer:
    """A network ready to restore images of any size on one device.

    Attributes:
        model: the plain module, (B,C,H,W) float in [0,1] in, (B,C,sH,sW) float out.
        name: of the model or file. scale: s. device, backend: where and by which scan it runs.
    """

    def __init__(
        self, model: nn.Module, name: str, *, device: str, backend: str, tile: str | int, tile_overlap: int
    ):
        self.device = resolve_device(device)
        if self.device.type == "cpu":
            runtime.keep_freed_memory()
        self.backend = resolve_backend(backend, self.device.type).name
        self.model, self.name = model.to(self.device).eval(), name
        self.config = cast(Any, model.config)
        self.scale: int = self.config.upscale
        self.tile, self.tile_overlap = _parse_tile(tile, tile_overlap), tile_overlap
        use_backend(model, self.backend)

    def bytes_per_pixel(self) -> int:
        """Estimated peak memory of the network for each pixel of a tile."""
        c = self.config
        C, D, N, M = c.embed_dim, c.inner, c.d_state, -(-c.embed_dim // 16) + 2 * c.d_state
        scan = 4 * D + 4 * M  # x, z, two planes, x_dbl
        if self.backend == "reference":  # x, dt, both in chunks, y and its sums; B, C; four buffers of states
            scan += 4 * (8 * D + 4 * N) + 4 * 4 * N * D // 32
        tail = {"pixelshuffle": 2 * 64 * c.upscale**2, "pixelshuffledirect": 9 * c.upscale**2, "": 9}
        return int(4 * 1.25 * (6 * C + max(scan, 4 * C, tail[c.upsampler])))

    def plan(self, height: int, width: int) -> tiling.TilePlan:
        """The tiles for an image of this size: one where it fits into memory, unless a size was asked for.

        Raises MemoryLimitError where not even a small tile fits; CallError for a tile not above the overlap.
        """
        if self.tile == "off":
            return tiling.plan(height, width, max(height, width), 0)
        if isinstance(self.tile, int):
            return tiling.plan(height, width, self.tile, self.tile_overlap)
        canvas = 4 * 4 * height * width * self.scale**2  # RGB in float32 and the finished integers
        budget = MEMORY_SHARE * free_memory(self.device) - (canvas if self.device.type == "cpu" else 0)
        pixels = budget / self.bytes_per_pixel()
        if height * width <= pixels:
            return tiling.plan(height, width, max(height, width), 0)
        side = int(max(pixels, 0) ** 0.5)
        if side < self.tile_overlap + MIN_TILE:
            raise MemoryLimitError(
                f"an image of {width}x{height} does not fit: {free_memory(self.device) / 2**30:.1f} GiB of"
                " memory are free; close other programs or give --tile 64"
            )
        return tiling.plan(height, width, side, self.tile_overlap)

    def restore(self, image: Array, progress: Progress | None = None) -> Array:
        """Restore H x W or H x W x 3 of uint8, uint16 or float32 in [0,1]: the same type, s times as large.

        Networks of three channels see gray as three equal ones, averaged afterwards; networks of one channel
        see colours one by one. `progress` is called with the share done, from 0 to 1.

        Raises ValueError (another shape or type), MemoryLimitError.
        """
        fits = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype not in (*FULL, np.float32) or not fits or not image.size:
            raise ValueError(
                f"expected H x W or H x W x 3 of uint8, uint16 or float32, got {image.dtype} {image.shape}"
            )
        full = FULL.get(image.dtype, 1)
        planes = image[:, :, None] if image.ndim == 2 else image
        tiles = self.plan(*image.shape[:2])
        try:
            with closing(self._outputs(planes, full, tiles, progress or (lambda share: None))) as outputs:
                result = tiling.merge(tiles, outputs, self.scale)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            smaller = max(MIN_TILE, max(tiles.tile_height, tiles.tile_width) // 2)
            raise MemoryLimitError(f"out of memory on {self.device}; try --tile {smaller}") from error
        if image.ndim == 2:
            result = result[:, :, 0]
        np.clip(result, 0, 1, out=result)
        return result if full == 1 else (result * full + 0.5).astype(image.dtype)

    def _outputs(
        self, planes: Array, full: int, tiles: tiling.TilePlan, progress: Progress
    ) -> Generator[Array, None, None]:
        """The network's result for each tile, (sh, sw, channels of planes) float32."""
        channels, s = planes.shape[2], self.scale
        with torch.inference_mode(), _count_blocks(self.model, len(tiles.boxes), progress):
            for top, left in tiles.boxes:
                crop = planes[top : top + tiles.tile_height, left : left + tiles.tile_width]
                pixels = np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)  # (c,h,w)
                tensor = torch.from_numpy(pixels / np.float32(full)).to(self.device)
                if self.config.in_chans == 1:
                    out = self.model(tensor[:, None])[:, 0]
                else:
                    out = self.model(tensor.expand(3, -1, -1)[None])[0]
                    out = out if channels == 3 else out.mean(0, keepdim=True)
                yield (
                    out.reshape(channels, s * tiles.tile_height, s * tiles.tile_width)
                    .permute(1, 2, 0)
                    .cpu()
                    .numpy()
                )

    def restore_image(
        self, image: Image, scale: float | None = None, progress: Progress | None = None
    ) -> Image:
        """Restore a picture with its transparency (which is resized bicubically); its metadata stay as they are.

        Args:
            image: as read by `read_image`.
            scale: of the result, at most the network's (the default); a smaller one is reached from the
                network's result by antialiased bicubic.
            progress: as in `restore`.

        Raises as `restore`; CallError where the network does not reach the scale.
        """
        if scale is not None and scale > self.scale:
            raise CallError(
                f"{self.name} enlarges {self.scale} times, not {scale:g}; choose another model with -m"
            )
        height, width = (max(1, round(side * (scale or self.scale))) for side in image.pixels.shape[:2])
        pixels = _resized(self.restore(image.pixels, progress), height, width)
        alpha = None if image.alpha is None else _resized(image.alpha, height, width)
        return replace(image, pixels=pixels, alpha=alpha)


def load_restorer(
    name_or_file: str | Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    tile: str | int = "auto",
    tile_overlap: int = TILE_OVERLAP,
) -> Restorer:
    """Load a model by its name or from a checkpoint file and make it ready on a device.

    Args:
        name_or_file: such as "tiny-x4", or a .safetensors, .pth or .pt file of any published MambaIR form.
        device: auto, cpu, cuda, cuda:N or mps.
        backend: of the scan; auto, numba or reference.
        tile: auto (by the free memory), off (whole image) or the largest side of a tile in input pixels.
        tile_overlap: pixels that neighbouring tiles share.

    Raises:
        CallError: no such model, file, device or back end. CheckpointError: the file is damaged, unsafe or of
        another network. BackendError: the device or back end cannot run here.
    """
    path = find_checkpoint(name_or_file)
    model, _ = load_network(path)
    return Restorer(
        model, str(name_or_file), device=device, backend=backend, tile=tile, tile_overlap=tile_overlap
    )


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


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("allocate memory", "out of memory"))  # on CPU, on MPS


def _resized(pixels: Array, height: int, width: int) -> Array:
    if pixels.shape[:2] == (height, width):
        return pixels
    resized = bicubic(pixels, height, width)
    return resized.clip(0, 1) if resized.dtype == np.float32 else resized


class _count_blocks:
    """Within it, reports the share of the network's blocks that have run, over all tiles."""

    def __init__(self, model: nn.Module, tiles: int, progress: Progress):
        self.scans = [m for m in model.modules() if isinstance(m, SS2D)]
        self.total, self.done, self.progress = tiles * len(self.scans), 0, progress

    def __enter__(self) -> None:
        self.handles = [m.register_forward_hook(self._step) for m in self.scans]

    def _step(self, *_: object) -> None:
        self.done += 1
        self.progress(self.done / self.total)

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
