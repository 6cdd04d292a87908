"""From a state dict to its network: recognised by its tensors, checked, built and described."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..archs import ARCHITECTURES, Architecture
from ..errors import CallError, CheckpointError
from ..system.files import sha256
from .catalog import Model, list_models
from .weights import Checkpoint, in_run, read_state, save_network

# The share of common names of tensors from which on two networks are alike.
NEAR = 0.3

# How much larger a network may be than its tensors in the file: twice in float32 instead of half
# precision, and what it computes itself.
LARGER, OVERHEAD = 4, 2**26
PRECISIONS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

# What the tensors of a damaged or foreign file can cause.
OFF = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)


def load_network(path: Path) -> tuple[nn.Module, str]:
    """The network of a checkpoint, float32 and for inference, and its architecture's name.

    All its tensors have to fit. The configuration comes from the file's metadata where this package
    wrote it, else from the tensors.
    Raises CheckpointError where the file is of no architecture known here; says what is off where
    it is near one.
    """
    return build_network(read_state(path), path)


def build_network(checkpoint: Checkpoint, path: Path) -> tuple[nn.Module, str]:
    """As `load_network`, from what `read_state` gave for the file `path`."""
    for arch, row in ARCHITECTURES.items():
        try:
            config = _detected(row, checkpoint.state)
            if config is not None:
                return _built(arch, row, config, checkpoint).float().eval(), arch
        except (*OFF, ValueError) as error:
            reason = " ".join(str(error).split())[:400]
            raise CheckpointError(f"{path} looks like {arch}, but does not fit: {reason}") from None
    if closest := _closest(checkpoint.state):
        raise CheckpointError(f"{path} fits no network known here; {closest}")
    known = ", ".join(ARCHITECTURES)
    raise CheckpointError(f"{path} is a checkpoint of another architecture than {known}")


def is_of(arch: str, state: Mapping[str, Tensor]) -> bool:
    """Whether tensors are of an architecture, also where they are damaged or of no known form."""
    try:
        return ARCHITECTURES[arch].detect(state) is not None
    except (*OFF, ValueError):
        return True


def _detected(row: Architecture, state: Mapping[str, Tensor]) -> Any:
    """The configuration that the tensors tell; None for another network's. Raises ValueError."""
    try:
        return row.detect(state)
    except ValueError as error:
        raise ValueError(f"{error}; {_closest(state)}") from None
    except OFF:
        # Tensors that it counts on are missing or of another shape.
        raise ValueError(_closest(state)) from None


def _built(arch: str, row: Architecture, config: Any, checkpoint: Checkpoint) -> nn.Module:
    """The network with the tensors of a file. Raises OFF or ValueError where they do not fit."""
    if checkpoint.metadata.get("mambair.arch") == arch:
        config = _stored(row, config, checkpoint.metadata["mambair.config"])
    # Shapes first, on tensors without values: a file may claim a net of any size.
    with torch.device("meta"):
        expected = row.network(config).state_dict()
    size = sum(value.nbytes for value in expected.values())
    given = sum(value.nbytes for value in checkpoint.state.values())
    if size > LARGER * given + OVERHEAD:
        raise ValueError(f"its network would take {size:,} bytes, its tensors have {given:,}")
    # Integers are none of the weights: the network computes them itself, and a file may lack them.
    constants = {key for key, value in expected.items() if not value.is_floating_point()}
    weights = {key: value for key, value in checkpoint.state.items() if key not in constants}
    if off := _differences(weights, {k: v for k, v in expected.items() if k not in constants}):
        raise ValueError(off)
    _check_values(weights)
    model = row.network(config)
    own = {key: value for key, value in model.state_dict().items() if key in constants}
    for key in constants & checkpoint.state.keys():
        found = checkpoint.state[key]
        if found.shape != own[key].shape or (found != own[key]).any():
            raise ValueError(f"{key} holds other numbers than such a network counts with")
    model.load_state_dict(weights | own, strict=True)
    return model


def _stored(row: Architecture, seen: Any, text: str) -> Any:
    """The configuration in the metadata, which knows exact fractions. Raises ValueError.

    It must agree with `seen`, which the tensors tell.
    """
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
    for key, value in asdict(seen).items():
        if not isinstance(value, float) and stored.get(key, value) != value:
            raise ValueError(f"its metadata say {key} {stored[key]!r}, its tensors {value!r}")
    return row.config(**stored)


