"""One process or many: what the loop asks of them is the interface of accelerate's Accelerator."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import BackendError, CallError
from ..system.devices import resolve_device

Precision = Literal["fp32", "bf16", "fp64"]
DEFAULT: Precision = "fp32"


class SingleProcess:
    """The part of an Accelerator that the loop uses, for one process."""

    num_processes, process_index, is_main_process = 1, 0, True

    def __init__(self, device: torch.device, bf16: bool):
        self.device, self.bf16 = device, bf16

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on the device."""
        return model.to(self.device)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which gradients are added up, but not shared."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which the network runs in the precision that was asked for."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add up gradients."""
        loss.backward()

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        """The mean over all processes."""
        return values

    def wait_for_everyone(self) -> None:
        """Wait until all processes are here."""


def processes_here() -> int:
    """How many processes of this run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start(device: str, precision: str) -> Any:
    """The processes of this run: an Accelerator where torchrun or accelerate started several.

    Raises CallError for an unknown device or precision, BackendError for what is missing here.
    """
    known = get_args(Precision)
    if precision not in known:
        raise CallError(f"`precision` must be one of {', '.join(known)}, not {precision!r}")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SingleProcess(resolve_device(device), precision == "bf16")
    try:
        from accelerate import Accelerator
    except ImportError:
        raise BackendError(
            "several processes need accelerate: pip install 'mambair[train]'"
        ) from None
    on_cpu = resolve_device(device).type == "cpu"
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=on_cpu)
