"""What this installation has and can use."""

import importlib.metadata
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..ops import BACKENDS
from ..system.devices import free_memory

PACKAGES = (
    "torch",
    "numba",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "typer",
    "rich",
    "safetensors",
    "platformdirs",
    "filelock",
)


def report() -> dict[str, Any]:
    """Versions by package, devices by name, for each back end why it cannot run (null where it can), and what to
    install to get faster (null where all that helps here is installed).
    """
    versions = {"mambair": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    free = free_memory(torch.device("cpu")) / 2**30
    cpu = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    devices = {"cpu": f"{cpu}, {free:.1f} GiB free"}
    for index in range(torch.cuda.device_count()):
        devices[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    if not torch.cuda.is_available():
        devices["cuda"] = "unavailable: " + (
            "no GPU is visible"
            if torch.version.cuda or torch.version.hip
            else "PyTorch is built without CUDA"
        )
    devices["mps"] = (
        "available" if torch.backends.mps.is_available() else "unavailable: it needs an Apple GPU"
    )
    fastest = "cuda" if torch.cuda.is_available() else "cpu"
    backends = {b.name: b.unavailable(fastest, torch.float32) for b in BACKENDS}
    return {
        "versions": versions,
        "devices": devices,
        "backends": backends,
        "faster": _faster(backends),
    }


def _faster(backends: dict[str, str | None]) -> str | None:
    """The command that installs what makes this machine faster; back ends come fastest first."""
    if not (torch.version.cuda or torch.version.hip) and _has_nvidia_gpu():
        version = torch.__version__.partition("+")[0]
        index = (
            " --index-url https://download.pytorch.org/whl/cu126"
            if platform.system() == "Windows"
            else ""
        )
        return f"pip install --force-reinstall torch=={version}{index}"
    for reason in backends.values():
        if reason is None:
            return None
        if missing := re.match(r"([\w-]+) is not installed", reason):
            return f"pip install {missing[1]}"
    return None


def _has_nvidia_gpu() -> bool:
    """Whether the driver of one is there, whatever PyTorch was built for."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
