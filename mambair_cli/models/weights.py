"""How a checkpoint is read and written: own files and official ones in any wrapping, recognised by their tensors."""

import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..archs import mambair, mambair_unet, mambairv2, vmambair
from ..errors import CallError, CheckpointError
from .catalog import MODELS, Model

WRAPPINGS = ("params_ema", "params", "state_dict")  # preferred first
ARCHITECTURES: dict[str, tuple[type[Any], type[nn.Module], Callable[..., Any]]] = {
    "mambair": (mambair.MambaIRConfig, mambair.MambaIR, mambair.detect),
    "mambairv2": (mambairv2.MambaIRv2Config, mambairv2.MambaIRv2, mambairv2.detect),
    "mambair_unet": (mambair_unet.MambaIRUNetConfig, mambair_unet.MambaIRUNet, mambair_unet.detect),
    "vmambair": (vmambair.VmambaIRConfig, vmambair.VmambaIR, vmambair.detect),
}


class Checkpoint(NamedTuple):
    """What a file holds.

    state: tensors by name, on the CPU. metadata: of safetensors, else empty. wrapping: what was taken off, such as
    "params_ema" or "params, module."; empty for none.
    """

    state: dict[str, Tensor]
    metadata: dict[str, str]
    wrapping: str


def bundled_folder() -> Path:
    """The folder of the weights that ship with the package: inside the wheel, or beside it in a clone."""
    installed = Path(__file__).parents[1] / "weights"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "weights"


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def why_missing(path: Path) -> str | None:
    """Why there is no such file to read; None where there is one."""
    try:
        if path.is_file():
            return None
        return "is a folder" if path.is_dir() else "is missing"
    except OSError as error:  # a name that is too long, a folder that is closed
        return f"cannot be read ({error.strerror})"


def read_state(path: Path) -> Checkpoint:
    """The tensors of a checkpoint, its metadata and wrapping.

    Reads safetensors and files of torch.save, never running code from them; takes off the wrappings
    `params_ema`, `params` and `state_dict` and the prefix `module.`.
    Raises CheckpointError (unreadable, unsafe, no checkpoint) or CallError (no such file).
    """
    if why := why_missing(path):
        raise CallError(f"{path} {why}; give a checkpoint file")
    if path.suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return Checkpoint(state, file.metadata() or {}, "")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is no readable safetensors file: {error}; fetch it again"
            ) from None
    content, wrapping = _unpickled(path), ""
    for name in WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content, wrapping = content[name], name
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise CheckpointError(
            f"{path} holds no state dict of tensors; save the state_dict of a network"
        )
    for key, value in content.items():  # a view can pretend to any size
        if value.numel() * value.element_size() > path.stat().st_size:
            raise CheckpointError(
                f"{path}: {key} claims to be larger than the file; it is damaged, fetch it again"
            )
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    prefix = ["module."] if any(str(key).startswith("module.") for key in content) else []
    return Checkpoint(state, {}, ", ".join(filter(None, [wrapping, *prefix])))


