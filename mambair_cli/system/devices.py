"""What this machine has: devices to compute on, and their memory."""

import contextlib
import os
from pathlib import Path

import torch

from ..errors import BackendError, CallError


def resolve_device(name: str) -> torch.device:
    """`auto` (the fastest there is), `cpu`, `cuda`, `cuda:N` or `mps` as a device that works here.

    Raises CallError for an unknown name, BackendError for a device this machine or PyTorch build lacks.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and (kind != "cuda" or not index.isdecimal())):
        raise CallError(f"unknown device {name!r}; there are auto, cpu, cuda, cuda:N and mps")
    if kind == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU is visible to it" if built else "this PyTorch is built without CUDA"
        raise BackendError(f"the device {name!r} cannot be used: {reason}; try --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise BackendError(
            f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)"
        )
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one GPU for each process
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise BackendError(
            "the device 'mps' cannot be used: it needs an Apple GPU; try --device cpu"
        )
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
    lacking = device.type == "mps" or (
        device.type == "cuda" and name == "bf16" and not torch.cuda.is_bf16_supported()
    )
    if name != "fp32" and lacking:
        raise BackendError(f"{device.type} does not compute in {name} here; try --dtype fp32")
    return types[name]


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now: of the GPU's memory, or of the system's within the process's limit."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # by PyTorch, for later
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (
        OSError,
        StopIteration,
    ):  # not Linux: assume that half of all memory is free, or else 4 GiB
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
    """Bytes that this process holds now, of the GPU's memory (in tensors) or of the system's."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux: what a process with torch holds at least
        return 2**29


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has held since `reset_peak_memory`, on a GPU also those kept for later."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux
        return used_memory(device)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(
            OSError
        ):  # not Linux, or not permitted: the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: Python's or NumPy's, or PyTorch's on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(
        words in str(error) for words in ("allocate memory", "out of memory")
    )  # on CPU, on MPS
