"""Calls of a network on a GPU that are recorded once for each shape and replayed (CUDA graphs).

A replay launches all kernels of a call at once. That saves time where they are many and short: on
small inputs.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..system.devices import is_out_of_memory
from .options import GRAPHS

log = logging.getLogger(__name__)

WARM_UP = 3
"""Calls that compile kernels and choose algorithms, which cannot be recorded."""


class Graphs:
    """A function of a tensor, recorded for the `limit` shapes that were used last.

    With a limit of 0 it is just called. The result of a replay is copied before the next one could
    overwrite it. If recording fails, the function is called from then on, after one warning;
    running out of memory is the caller's to handle.
    """

    def __init__(self, function: Callable[..., Tensor], limit: int = GRAPHS):
        self.function, self.limit = function, limit
        self._recorded: OrderedDict[
            tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]
        ] = OrderedDict()

    def __call__(self, images: Tensor, *settings: Any) -> Tensor:
        """Call the function; its settings are no tensors."""
        if not self.limit:
            return self.function(images, *settings)
        key = (images.shape, images.dtype, *settings)
        if key not in self._recorded:
            try:
                self._record(key, images, settings)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self.limit = 0
                self._recorded.clear()
                log.warning("CUDA graphs are not used: %s", str(error).splitlines()[0])
                return self.function(images, *settings)
        self._recorded.move_to_end(key)
        graph, source, result = self._recorded[key]
        source.copy_(images, non_blocking=True)
        graph.replay()
        return result.clone()

    def _record(self, key: tuple[Any, ...], images: Tensor, settings: tuple[Any, ...]) -> None:
        while len(self._recorded) >= self.limit:
            self._recorded.popitem(last=False)
        source = images.clone()
        here, aside = torch.cuda.current_stream(images.device), torch.cuda.Stream(images.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.function(source, *settings)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The stream is one of the right GPU.
        with torch.cuda.graph(graph, stream=aside):
            result = self.function(source, *settings)
        self._recorded[key] = graph, source, result
