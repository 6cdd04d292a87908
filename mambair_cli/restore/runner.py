"""Batches of tiles through a network on one device.

Precision, symmetries, transfers, recorded kernels, progress.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..archs.layers import Block
from .graphs import Graphs
from .options import GRAPHS

Array = NDArray[Any]
Wait = Callable[[], Array]
Progress = Callable[[float], None]

TRANSFORMS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]


class Runner:
    """A network that takes and gives arrays.

    On a GPU it computes on while the caller does something else.

    Args:
        model: the plain module, (B,C,H,W) float in [0,1] in, (B,C,sH,sW) float out.
        device: where it runs; a GPU of NVIDIA or AMD gets convolutions in channels-last layout.
        ensemble: average over the eight symmetries, MambaIR+ (section 4.2).
        graphs: shapes that are recorded at the same time, see `options.GRAPHS`.

    Attributes:
        ahead: how many batches to start before waiting for the result of one, so that the device
            always has work.
        copies: the stream on which results come back from a GPU while it computes; None elsewhere.
        graphs: recorded calls of the network, used where `graphs.limit` allows any.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, ensemble: bool = False, graphs: int = GRAPHS
    ):
        self.model, self.device, self.ensemble = model.to(device).eval(), device, ensemble
        self.channels: int = model.config.in_chans  # type: ignore[union-attr, assignment]
        self.copies: torch.cuda.Stream | None = None
        self.ahead = 0
        self.graphs = Graphs(self._compute, graphs)
        if device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.copies, self.ahead = torch.cuda.Stream(device), 1

    @torch.inference_mode()
    def start(self, crops: Array, dtype: torch.dtype) -> Wait:
        """Let the network begin with (n,h,w,c) float32.

        What is returned waits for the result, (n,sh,sw,c). Convolutions and linear layers run in
        `dtype`. Networks of three channels see gray as three equal ones, averaged afterwards;
        networks of one channel see colours one by one.
        """
        count, channels = len(crops), crops.shape[3]
        images = self._upload(np.ascontiguousarray(crops.transpose(0, 3, 1, 2)))
        if self.channels == 1:
            images = images.flatten(0, 1)[:, None]
        else:
            images = images.expand(-1, 3, -1, -1)
        total: Tensor | None = None
        for quarters, mirrored in TRANSFORMS if self.ensemble else TRANSFORMS[:1]:
            seen = torch.rot90(images.flip(3) if mirrored else images, quarters, (2, 3))
            out = torch.rot90(self.graphs(seen, dtype), -quarters, (2, 3))
            out = out.flip(3) if mirrored else out
            total = out if total is None else total + out
        assert total is not None
        if self.ensemble:
            total = total / len(TRANSFORMS)
        if self.channels == 1:
            total = total.unflatten(0, (count, channels))[:, :, 0]
        if total.shape[1] != channels:
            total = total.mean(1, keepdim=True)
        return self._download(total.permute(0, 2, 3, 1))

    def _compute(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            out: Tensor = self.model(images)
            return out

    def _upload(self, crops: Array) -> Tensor:
        images = torch.from_numpy(crops)
        if self.copies is not None:
            # From memory that the GPU can read while the CPU goes on.
            return images.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device)

    def _download(self, result: Tensor) -> Wait:
        if self.copies is None:
            return partial(_given, result.cpu().numpy())
        result = result.contiguous()
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            host.copy_(result, non_blocking=True)
            # Or its memory would be given to the next batch.
            result.record_stream(self.copies)
            arrived = self.copies.record_event()

        def wait() -> Array:
            arrived.synchronize()
            return host.numpy()

        return wait


def _given(result: Array) -> Array:
    return result


class Counter:
    """Counts the share of the work that is done, block by block of the network, and reports it."""

    def __init__(self, model: nn.Module, report: Progress):
        self.blocks = [m for m in model.modules() if isinstance(m, Block)]
        self.report = report
        self.done = self.step = self.goal = 0.0

    def begin(self, share: float) -> float:
        """Let the next run of the network count as this share; returns what is done before it."""
        self.step, self.goal = share / max(1, len(self.blocks)), self.done + share
        return self.done

    def end(self) -> None:
        """The run is over; a recorded one ends without a word from its blocks."""
        before, self.done = self.done, self.goal
        if round(before, 9) < round(self.goal, 9):
            self._tell()

    def __enter__(self) -> None:
        self.handles = [m.register_forward_hook(self._step) for m in self.blocks]

    def _step(self, *_: object) -> None:
        # At most the goal, as a run that is recorded warms up before.
        self.done = min(self.done + self.step, self.goal)
        self._tell()

    def _tell(self) -> None:
        # Rounded, or the last share would not be 1.
        self.report(min(1.0, round(self.done, 9)))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
