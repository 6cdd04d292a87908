"""Recipes: what a training run is, as a strict configuration."""

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from torch import nn

from ..archs import ARCHITECTURES
from ..degradations.base import Degradation
from ..degradations.jpeg import Jpeg
from ..degradations.noise import Noise
from ..degradations.rain import Rain
from ..degradations.real_world import RealWorld
from ..degradations.sensor import Sensor
from ..errors import CallError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
LIMITS: dict[
    str, tuple[float, float]
] = {  # of all numbers in recipes; degradations have their own, which go first
    "scale": (1, 8),
    "seed": (0, 2**32),
    # [network]
    "embed_dim": (6, 1024),
    "dim": (4, 512),
    "depths": (1, 100),
    "blocks": (1, 100),
    "refinement": (0, 100),
    "d_state": (1, 256),
    "expand": (0.25, 8),
    "ffn_expand": (0.25, 16),
    "in_chans": (1, 3),
    "upscale": (1, 8),
    "drop_path_rate": (0, 0.9),
    # [data]
    "patch": (4, 4096),
    "batch": (1, 65536),
    "validation": (1, 10_000),
    "mixup": (0, 100),
    # [loss]
    "epsilon": (1e-9, 1),
    "perceptual": (0, 1000),
    "adversarial": (0, 1000),
    "discriminator_lr": (1e-9, 1),
    # [optimiser]
    "lr": (1e-9, 1),
    "betas": (0, 0.9999),
    "weight_decay": (0, 10),
    "clip": (0, 1e6),
    "ema": (0, 1),
    # [schedule]
    "iterations": (1, 1e9),
    "warmup": (0, 1),
    "halve_at": (0, 1),
    "flat": (0, 1),
    "floor": (0, 1),
}
DEGRADATIONS: dict[str, tuple[type[Any], str]] = {  # and the tasks that undo them
    "noise": (Noise, "denoise"),
    "jpeg": (Jpeg, "dejpeg"),
    "rain": (Rain, "derain"),
    "sensor": (Sensor, "denoise"),
    "real": (RealWorld, "upscale"),
}
T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What a batch is. Several numbers are those of the stages of `ScheduleConfig.iterations`; one is for all.

    patch: pixels a side of the degraded image. batch: samples of an iteration, on all devices together.
    validation: images held out where no folder of them is given. degradation: its `kind`, one of DEGRADATIONS,
    and the fields of that class but the scale; without it photographs are shrunk as the benchmarks do.
    mixup: of half of the batches each sample is mixed with another, in shares drawn from Beta(mixup, mixup).
    """

    patch: tuple[int, ...]
    batch: tuple[int, ...]
    validation: int = 8
    degradation: dict[str, Any] = field(default_factory=dict)
    mixup: float = 0.0


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: the mean over pixels of |error| (l1) or of sqrt(error^2 + epsilon^2) (charbonnier).

    perceptual, adversarial: weights of the distance of VGG19 features and of the vanilla GAN loss.
    discriminator_lr: of the discriminator's Adam.
    """

    pixel: Literal["l1", "charbonnier"] = "l1"
    epsilon: float = 1e-3**0.5
    perceptual: float = 0.0
    adversarial: float = 0.0
    discriminator_lr: float = 1e-4


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW, which without weight decay is Adam; only matrices decay.

    clip: largest norm of the gradient; 0: any. ema: decay of the averaged weights, which are the result.
    """

    lr: float
    betas: tuple[float, float]
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.999


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, and how the rate goes; but for the iterations and `floor` all numbers are shares of the run.

    iterations: of each stage. warmup: in which the rate rises to `lr`. halve_at: where it halves; without these
    it stays up to `flat` and then falls as a cosine to `floor`.
    """

    iterations: tuple[int, ...]
    warmup: float = 0.0
    halve_at: tuple[float, ...] = ()
    flat: float = 0.0
    floor: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """A recipe.

    network: `arch` and the fields of that architecture's configuration but the scale. summary: one line.
    init: the recipe whose weights this one starts from.
    """

    scale: int
    seed: int
    network: dict[str, Any]
    data: DataConfig
    optimiser: OptimiserConfig
    schedule: ScheduleConfig
    loss: LossConfig = LossConfig()
    summary: str = ""
    init: str = ""

    @property
    def iterations(self) -> int:
        """Of all stages."""
        return sum(self.schedule.iterations)

    @property
    def channels(self) -> int:
        """Of the images: 3, or 1 for gray."""
        return int(self.network.get("in_chans", 3))

    @property
    def task(self) -> str:
        """What the network is for: a name of `models.tasks.TASKS`."""
        return (
            DEGRADATIONS[self.data.degradation["kind"]][1] if self.data.degradation else "upscale"
        )


