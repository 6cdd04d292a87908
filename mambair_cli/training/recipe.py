"""Recipes: reading and changing them, and building the network and degradation they describe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..archs import ARCHITECTURES
from ..degradations.base import Degradation
from ..degradations.mixed import Chain, Mixed
from ..errors import CallError, did_you_mean
from ..system.files import read_file
from ..system.texts import DEEPEST, parse_json, parse_toml
from . import strict
from .config import DEGRADATIONS, TrainConfig

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(
    name_or_file: str, changes: Sequence[str] = (), iterations: int | None = None
) -> TrainConfig:
    """A bundled recipe by its name, a TOML file, or the recipe.json of a run, with changes to it.

    A recipe may build on another one, whose name or file it gives as `base`; what it says itself
    goes first, key by key within sections.

    Args:
        name_or_file: of the recipe.
        changes: see `resolve`.
        iterations: see `resolve`.

    Raises:
        CallError: there is no such recipe, or it has errors; names the file, the key and what is
            expected.
    """
    return resolve(_read_table(name_or_file), Path(name_or_file).name, changes, iterations)


def resolve(
    table: Mapping[str, Any], where: str, changes: Sequence[str] = (), iterations: int | None = None
) -> TrainConfig:
    """The recipe in a table, with changes to it.

    Args:
        table: of a recipe.
        where: what to call it in errors.
        changes: such as `optimiser.lr=1e-4`, with values as in TOML; words need no quotes.
        iterations: of all stages together, which keep their proportions; None: the recipe's.

    Raises:
        CallError: see `read_recipe`.
    """
    config = checked(table, where)
    for change in changes:
        table = _changed(table, change)
    if changes:
        config = checked(table, " ".join(changes))
    if iterations is None:
        return config
    ends = np.cumsum(config.schedule.iterations) * (iterations / config.iterations)
    counts = np.diff(np.rint(ends).astype(int), prepend=0)
    at_least_one = [max(1, int(count)) for count in counts]
    return checked(_changed(table, f"schedule.iterations={at_least_one}"), "iterations")


def _read_table(name_or_file: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table of a recipe and of those it builds on; `above`: recipes that build on this one."""
    path = _find(name_or_file)
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = read_file(path).decode()
        table: Any = parse_json(text) if kind == "JSON" else parse_toml(text)
    except OSError as error:
        raise CallError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CallError(f"{path} is no valid {kind}: {error}") from None
    if not isinstance(table, Mapping):
        raise CallError(f"{path} holds no recipe; it must be a table")
    table = dict(table)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str) or base in (*above, name_or_file):
        raise CallError(f"{path}: base must be the name of another recipe, not {base!r}")
    for key, value in _read_table(base, (*above, name_or_file)).items():
        if isinstance(value, dict) and isinstance(table.get(key, {}), dict):
            table[key] = value | table.get(key, {})
        else:
            table.setdefault(key, value)
    return table


def _find(name_or_file: str) -> Path:
    """The file of a recipe. Raises CallError where there is none."""
    names = recipe_names()
    path = RECIPES / f"{name_or_file}.toml" if name_or_file in names else Path(name_or_file)
    if not path.is_file():
        hint = did_you_mean(name_or_file, names, "give a bundled recipe or a .toml file")
        raise CallError(f"no recipe {name_or_file!r}; {hint}")
    return path


def _changed(table: Mapping[str, Any], change: str) -> dict[str, Any]:
    """The table with `SECTION.KEY=VALUE` put in.

    Raises CallError where the change is of another form.
    """
    path, equals, text = change.partition("=")
    first, *rest = path.strip().split(".")
    if not equals or not all([first, *rest]) or len(rest) > DEEPEST:
        raise CallError(f"{change}: give SECTION.KEY=VALUE, such as optimiser.lr=1e-4")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    if rest:
        section = table.get(first, {})
        if not isinstance(section, Mapping):
            raise CallError(f"{change}: {first} is no section")
        value = _changed(section, f"{'.'.join(rest)}={text}")
    return {**table, first: value}


def checked(table: Mapping[str, Any], where: str) -> TrainConfig:
    """The recipe in a table. Raises CallError where it has errors, also in [network]."""
    config = strict.build(TrainConfig, table, where)
    _network(config, where)
    build_degradation(config, where)
    stages, rate = config.schedule.iterations, config.optimiser.lr
    if not stages:
        expected = "a number or a list of numbers"
        raise CallError(f"{where}, [schedule]: iterations must be {expected}, not []")
    for key in ("patch", "batch"):
        if len(getattr(config.data, key)) not in (1, len(stages)):
            expected = f"one number, or one for each of {len(stages)} stages"
            raise CallError(f"{where}, [data]: {key} must be {expected}")
    if config.schedule.floor > rate:
        raise CallError(f"{where}, [schedule]: floor must not be above the lr, {rate:g}")
    _check_loss(config, f"{where}, [loss]")
    return config