def _unpickled(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise CheckpointError(
                        f"{path} is a compressed archive, which torch.save never writes: refused"
                    )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of others, which are refused next
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != b"\x80":
            raise CheckpointError(
                f"{path} is no checkpoint; name a .pth, .pt or .safetensors file"
            ) from None
        raise CheckpointError(
            f"{path} holds more than tensors, so loading it could run code: refused; "
            "save its state_dict alone, or as safetensors"
        ) from None
    except Exception as error:  # torch.load raises nearly anything on damaged files
        reason = type(error).__name__
        raise CheckpointError(
            f"{path} is no checkpoint, or a damaged one ({reason}); fetch it again"
        ) from error


def load_network(path: Path) -> tuple[nn.Module, str]:
    """Build the network that a checkpoint fits and load it strictly: the module (float32, eval) and its
    architecture's name.

    The configuration comes from the file's metadata where it is one of ours, else from the tensors.
    Raises CheckpointError where the file is of no architecture known here; says what is off where it is near one.
    """
    return build_network(read_state(path), path)


def build_network(checkpoint: Checkpoint, path: Path) -> tuple[nn.Module, str]:
    """As `load_network`, from what `read_state` gave of the file `path`."""
    state, metadata, _ = checkpoint
    for arch, (config_class, network, detect) in ARCHITECTURES.items():
        try:
            config = _detected(detect, state)
            if config is None:
                continue
            if metadata.get("mambair.arch") == arch:
                stored = {
                    k: tuple(v) if isinstance(v, list) else v
                    for k, v in json.loads(metadata["mambair.config"]).items()
                }
                for key, seen in asdict(
                    config
                ).items():  # the tensors tell all but the exact fractions
                    if not isinstance(seen, float) and stored.get(key, seen) != seen:
                        raise ValueError(
                            f"its metadata say {key} {stored[key]!r}, its tensors {seen!r}"
                        )
                config = config_class(**stored)
            widest = max(value for value in asdict(config).values() if isinstance(value, int))
            if widest**2 > sum(
                value.numel() for value in state.values()
            ):  # before it takes all the memory
                raise ValueError(f"its tensors are too small for a network of width {widest}")
            model = network(config)
            state = _checked(state, model)
            if off := _differences(state, model.state_dict()):
                raise ValueError(off)
            model.load_state_dict(state, strict=True)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split())[:400]
            raise CheckpointError(f"{path} looks like {arch}, but does not fit: {reason}") from None
        return model.float().eval(), arch
    if closest := _closest(state):
        raise CheckpointError(f"{path} fits no network known here; {closest}")
    raise CheckpointError(
        f"{path} is a checkpoint of another architecture than {', '.join(ARCHITECTURES)}"
    )


def _detected(detect: Callable[..., Any], state: Mapping[str, Tensor]) -> Any:
    try:
        return detect(state)
    except ValueError as error:
        raise ValueError(f"{error}; {_closest(state)}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
    ):  # tensors it counts on are off
        raise ValueError(_closest(state)) from None