def _strict(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build a dataclass from a table. Raises CallError: a key is unknown or missing, a value does not fit."""
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise CallError(f"{where}: unknown key {key!r}; {hint}")
    required = [
        k for k, f in known.items() if f.default is MISSING and f.default_factory is MISSING
    ]
    if missing := [key for key in required if key not in values]:
        raise CallError(f"{where}: missing {', '.join(missing)}")
    kinds, limits = get_type_hints(kind), {**LIMITS, **getattr(kind, "LIMITS", {})}
    return kind(
        **{key: _typed(value, kinds[key], key, where, limits) for key, value in values.items()}
    )


def _typed(
    value: Any, kind: Any, key: str, where: str, limits: Mapping[str, tuple[float, float]]
) -> Any:
    """The value as its annotation and its limits ask. Raises CallError, which says what is expected."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (int, float):
        low, high = limits[key]
        fits = (
            isinstance(value, (int, kind)) and not isinstance(value, bool) and low <= value <= high
        )
        expected = f"{'a whole' if kind is int else 'a'} number from {low:g} to {high:g}"
        value = kind(value) if fits else value
    elif origin is tuple:
        value = (value,) if parts[1] is ... and isinstance(value, (int, float)) else value
        count = "" if parts[1] is ... else f"{len(parts)} "
        fits = isinstance(value, (list, tuple)) and (not count or len(value) == len(parts))
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


def recipe_names() -> list[str]:
    """Of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(
    name_or_file: str, changes: Sequence[str] = (), iterations: int | None = None
) -> TrainConfig:
    """A bundled recipe by name, a TOML file, or the recipe.json of a run, with changes to it.

    A recipe may build on another one, whose name or file it gives as `base`: what it says itself goes first, key
    by key within sections.

    Args:
        name_or_file: of the recipe.
        changes: see `resolve`.
        iterations: see `resolve`.

    Raises:
        CallError: there is no such recipe or it has errors; names the file, the key and what is expected.
    """
    return resolve(_read_table(name_or_file), Path(name_or_file).name, changes, iterations)


def resolve(
    table: Mapping[str, Any], where: str, changes: Sequence[str] = (), iterations: int | None = None
) -> TrainConfig:
    """The recipe in a table, with changes to it.

    Args:
        table: of a recipe.
        where: what to call it in errors.
        changes: such as `optimiser.lr=1e-4`, the values as in TOML; quotes around words may be left out.
        iterations: of all stages together, which keep their proportions; None: the recipe's.

    Raises:
        CallError: see `read_recipe`.
    """
    config = checked(table, where)
    for change in changes:
        table = _changed(table, change)
    if changes:
        config = checked(table, f"--set {' '.join(changes)}")
    if iterations is None:
        return config
    ends = np.rint(np.cumsum(config.schedule.iterations) * (iterations / config.iterations)).astype(
        int
    )
    counts = [max(1, int(n)) for n in np.diff(ends, prepend=0)]
    return checked(_changed(table, f"schedule.iterations={counts}"), "--iterations")


def _read_table(name_or_file: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    path = (
        RECIPES / f"{name_or_file}.toml" if name_or_file in recipe_names() else Path(name_or_file)
    )
    if not path.is_file():
        near = difflib.get_close_matches(name_or_file, recipe_names(), 1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "see mambair train --list, or give a .toml file"
        )
        raise CallError(f"no recipe {name_or_file!r}; {hint}")
    try:
        text = path.read_text(encoding="utf-8")
        table: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # of both parsers, and of the decoder
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise CallError(f"{path} is no valid {kind}: {error}") from None
    if not isinstance(table, Mapping):
        raise CallError(f"{path} holds no recipe; it must be a table")
    table = dict(table)
    if (base := table.pop("base", None)) is not None:
        if not isinstance(base, str) or base in (*above, name_or_file):
            raise CallError(f"{path}: base must be the name of another recipe, not {base!r}")
        for key, value in _read_table(base, (*above, name_or_file)).items():
            if isinstance(value, dict) and isinstance(table.get(key, {}), dict):
                table[key] = value | table.get(key, {})
            else:
                table.setdefault(key, value)
    return table


def _changed(table: Mapping[str, Any], change: str) -> dict[str, Any]:
    """The table with `SECTION.KEY=VALUE` put in. Raises CallError where that is none."""
    path, equals, text = change.partition("=")
    first, *rest = path.strip().split(".")
    if not equals or not all([first, *rest]):
        raise CallError(f"--set {change}: give SECTION.KEY=VALUE, such as optimiser.lr=1e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if rest:
        section = table.get(first, {})
        if not isinstance(section, Mapping):
            raise CallError(f"--set {change}: {first} is no section")
        value = _changed(section, f"{'.'.join(rest)}={text}")
    return {**table, first: value}


def checked(table: Mapping[str, Any], where: str) -> TrainConfig:
    """The recipe in a table. Raises CallError where it has errors, also in [network]."""
    config = _strict(TrainConfig, table, where)
    _network(config, where)
    build_degradation(config, where)
    stages = config.schedule.iterations
    if not stages:
        raise CallError(
            f"{where}, [schedule]: iterations must be a number or a list of numbers, not []"
        )
    for key in ("patch", "batch"):
        if len(getattr(config.data, key)) not in (1, len(stages)):
            raise CallError(
                f"{where}, [data]: {key} must be one number, or one for each of {len(stages)} stages"
            )
    if config.schedule.floor > config.optimiser.lr:
        raise CallError(
            f"{where}, [schedule]: floor must not be above the lr, {config.optimiser.lr:g}"
        )
    if config.channels == 1 and (config.loss.perceptual or config.loss.adversarial):
        raise CallError(
            f"{where}, [loss]: perceptual and adversarial losses need colour, but in_chans is 1"
        )
    if config.loss.adversarial and any(patch * config.scale % 8 for patch in config.data.patch):
        raise CallError(
            f"{where}, [loss]: the discriminator needs truths of a multiple of 8 pixels; change patch"
        )
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
    row = ARCHITECTURES[str(arch)]
    built = _strict(row.config, values | {"upscale": config.scale}, where)
    if config.channels == 2:
        raise CallError(f"{where}: in_chans must be 1 (gray) or 3 (RGB)")
    if hasattr(built, "upsampler") and (built.upsampler == "") != (config.scale == 1):
        raise CallError(f"{where}: upsampler must be empty where the scale is 1, and only there")
    return row.network, built


def build_degradation(config: TrainConfig, where: str = "recipe") -> Degradation | None:
    """What spoils the recipe's photographs; None where they are only shrunk. Raises CallError where it has errors."""
    values = dict(config.data.degradation)
    kind = values.pop("kind", None)
    where = f"{where}, [data], degradation"
    if kind is None and not values:
        if config.scale == 1:
            raise CallError(
                f"{where}: missing, but the scale is 1; give a kind of {', '.join(DEGRADATIONS)}"
            )
        return None
    if kind not in list(DEGRADATIONS):
        raise CallError(f"{where}: kind must be one of {', '.join(DEGRADATIONS)}, not {kind!r}")
    spoils, _ = DEGRADATIONS[kind]
    shrinks = "scale" in {f.name for f in fields(spoils)}
    if shrinks != (config.scale > 1):
        raise CallError(f"{where}: {kind!r} does not fit the scale {config.scale}")
    if "scale" in values:
        raise CallError(f"{where}: unknown key 'scale'; the recipe's 'scale' sets it")
    degradation: Degradation = _strict(
        spoils, values | ({"scale": config.scale} if shrinks else {}), where
    )
    return degradation


def build_network(config: TrainConfig) -> nn.Module:
    """The recipe's network with fresh weights. Raises CallError where the recipe describes none."""
    network, values = _network(config, "recipe")
    try:
        return network(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CallError(f"recipe, [network]: {error}") from None
