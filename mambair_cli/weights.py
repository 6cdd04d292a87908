"""Where a checkpoint lives and how it is read: bundled files, users' files, official ones in any wrapping."""

import difflib
import hashlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .archs import mambair, mambair_unet, vmambair
from .errors import CallError, CheckpointError
from .registry import MODELS, model_named

WRAPPINGS = ("params_ema", "params", "state_dict")  # preferred first
ARCHITECTURES: dict[str, tuple[type[Any], type[nn.Module], Callable[..., Any]]] = {
    "mambair": (mambair.MambaIRConfig, mambair.MambaIR, mambair.detect),
    "mambair_unet": (mambair_unet.MambaIRUNetConfig, mambair_unet.MambaIRUNet, mambair_unet.detect),
    "vmambair": (vmambair.VmambaIRConfig, vmambair.VmambaIR, vmambair.detect),
}


def bundled_folder() -> Path:
    """The folder of the weights that ship with the package: inside the wheel, or beside it in a clone."""
    installed = Path(__file__).parent / "weights"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "weights"


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_checkpoint(name_or_file: str | Path) -> Path:
    """The file of a registered model (checked against its SHA-256), or the file that is named.

    Raises CallError where neither is there, CheckpointError where the file is not the registered one.
    """
    row = model_named(str(name_or_file))
    if row is None:
        path = Path(name_or_file)
        if path.suffix or _missing(path) != "is missing":
            return path
        known = [model.name for model in MODELS]
        near = difflib.get_close_matches(str(name_or_file), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, or give a file"
        raise CallError(f"no model is called {str(name_or_file)!r}; {hint}")
    path = bundled_folder() / row.file
    if not path.is_file():
        raise CheckpointError(f"{path}: the bundled weights are missing; install mambair again")
    if sha256(path) != row.sha256:
        raise CheckpointError(f"{path}: the bundled weights are damaged; install mambair again")
    return path


def _missing(path: Path) -> str | None:
    """Why there is no such file to read; None where there is one."""
    try:
        if path.is_file():
            return None
        return "is a folder" if path.is_dir() else "is missing"
    except OSError as error:  # a name that is too long, a folder that is closed
        return f"cannot be read ({error.strerror})"


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint (on the CPU) and its metadata (safetensors only, else empty).

    Reads safetensors and files of torch.save, never running code from them; takes off the wrappings
    `params_ema`, `params` and `state_dict` and the prefix `module.`.
    Raises CheckpointError (unreadable, unsafe, no checkpoint) or CallError (no such file).
    """
    if why := _missing(path):
        raise CallError(f"{path} {why}; give a checkpoint file")
    if path.suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no readable safetensors file: {error}; fetch it again") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others, which are refused next
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != b"\x80":
            raise CheckpointError(f"{path} is no checkpoint; name a .pth, .pt or .safetensors file") from None
        raise CheckpointError(
            f"{path} holds more than tensors, so loading it could run code: refused; "
            "save its state_dict alone, or as safetensors"
        ) from None
    except Exception as error:  # torch.load raises nearly anything on damaged files
        reason = type(error).__name__
        raise CheckpointError(f"{path} is no checkpoint, or a damaged one ({reason}); fetch it again") from error
    for name in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors; save the state_dict of a network")
    return {str(key).removeprefix("module."): value for key, value in content.items()}, {}


def load_network(path: Path) -> tuple[nn.Module, str]:
    """Build the network that a checkpoint fits and load it strictly: the module (float32, eval) and its
    architecture's name.

    The configuration comes from the file's metadata where it is one of ours, else from the tensors.
    Raises CheckpointError where the file is of no architecture known here.
    """
    state, metadata = read_state(path)
    for arch, (config_class, network, detect) in ARCHITECTURES.items():
        try:
            config = detect(state)
            if config is None:
                continue
            if not all(v.is_floating_point() and v.isfinite().all() for v in state.values()):
                raise ValueError("its tensors are not all finite floating-point numbers")
            if metadata.get("mambair.arch") == arch:
                stored = {
                    k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata["mambair.config"]).items()
                }
                for key, seen in asdict(config).items():  # the tensors tell all but the exact fractions
                    if not isinstance(seen, float) and stored.get(key, seen) != seen:
                        raise ValueError(f"its metadata say {key} {stored[key]!r}, its tensors {seen!r}")
                config = config_class(**stored)
            model = network(config)
            model.load_state_dict(state, strict=True)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{path} looks like {arch}, but does not fit: {reason}") from None
        return model.float().eval(), arch
    hint = (
        "; it looks like MambaIRv2, which is not supported yet"
        if any("embeddingA" in k or "win_mhsa" in k for k in state)
        else ""
    )
    raise CheckpointError(f"{path} is a checkpoint of another architecture than MambaIR and VmambaIR{hint}")


def save_network(path: Path, model: nn.Module, state: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write tensors as safetensors with the model's configuration and `notes` as metadata, atomically."""
    arch = next(name for name, (_, network, _) in ARCHITECTURES.items() if isinstance(model, network))
    metadata = {"mambair.arch": arch, "mambair.config": json.dumps(asdict(model.config))}  # type: ignore[call-overload]
    metadata |= {f"mambair.{key}": str(value) for key, value in notes.items()}
    write_atomically(path, save({k: v.contiguous() for k, v in state.items()}, metadata))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
