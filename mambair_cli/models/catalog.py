"""Which models there are: catalog.toml, one table each, checked when it is read. No torch."""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import CallError, did_you_mean
from .published import Score, published_scores
from .tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CATALOG = Path(__file__).parent / "catalog.toml"

# The degradations of photographs as they are, in the words of the catalog.
CAMERA = "noise of cameras"
REAL = "blur, noise and JPEG of unknown strength, as in real photographs"


@dataclass(frozen=True)
class Model:
    """A trained network.

    Attributes:
        name: what the user calls it.
        task: a name of TASKS.
        arch: a name of `archs.ARCHITECTURES`.
        scale: how many times larger its results are.
        parameters: how many it has.
        gmacs: 10^9 multiply-adds for an output of 1280x720, as `archs.complexity` counts all.
        degradation: what its inputs should have suffered.
        licence: the licence of the weights.
        source: who trained it, and where that is described.
        config: what the configuration of `arch` is built from.
        levels: the lowest and the highest level of the degradation, in what the task's level counts
            (sigma of 255, JPEG quality).
        file: the file of a bundled model under weights/; None for one that is downloaded.
        urls: where its file can be had, best first; empty where no address is known.
        sha256: the hash of the file, hexadecimal; None where this project could not fetch it yet.
        measured: scores that this project measured.
        published: task, setting and method of its scores in PUBLISHED.
    """

    name: str
    task: str
    arch: str
    scale: int
    parameters: int
    gmacs: float
    degradation: str
    licence: str
    source: str
    config: Mapping[str, Any] = field(hash=False)
    levels: tuple[int, int] | None = None
    file: str | None = None
    urls: tuple[str, ...] = ()
    sha256: str | None = None
    measured: tuple[Score, ...] = ()
    published: tuple[str, str, str] | None = None

    @property
    def bundled(self) -> bool:
        """Whether it ships with the package."""
        return self.file is not None

    @property
    def for_real_photos(self) -> bool:
        """Whether it was trained for what cameras and web sites do to photos."""
        return self.degradation in (REAL, CAMERA)

    @property
    def verified(self) -> bool:
        """Whether the hash of its file is known, so that a download is compared with it."""
        return self.sha256 is not None

    @property
    def scores(self) -> tuple[Score, ...]:
        """What it reaches: measured here, or else as published."""
        return self.measured or published_scores(*self.published or ("", "", ""))


def list_models() -> tuple[Model, ...]:
    """All models that can be loaded by name."""
    return read_catalog(CATALOG)


def model_named(name: str) -> Model | None:
    """The model of this name, if there is one."""
    return next((model for model in list_models() if model.name == name), None)


def bundled_models(task: str, real: bool) -> list[Model]:
    """The bundled models of a task, by scale; real: those for real photographs."""
    bundled = [model for model in list_models() if model.bundled and model.task == task]
    fitting = [model for model in bundled if model.for_real_photos == real]
    return sorted(fitting, key=lambda model: model.scale)


@lru_cache
def read_catalog(path: Path) -> tuple[Model, ...]:
    """The models of a catalog file, in its order.

    Raises CallError where it is no valid TOML, a key is unknown or missing, or a value does not
    fit; names the table and what is expected.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CallError(f"{path} is no valid TOML: {error}") from None
    return tuple(_model(name, table, f"{path.name}, [{name}]") for name, table in tables.items())


def _model(name: str, table: Any, where: str) -> Model:
    if not isinstance(table, dict):
        raise CallError(f"{where} must be a table")
    model = _build(Model, {**table, "name": name}, where)
    if model.task not in TASKS:
        hint = did_you_mean(model.task, TASKS, f"there are {', '.join(TASKS)}")
        raise CallError(f"{where}: no task is called {model.task!r}; {hint}")
    if "upscale" in model.config:
        raise CallError(f"{where}: unknown key 'config.upscale'; 'scale' sets it")
    config = {key: tuple(v) if isinstance(v, list) else v for key, v in model.config.items()}
    return replace(model, config=config | {"upscale": model.scale})


def _build(kind: Any, table: Mapping[str, Any], where: str) -> Any:
    """A dataclass with the values of a table. Raises CallError as `read_catalog`."""
    known = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known, f"there are {', '.join(known)}")
            raise CallError(f"{where}: unknown key {key!r}; {hint}")
    missing = [key for key, f in known.items() if key not in table and f.default is MISSING]
    if missing:
        raise CallError(f"{where}: missing {', '.join(missing)}")
    kinds = get_type_hints(kind)
    return kind(**{key: _typed(v, kinds[key], f"{where}: {key}") for key, v in table.items()})


def _typed(value: Any, kind: Any, where: str) -> Any:
    """The value as its annotation asks for. Raises CallError."""
    origin, parts = get_origin(kind), get_args(kind)
    if type(None) in parts:
        return _typed(value, parts[0], where)
    if origin is tuple:
        any_length = parts[-1] is ...
        kinds = parts[:1] * len(value) if any_length and isinstance(value, list) else parts
        fits = isinstance(value, list) and len(value) == len(kinds)
        expected = "a list" if any_length else f"a list of {len(parts)}"
    elif origin is Mapping or is_dataclass(kind):
        fits, expected = isinstance(value, dict), "a table"
    else:
        accepted = (int, float) if kind is float else kind
        fits = isinstance(value, accepted) and not isinstance(value, bool)
        expected = {str: "text", int: "a whole number", float: "a number"}[kind]
    if not fits:
        raise CallError(f"{where} must be {expected}, not {value!r}")
    if origin is tuple:
        return tuple(_typed(v, part, where) for v, part in zip(value, kinds, strict=True))
    return _build(kind, value, where) if is_dataclass(kind) else value