def _check_loss(config: TrainConfig, where: str) -> None:
    loss = config.loss
    if config.channels == 1 and (loss.perceptual or loss.adversarial):
        raise CallError(
            f"{where}: perceptual and adversarial losses need colour, but in_chans is 1"
        )
    if loss.adversarial and any(patch * config.scale % 8 for patch in config.data.patch):
        raise CallError(
            f"{where}: the discriminator needs truths of a multiple of 8 pixels; change patch"
        )


def _network(config: TrainConfig, where: str) -> tuple[type[nn.Module], Any]:
    """The class of the recipe's network and its configuration.

    Raises CallError where there is none.
    """
    values = dict(config.network)
    arch = values.pop("arch", None)
    where = f"{where}, [network]"
    # a list, as what a recipe names may not be hashable
    if arch not in list(ARCHITECTURES):
        raise CallError(f"{where}: arch must be one of {', '.join(ARCHITECTURES)}, not {arch!r}")
    if "upscale" in values:
        raise CallError(f"{where}: unknown key 'upscale'; the recipe's 'scale' sets it")
    row = ARCHITECTURES[str(arch)]
    built = strict.build(row.config, values | {"upscale": config.scale}, where)
    if config.channels == 2:
        raise CallError(f"{where}: in_chans must be 1 (gray) or 3 (RGB)")
    if hasattr(built, "upsampler") and (built.upsampler == "") != (config.scale == 1):
        raise CallError(f"{where}: upsampler must be empty where the scale is 1, and only there")
    return row.network, built


def build_degradation(config: TrainConfig, where: str = "recipe") -> Degradation | None:
    """What degrades the recipe's photographs; None where they are only shrunk. Raises CallError."""
    where = f"{where}, [data], degradation"
    values = config.data.degradation
    if values.get("kind") == "clean":
        raise CallError(f"{where}: 'clean' leaves nothing to learn; it can be a part of 'mixed'")
    if values:
        return _degradation(values, config.scale, where)
    if config.scale == 1:
        kinds = ", ".join(DEGRADATIONS)
        raise CallError(f"{where}: missing, but the scale is 1; give a kind of {kinds}")
    return None


def _degradation(table: Any, scale: int, where: str) -> Degradation:
    """The degradation in a table, for networks of this scale. Raises CallError."""
    if not isinstance(table, Mapping):
        raise CallError(f"{where}: must be a table, not {table!r}")
    values = dict(table)
    kind, then = values.pop("kind", None), values.pop("then", None)
    if kind not in list(DEGRADATIONS):
        raise CallError(f"{where}: kind must be one of {', '.join(DEGRADATIONS)}, not {kind!r}")
    built: Degradation
    if kind == "mixed":
        built = _mixed(values, scale, where)
    else:
        degrades, _ = DEGRADATIONS[kind]
        shrinks = "scale" in {f.name for f in fields(degrades)}
        if shrinks != (scale > 1):
            raise CallError(f"{where}: {kind!r} does not fit the scale {scale}")
        if "scale" in values:
            raise CallError(f"{where}: unknown key 'scale'; the recipe's 'scale' sets it")
        if shrinks:
            values["scale"] = scale
        built = strict.build(degrades, values, where)
    if then is None:
        return built
    return Chain((built, _degradation(then, 1, f"{where}, then")))


def _mixed(values: dict[str, Any], scale: int, where: str) -> Mixed:
    """One of several degradations, which the same task undoes. Raises CallError."""
    parts = values.pop("of", None)
    if values or not isinstance(parts, list) or not parts:
        raise CallError(f"{where}: 'mixed' needs a list 'of' degradations, and nothing else")
    built, shares, tasks = [], [], set()
    for number, part in enumerate(parts, 1):
        place = f"{where}, of, {number}"
        share = part.get("share") if isinstance(part, Mapping) else None
        if not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise CallError(f"{place}: share must be a number above 0, not {share!r}")
        rest = {key: value for key, value in part.items() if key != "share"}
        if rest.get("kind") == "mixed":
            raise CallError(f"{place}: 'mixed' cannot hold itself")
        built.append(_degradation(rest, scale, place))
        shares.append(float(share))
        tasks.add(DEGRADATIONS[rest["kind"]][1])
    named = sorted(tasks - {""})
    if len(named) != 1:
        raise CallError(
            f"{where}: the parts must be for one task, not {' and '.join(named) or 'none'}"
        )
    return Mixed(tuple(built), tuple(shares))


def build_network(config: TrainConfig) -> nn.Module:
    """The recipe's network with fresh weights. Raises CallError where the recipe describes none."""
    network, values = _network(config, "recipe")
    try:
        return network(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CallError(f"recipe, [network]: {error}") from None