def _checked(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state with the integers that the network computes itself, which a file may lack.

    Raises ValueError where they are others, or where another tensor holds anything but finite floating-point numbers.
    """
    constants = {k: v for k, v in model.state_dict().items() if not v.is_floating_point()}
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta:
            raise ValueError(f"{key} is no plain tensor: it is sparse or has no values")
        if key in constants:
            known = constants[key]
            if value.shape != known.shape or (value != known).any():
                raise ValueError(f"{key} does not hold the numbers that such a network counts with")
        elif not value.is_floating_point():
            raise ValueError(f"{key} is no tensor of floating-point numbers, but of {value.dtype}")
        elif not value.isfinite().all():
            raise ValueError(f"{key} holds values that are not finite")
    return dict(state) | constants


def _closest(state: Mapping[str, Tensor]) -> str:
    """Which published network has the most similar names of tensors, and what is off; empty where none is near.

    Numbers of layers and blocks, and widths, take no part.
    """
    seen, best, nearest = {_form(key) for key in state}, 0.3, ""
    for row in (row for row in MODELS if row.arch in ARCHITECTURES and not row.bundled):
        config_class, network, _ = ARCHITECTURES[row.arch]
        small: dict[str, Any] = {
            k: (1,) * len(v) for k, v in row.config.items() if isinstance(v, tuple)
        }
        small |= {
            key: 12 for key in ("embed_dim", "dim") if key in row.config
        }  # or to build it would take seconds
        expected = network(config_class(**{**row.config, **small})).state_dict()
        forms = {_form(key) for key in expected}
        if (share := len(seen & forms) / len(seen | forms)) > best:
            best = share
            off = _differences(state, expected, _form, lambda tensor: f"{tensor.ndim} axes")
            nearest = f"the closest is {row.arch}, as in {row.name}{': ' if off else ''}{off}"
    return nearest


def _form(key: str) -> str:
    """The name of a tensor without the numbers of layers and blocks."""
    return re.sub(r"\b(layers|blocks|\w+_level\d|latent|refinement)\.\d+\.", r"\1.#.", key)


def _differences(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    form: Callable[[str], str] = str,
    shape: Callable[[Tensor], str] = lambda tensor: str(tuple(tensor.shape)),
) -> str:
    """The first missing, unexpected and mis-shaped tensors; names and shapes are the same where these functions say."""
    have, want = {form(key) for key in state}, {form(key) for key in expected}
    missing = [key for key in expected if form(key) not in have]
    unexpected = [key for key in state if form(key) not in want]
    shaped = [
        f"{key}, {shape(state[key])} instead of {shape(value)}"
        for key, value in expected.items()
        if key in state and shape(state[key]) != shape(value)
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shaped))
    return "; ".join(
        f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for what, names in groups
        if names
    )


def _is_of(row: Model, arch: str, config: Mapping[str, Any]) -> bool:
    if arch != row.arch:
        return False
    expected = asdict(
        ARCHITECTURES[arch][0](**row.config)
    )  # the tensors tell all but the exact fractions
    return all(expected[key] == value or isinstance(value, float) for key, value in config.items())


def check_row(row: Model, facts: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError where `describe` says that a file from `source` is not of a row's network."""
    if row.name not in facts["like"] or facts["parameters"] != row.parameters:
        raise CheckpointError(
            f"{source} is no {row.name}: it is {facts['arch']} x{facts['scale']} of {facts['parameters']:,} parameters,"
            f" not {row.arch} x{row.scale} of {row.parameters:,}"
        )


def count(model: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint file is, as one can tell from it; `like` are the models that have this configuration.

    Raises as `load_network`.
    """
    checkpoint = read_state(path)
    model, arch = build_network(checkpoint, path)
    config: Any = model.config
    notes = {
        k: v
        for k, v in sorted(checkpoint.metadata.items())
        if k not in ("mambair.arch", "mambair.config")
    }
    return {
        "file": str(path),
        "arch": arch,
        "task": checkpoint.metadata.get("mambair.task"),
        "scale": config.upscale,
        "config": asdict(config),
        "parameters": count(model),
        "tensors": len(checkpoint.state),
        "dtype": ", ".join(
            sorted({str(value.dtype).removeprefix("torch.") for value in checkpoint.state.values()})
        ),
        "wrapping": checkpoint.wrapping or "none",
        "metadata": notes,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "like": [row.name for row in MODELS if _is_of(row, arch, asdict(config))],
    }


def convert(source: Path, target: Path) -> None:
    """Write a checkpoint as safetensors: the same tensors in their precision, with the configuration as metadata.

    Raises CallError where the target is named otherwise, CheckpointError as `load_network`, OSError.
    """
    if target.suffix.lower() != ".safetensors":
        raise CallError(f"{target}: the result is a .safetensors file; name it so")
    checkpoint = read_state(source)
    model, _ = build_network(checkpoint, source)
    notes = {key.removeprefix("mambair."): value for key, value in checkpoint.metadata.items()}
    state = {
        key: value.clone() for key, value in checkpoint.state.items()
    }  # they may share their memory
    save_network(
        target, model, state, {key: v for key, v in notes.items() if key not in ("arch", "config")}
    )


def task_of(path: Path) -> str | None:
    """The task that a file's metadata names; None where it has none."""
    if path.suffix.lower() != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("mambair.task")


def save_network(
    path: Path, model: nn.Module, state: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write tensors as safetensors with the model's configuration and `notes` as metadata, atomically.

    With a `task` among `notes`, a name of `registry.TASKS`, only that command takes the file. The same content gives
    the same bytes. Raises OSError.
    """
    arch = next(
        name for name, (_, network, _) in ARCHITECTURES.items() if isinstance(model, network)
    )
    metadata = {"mambair.arch": arch, "mambair.config": json.dumps(asdict(model.config))}  # type: ignore[call-overload]
    metadata |= {f"mambair.{key}": str(value) for key, value in notes.items()}
    content = save(
        {k: v.contiguous() for k, v in state.items()}
    )  # which would shuffle metadata, so these come here
    data = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(content[8:data])
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, len(text).to_bytes(8, "little") + text + content[data:])


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
