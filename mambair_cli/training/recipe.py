"""Recipes: what a training run is, as a strict configuration."""

import difflib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from torch import nn

from ..degrade import Degradation, Jpeg, Noise, Sensor
from ..errors import CallError
from ..rain import Rain
from ..weights import ARCHITECTURES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parents[1] / "recipes"
LIMITS: dict[str, tuple[float, float]] = {  # of numbers in recipes; others: integers from 1, the rest from 0
    "scale": (1, 8),
    "seed": (0, 2**32),
    "lr": (1e-9, 1),
    "betas": (0, 0.9999),
    "clip": (1e-9, math.inf),
    "ema": (0, 1),
    "warmup": (0, 1),
    "embed_dim": (6, 4096),
    "expand": (0.25, 16),
    "in_chans": (1, 3),
    "drop_path_rate": (0, 0.9),
}
DEGRADATIONS: dict[str, type[Any]] = {"noise": Noise, "jpeg": Jpeg, "rain": Rain, "sensor": Sensor}
T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What a batch is. `patch` is in pixels of the low-resolution image.

    `degradation` holds its `kind`, one of DEGRADATIONS, and the fields of that class but the scale; without
    it photographs are shrunk as the benchmarks do.
    """

    patch: int
    batch: int
    validation: int
    degradation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW on L1; weight decay on matrices only; `ema` is the decay of the averaged weights."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    ema: float


@dataclass(frozen=True)
class ScheduleConfig:
    """`warmup` is the share of the iterations in which the rate rises; then it falls to zero as a cosine."""

    iterations: int
    warmup: float


@dataclass(frozen=True)
class TrainConfig:
    """A recipe. `network` holds `arch` and the fields of that architecture's configuration but the scale."""

    scale: int
    seed: int
    network: dict[str, Any]
    data: DataConfig
    optimiser: OptimiserConfig
    schedule: ScheduleConfig


def _strict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table. Raises CallError: a key is unknown or missing, a value does not fit."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise CallError(f"{where}: unknown key {key!r}; {hint}")
    required = [k for k, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in required if key not in values]:
        raise CallError(f"{where}: missing {', '.join(missing)}")
    kinds, limits = get_type_hints(kind), getattr(kind, "LIMITS", LIMITS)
    return kind(**{key: _typed(value, kinds[key], key, where, limits) for key, value in values.items()})


def _typed(value: Any, kind: Any, key: str, where: str, limits: Mapping[str, tuple[float, float]]) -> Any:
    """The value as its annotation and its limits ask. Raises CallError, which says what is expected."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (int, float):
        low, high = limits.get(key, (int(kind is int), 1e9))
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool) and low <= value <= high
        expected = f"{'a whole' if kind is int else 'a'} number from {low:g} to {high:g}"
        value = kind(value) if fits else value
    elif origin is tuple:
        count = "" if parts[1] is ... else f"{len(parts)} "
        fits = isinstance(value, (list, tuple)) and (len(value) == len(parts) if count else len(value) > 0)
        expected = f"a list of {count}numbers"
        value = tuple(_typed(v, parts[0], key, where, limits) for v in value) if fits else value
    elif origin is Literal:
        fits, expected = value in parts, "one of " + ", ".join(map(repr, parts))
    elif origin is dict or is_dataclass(kind):
        fits, expected = isinstance(value, Mapping), "a table"
        value = _strict(kind, value, f"{where}, [{key}]") if fits and origin is not dict else value
    else:
        fits, expected = isinstance(value, kind), f"of the type {getattr(kind, '__name__', kind)}"
    if not fits:
        raise CallError(f"{where}: {key} must be {expected}, not {value!r}")
    return value


def read_recipe(name_or_file: str) -> TrainConfig:
    """A bundled recipe by name, a TOML file, or the recipe.json of a run.

    Raises:
        CallError: there is no such recipe or it has errors; names the file, the key and what is expected.
    """
    bundled = {path.stem: path for path in sorted(RECIPES.glob("*.toml"))}
    path = bundled.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        raise CallError(f"no recipe {name_or_file!r}; there are {', '.join(bundled)}, or give a .toml file")
    try:
        text = path.read_text(encoding="utf-8")
        table: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of both parsers, and of the decoder
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise CallError(f"{path} is no valid {kind}: {error}") from None
    if not isinstance(table, Mapping):
        raise CallError(f"{path} holds no recipe; it must be a table")
    return checked(table, path.name)


def checked(table: Mapping[str, Any], where: str) -> TrainConfig:
    """The recipe in a table. Raises CallError where it has errors, also in [network]."""
    config = _strict(TrainConfig, table, where)
    _network(config, where)
    build_degradation(config, where)
    return config


def _network(config: TrainConfig, where: str) -> tuple[type[nn.Module], Any]:
    """The class of the recipe's network and its configuration. Raises CallError where there is none."""
    values = dict(config.network)
    arch = values.pop("arch", None)
    where = f"{where}, [network]"
    if arch not in list(ARCHITECTURES):
        raise CallError(f"{where}: arch must be one of {', '.join(ARCHITECTURES)}, not {arch!r}")
    if "upscale" in values:
        raise CallError(f"{where}: unknown key 'upscale'; the recipe's 'scale' sets it")
    kind, network, _ = ARCHITECTURES[arch]
    built = _strict(kind, values | {"upscale": config.scale}, where)
    if getattr(built, "in_chans", 3) == 2:
        raise CallError(f"{where}: in_chans must be 1 (gray) or 3 (RGB)")
    if hasattr(built, "upsampler") and (built.upsampler == "") != (config.scale == 1):
        raise CallError(f"{where}: upsampler must be empty where the scale is 1, and only there")
    return network, built


def build_degradation(config: TrainConfig, where: str = "recipe") -> Degradation | None:
    """What spoils the recipe's photographs; None where they are only shrunk. Raises CallError where it has errors."""
    values = dict(config.data.degradation)
    kind = values.pop("kind", None)
    where = f"{where}, [data], degradation"
    if kind is None and not values:
        if config.scale == 1:
            raise CallError(f"{where}: missing, but the scale is 1; give a kind of {', '.join(DEGRADATIONS)}")
        return None
    if kind not in list(DEGRADATIONS):
        raise CallError(f"{where}: kind must be one of {', '.join(DEGRADATIONS)}, not {kind!r}")
    shrinks = "scale" in {f.name for f in fields(DEGRADATIONS[kind])}
    if shrinks != (config.scale > 1):
        raise CallError(f"{where}: {kind!r} does not fit the scale {config.scale}")
    if "scale" in values:
        raise CallError(f"{where}: unknown key 'scale'; the recipe's 'scale' sets it")
    return _strict(DEGRADATIONS[kind], values | ({"scale": config.scale} if shrinks else {}), where)


def build_network(config: TrainConfig) -> nn.Module:
    """The recipe's network with fresh weights. Raises CallError where the recipe describes none."""
    network, values = _network(config, "recipe")
    try:
        return network(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CallError(f"recipe, [network]: {error}") from None
