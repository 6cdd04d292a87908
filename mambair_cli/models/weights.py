"""Checkpoint files: how they are read and written, own ones and official ones in any wrapping."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..archs import name_of
from ..errors import CallError, CheckpointError
from ..system.files import write_atomically
from .torch_file import read_torch_file

# Preferred first.
WRAPPINGS = ("params_ema", "params", "state_dict")
# What programs put before the names of all tensors of a network that they wrap.
PREFIXES = ("module.", "_orig_mod.", "net_g.", "netG.", "model.", "generator.")
# Of a network; published ones have up to 3,000.
MOST_TENSORS = 10_000
# Bytes of the names, shapes and metadata of a safetensors file.
LONGEST_HEADER = 2**24


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        state: tensors by name, on the CPU.
        metadata: of safetensors; else empty.
        wrapping: what was taken off, such as "params_ema" or "params, module."; empty for none.
    """

    state: dict[str, Tensor]
    metadata: dict[str, str]
    wrapping: str


def bundled_folder() -> Path:
    """The folder of the bundled weights: inside the wheel, or beside the package in a clone."""
    installed = Path(__file__).parents[1] / "weights"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "weights"


def in_run(path: Path) -> Path:
    """The weights of a training run where `path` is its folder; else `path` itself.

    They are those of its end or of when it was stopped, or else the best ones so far.
    """
    files = (path / "model.safetensors", path / "best.safetensors")
    return next((file for file in files if why_missing(file) is None), path)


def why_missing(path: Path) -> str | None:
    """Why there is no such file to read; None where there is one."""
    try:
        if path.is_file():
            return None
        if path.is_dir():
            return "is a folder"
        return "is a device or a pipe, not a file" if path.exists() else "is missing"
    except OSError as error:
        # A name that is too long, a folder that may not be entered.
        return f"cannot be read ({error.strerror})"


def read_state(path: Path) -> Checkpoint:
    """The tensors of a checkpoint, its metadata and wrapping.

    Reads safetensors and files of torch.save, never running code from them; takes off the wrappings
    `params_ema`, `params` and `state_dict` and the prefixes of PREFIXES.
    Raises CheckpointError (unreadable, unsafe, no checkpoint) or CallError (no such file).
    """
    if why := why_missing(path):
        raise CallError(f"{path} {why}; give a checkpoint file")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    content, wrapping = read_torch_file(path), ""
    for name in WRAPPINGS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content, wrapping = content[name], name
            break
    tensors = content.values() if isinstance(content, dict) else ()
    if not tensors or not all(isinstance(value, Tensor) for value in tensors):
        raise CheckpointError(
            f"{path} holds no state dict of tensors; save the state_dict of a network"
        )
    _check_count(path, len(content))
    state, prefix = without_prefix({str(key): value for key, value in content.items()})
    return Checkpoint(state, {}, ", ".join(filter(None, [wrapping, prefix])))


def without_prefix(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors by their names in the network, and the prefix of PREFIXES that all had."""
    taken = ""
    while found := next((p for p in PREFIXES if state and all(k.startswith(p) for k in state)), ""):
        state = {key.removeprefix(found): value for key, value in state.items()}
        taken += found
    return state, taken


def _read_safetensors(path: Path) -> Checkpoint:
    with _opened(path) as file:
        names = list(file.keys())
        _check_count(path, len(names))
        state, prefix = without_prefix({name: file.get_tensor(name) for name in names})
        return Checkpoint(state, file.metadata() or {}, prefix)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file whose header is not too long. Raises CheckpointError."""
    try:
        with path.open("rb") as head:
            length = int.from_bytes(head.read(8), "little")
        if LONGEST_HEADER < length < path.stat().st_size:
            raise CheckpointError(f"{path}: its header is {length:,} bytes long: refused")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file: {error}; fetch it again"
        ) from None


def _check_count(path: Path, tensors: int) -> None:
    if tensors > MOST_TENSORS:
        raise CheckpointError(f"{path} holds {tensors:,} tensors, more than any network: refused")


def task_of(path: Path) -> str | None:
    """The task that a file's metadata names; None where it has none. Raises CheckpointError."""
    if path.suffix.lower() != ".safetensors":
        return None
    with _opened(path) as file:
        return (file.metadata() or {}).get("mambair.task")


def save_network(
    path: Path, model: nn.Module, state: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write tensors as safetensors, whole or not at all; the same content gives the same bytes.

    Args:
        path: of the file.
        model: the network whose configuration the metadata tell.
        state: the tensors.
        notes: more metadata. With a `task`, a name of TASKS, only that command takes the file.

    Raises:
        OSError: the file cannot be written.
    """
    config: Any = model.config
    metadata = {"mambair.arch": name_of(model), "mambair.config": json.dumps(asdict(config))}
    metadata |= {f"mambair.{key}": str(value) for key, value in notes.items()}
    # `save` would shuffle metadata, so they are put into its header here.
    content = save({key: value.contiguous() for key, value in state.items()})
    data = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items()))} | json.loads(content[8:data])
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_atomically(path, len(text).to_bytes(8, "little") + text + content[data:])
