"""What this machine has: devices to compute on, and their memory."""

import contextlib
import os
from pathlib import Path

import psutil
import torch

from ..errors import BackendError, CallError
from . import memory


def resolve_device(name: str) -> torch.device:
    """The device of a name: `auto` (the fastest that there is), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        CallError: the name is unknown.
        BackendError: this machine or this build of PyTorch lacks the device.
    """
    if name == "auto":
        name = _fastest()
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise CallError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU is visible to it" if built else "this PyTorch is built without CUDA"
        raise BackendError(f"the device {name!r} cannot be used: {reason}; try `device=cpu`")
    if index and int(index) >= torch.cuda.device_count():
        raise BackendError(
            f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        # torchrun: one GPU for each process.
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BackendError(
            "the device 'mps' cannot be used: it needs an Apple GPU; try `device=cpu`"
        )
    return torch.device(name)


def _fastest() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of a name: `fp32`, `fp16`, `bf16`, or `auto`.

    `auto` is fp16 on a GPU of NVIDIA or AMD, and fp32 elsewhere.

    Raises:
        CallError: the name is unknown.
        BackendError: the device lacks the type.
    """
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name not in types:
        raise CallError(f"`dtype` must be auto, {', '.join(types)}, not {str(name)!r}")
    lacking = device.type == "mps" or (
        device.type == "cuda" and name == "bf16" and not torch.cuda.is_bf16_supported()
    )
    if name != "fp32" and lacking:
        raise BackendError(f"{device.type} does not compute in {name} here; try `dtype=fp32`")
    return types[name]


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now: of the GPU's memory, or the system's within a group's limit."""
    if device.type == "cuda":
        # What PyTorch keeps for later is free for us.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    return memory.free_memory()


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds now, of the GPU's memory (in tensors) or of the system's."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held since `reset_peak_memory`.

    On a GPU they include those kept for later; only Linux tells the peak of the system's memory.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return used_memory(device)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # If this is not Linux, or not permitted, the peak stays that of the whole process.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, NumPy or PyTorch says that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # On a CPU, on MPS, and in oneDNN.
    words = ("allocate memory", "out of memory", "could not create a primitive")
    return any(phrase in str(error) for phrase in words)
