"""The user's cache: which models lie there. No torch: `mambair models list` is instant."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import platformdirs

from ..errors import CheckpointError
from ..system.files import read_file
from ..system.texts import parse_json

# The name of a model, and an address of a file on Hugging Face.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
LONGEST_COMMIT = 64
HUB = re.compile(r"https://huggingface\.co/([^/]+)/([^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Record:
    """What is known of a model in the cache; lies there as NAME.json.

    Attributes:
        name: of the model.
        file: its name in the folder of the cache, or a path elsewhere; None where it was removed.
        sha256: of the first file that this model had here.
        source: the address or path it came from.
        task: a name of TASKS; None where only the scale tells.
        arch: of the network.
        scale: of the network.
        parameters: how many the network has.
    """

    name: str
    file: str | None
    sha256: str
    source: str
    task: str | None
    arch: str
    scale: int
    parameters: int

    @property
    def path(self) -> Path | None:
        """Where its file lies, not checked; None where it was removed."""
        return models_folder() / self.file if self.file else None


def cache_folder() -> Path:
    """The folder of fetched and computed files: MAMBAIR_HOME, or where this system has caches."""
    home = os.environ.get("MAMBAIR_HOME")
    return Path(home) if home else platformdirs.user_cache_path("mambair", appauthor=False)


def models_folder() -> Path:
    """The folder of fetched and imported checkpoints."""
    return cache_folder() / "models"


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the use of the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def record_file(name: str) -> Path:
    """Where the record of a model lies or would lie."""
    return models_folder() / f"{name}.json"


def read_record(name: str) -> Record | None:
    """What the cache knows of a model; None where it never had it.

    Raises CheckpointError for a damaged record.
    """
    path = record_file(name)
    if not NAME.fullmatch(name) or not path.is_file():
        return None
    try:
        record = Record(**parse_json(read_file(path)))
        for field in fields(Record):
            if not isinstance(value := getattr(record, field.name), cast(Any, field.type)):
                raise TypeError(f"its {field.name} is {value!r}")
        return record
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); delete it and fetch the model again"
        ) from None


def cached_file(name: str) -> Path | None:
    """The file of a model in the cache, not checked; None where it is not there."""
    record = read_record(name)
    return record.path if record else None


def list_records() -> Iterator[Record]:
    """The records of all models whose files are in the cache, by name."""
    for path in sorted(models_folder().glob("*.json")):
        record = read_record(path.stem)
        if record and record.file:
            yield record


def find_in_hub(url: str) -> Path | None:
    """The file of an address on Hugging Face in the cache of huggingface-hub, if it is there.

    Of several snapshots it is the one of the address's revision, a branch, tag or commit.
    """
    if not (found := HUB.fullmatch(url)):
        return None
    owner, repository, revision, file = found.groups()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{owner}--{repository}"
    branch = folder / "refs" / revision
    try:
        commit = read_file(branch, LONGEST_COMMIT).decode() if branch.is_file() else revision
        path = folder / "snapshots" / commit / file
        return path if path.is_file() else None
    # it is the cache of another program
    except (OSError, ValueError):
        return None
