"""`mambair doctor`: what this installation has and can use."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from .. import __version__
from ..models.cache import cache_folder
from .presets import read_presets
from .terminal import Json, print_json, show

PACKAGES = (
    "torch",
    "numba",
    "numpy",
    "pillow",
    "pillow-heif",
    "opencv-python-headless",
    "tifffile",
    "typer",
    "rich",
    "tqdm",
    "safetensors",
    "platformdirs",
    "filelock",
    "psutil",
)


EXAMPLES = "mambair doctor\nmambair doctor --json"


def doctor(as_json: Json = False) -> None:
    """Show what this installation can use, and what to install to make it faster."""
    facts = report()
    if as_json:
        print_json(facts)
        return
    versions = dict(facts["versions"])
    print(f"mambair {versions.pop('mambair')}, Python {versions.pop('python')}, {facts['system']}")
    print(f"Packages: {', '.join(f'{name} {text}' for name, text in versions.items())}")
    for name, text in facts["devices"].items():
        print(f"{name}: {text}")
    for name, reason in facts["backends"].items():
        print(f"Scan by {name}: {reason or 'available'}")
    show(f"Models and other fetched files: {facts['cache']}")
    for line in facts["presets"] or ["none"]:
        show(f"Presets: {line}")
    if facts["faster"]:
        print(f"This would make it faster: {facts['faster']}")
    else:
        print("Everything that helps here is installed.")


def _presets() -> list[str]:
    """The options that presets set, a line for each command and file."""
    return [
        f"{path}: [{command}] {', '.join(f'{key} = {json.dumps(v)}' for key, v in table.items())}"
        for path, tables in read_presets()
        for command, table in tables.items()
    ]


def report() -> dict[str, Any]:
    """What there is, as `mambair doctor` shows it.

    Returns:
        versions by package; devices by name; for each back end why it cannot run (None if it can);
        the system; the folder of fetched files; the presets in force; and the command that makes
        this machine faster (None if nothing is missing).
    """
    import torch

    from ..ops import BACKENDS
    from ..system.devices import free_memory

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
        built = torch.version.cuda or torch.version.hip
        reason = "no GPU is visible" if built else "PyTorch is built without CUDA"
        devices["cuda"] = f"unavailable: {reason}"
    apple = torch.backends.mps.is_available()
    devices["mps"] = "available" if apple else "unavailable: it needs an Apple GPU"
    fastest = "cuda" if torch.cuda.is_available() else "cpu"
    backends = {b.name: b.unavailable(fastest, torch.float32) for b in BACKENDS}
    return {
        "versions": versions,
        "devices": devices,
        "backends": backends,
        "system": f"{platform.system()} {platform.machine()}",
        "cache": str(cache_folder()),
        "presets": _presets(),
        "faster": _faster(backends),
    }


def _faster(backends: dict[str, str | None]) -> str | None:
    """The command that installs what makes this machine faster; back ends come fastest first."""
    import torch

    if not (torch.version.cuda or torch.version.hip) and _has_nvidia_gpu():
        version = torch.__version__.partition("+")[0]
        command = f"pip install --force-reinstall torch=={version}"
        if platform.system() == "Windows":
            command += " --index-url https://download.pytorch.org/whl/cu126"
        return command
    for reason in backends.values():
        if reason is None:
            return None
        if missing := re.match(r"([\w-]+) is not installed", reason):
            return f"pip install {missing[1]}"
    return None


def _has_nvidia_gpu() -> bool:
    """Whether its driver is installed, whatever PyTorch was built for."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