def _check_values(state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if value.dtype not in PRECISIONS:
            found = str(value.dtype).removeprefix("torch.")
            raise ValueError(
                f"{key} holds {found} instead of floating-point numbers of 16 to 64 bits"
            )
        if not value.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinite values")


def _closest(state: Mapping[str, Tensor]) -> str:
    """Which published network has the most similar names of tensors, and what is off.

    Empty where none is near. Numbers of layers and blocks, and widths, take no part.
    """
    best, nearest = NEAR, ""
    for model in list_models():
        if model.bundled:
            continue
        expected, form = _small(model)
        seen, known = {form(key) for key in state}, {form(key) for key in expected}
        share = len(seen & known) / len(seen | known)
        if share > best:
            best = share
            off = _differences(state, expected, form, lambda tensor: f"{tensor.ndim} axes")
            nearest = f"the closest is {model.arch}, as in {model.name}{': ' if off else ''}{off}"
    return nearest


@lru_cache(64)
def _small(model: Model) -> tuple[dict[str, Tensor], Callable[[str], str]]:
    """The tensors of a model's network, without values and with one block for many, and `_form`."""
    row = ARCHITECTURES[model.arch]
    ones = {k: (1,) * len(v) for k, v in model.config.items() if isinstance(v, tuple)}
    with torch.device("meta"):
        network = row.network(row.config(**{**model.config, **ones}))
    return network.state_dict(), _form(network, row.block)


def _form(network: nn.Module, block: type[nn.Module]) -> Callable[[str], str]:
    """What takes the numbers of layers and blocks out of a tensor's name in this network."""
    paths = [name.split(".") for name, module in network.named_modules() if type(module) is block]
    lists = {name for path in paths for name, number in pairwise(path) if number.isdecimal()}
    numbered = re.compile(rf"\b({'|'.join(sorted(lists))})\.\d+\.")
    return lambda key: numbered.sub(r"\1.#.", key)


def _differences(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    form: Callable[[str], str] = str,
    shape: Callable[[Tensor], str] = lambda tensor: str(tuple(tensor.shape)),
) -> str:
    """The first missing, unexpected and mis-shaped tensors.

    Names are the same where `form` gives the same, shapes where `shape` does.
    """
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


def _is_of(model: Model, arch: str, config: Mapping[str, Any]) -> bool:
    """Whether a model has this configuration; the tensors do not tell exact fractions."""
    if arch != model.arch:
        return False
    expected = asdict(ARCHITECTURES[arch].config(**model.config))
    return all(expected[key] == value or isinstance(value, float) for key, value in config.items())


def check_model(model: Model, facts: Mapping[str, Any], source: str) -> None:
    """Raise CheckpointError where a file is not of a model's network.

    Args:
        model: the model.
        facts: what `describe` says of the file.
        source: where it came from.
    """
    if model.name not in facts["like"] or facts["parameters"] != model.parameters:
        found = f"{facts['arch']} x{facts['scale']} of {facts['parameters']:,} parameters"
        raise CheckpointError(
            f"{source} is not {model.name}: it is {found},"
            f" not {model.arch} x{model.scale} of {model.parameters:,}"
        )


def count(model: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def describe(path: Path) -> dict[str, Any]:
    """What a checkpoint file is, as far as it tells; `like` are the models of this configuration.

    Raises as `load_network`.
    """
    checkpoint = read_state(path)
    model, arch = build_network(checkpoint, path)
    config: Any = model.config
    dtypes = {str(value.dtype).removeprefix("torch.") for value in checkpoint.state.values()}
    return {
        "file": str(path),
        "arch": arch,
        "task": checkpoint.metadata.get("mambair.task"),
        "scale": config.upscale,
        "config": asdict(config),
        "parameters": count(model),
        "tensors": len(checkpoint.state),
        "dtype": ", ".join(sorted(dtypes)),
        "wrapping": checkpoint.wrapping or "none",
        "metadata": {
            key: value
            for key, value in sorted(checkpoint.metadata.items())
            if key not in ("mambair.arch", "mambair.config")
        },
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "like": [model.name for model in list_models() if _is_of(model, arch, asdict(config))],
    }


def convert(source: Path, target: Path) -> None:
    """Write a checkpoint as safetensors: the same tensors, with the configuration as metadata.

    Raises CallError for a target with another suffix, CheckpointError as `load_network`, OSError.
    """
    if target.suffix.lower() != ".safetensors":
        raise CallError(f"{target}: the result is a .safetensors file; give it this suffix")
    source = in_run(source)
    checkpoint = read_state(source)
    model, _ = build_network(checkpoint, source)
    named = {key.removeprefix("mambair."): value for key, value in checkpoint.metadata.items()}
    notes = {key: value for key, value in named.items() if key not in ("arch", "config")}
    # Safetensors has no word for tensors that share their memory.
    state = {key: value.clone() for key, value in checkpoint.state.items()}
    save_network(target, model, state, notes)
