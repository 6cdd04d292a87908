"""Dataclasses built from tables of TOML or JSON, strict about every key and every number."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import CallError, did_you_mean

Limits = tuple[float, float]
T = TypeVar("T")


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass with the values of a table.

    Numbers must lie within `limits`, which stand in the metadata of their field, or within the
    class's LIMITS.

    Args:
        kind: the dataclass.
        values: by the names of its fields.
        where: what to call the table in errors.

    Raises:
        CallError: a key is unknown or missing, or a value does not fit; names both and what is
            expected.
    """
    known: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known, f"there are {', '.join(known)}")
            raise CallError(f"{where}: unknown key {key!r}; {hint}")
    missing = [key for key, f in known.items() if key not in values and not _has_default(f)]
    if missing:
        raise CallError(f"{where}: missing {', '.join(missing)}")
    kinds = get_type_hints(kind)
    built = {}
    for key, value in values.items():
        limits = known[key].metadata.get("limits") or getattr(kind, "LIMITS", {}).get(key)
        built[key] = _typed(value, kinds[key], limits, key, where)
    return kind(**built)


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _typed(value: Any, kind: Any, limits: Limits | None, key: str, where: str) -> Any:
    """The value as its annotation and its limits ask for. Raises CallError."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in (int, float):
        assert limits, f"{key} needs limits"
        fits = _is_number(value, kind) and limits[0] <= value <= limits[1]
        number = "a whole number" if kind is int else "a number"
        expected = f"{number} from {limits[0]:g} to {limits[1]:g}"
    elif origin is tuple:
        any_length = parts[1] is ...
        if any_length and isinstance(value, (int, float)):
            value = (value,)
        fits = isinstance(value, (list, tuple)) and (any_length or len(value) == len(parts))
        expected = "a list of numbers" if any_length else f"a list of {len(parts)} numbers"
    elif origin is Literal:
        fits, expected = value in parts, "one of " + ", ".join(map(repr, parts))
    elif origin is dict or is_dataclass(kind):
        fits, expected = isinstance(value, Mapping), "a table"
    else:
        fits, expected = isinstance(value, kind), f"of the type {getattr(kind, '__name__', kind)}"
    if not fits:
        raise CallError(f"{where}: {key} must be {expected}, not {value!r}")
    if kind is float:
        return float(value)
    if origin is tuple:
        return tuple(_typed(item, parts[0], limits, key, where) for item in value)
    if is_dataclass(kind):
        return build(kind, value, f"{where}, [{key}]")  # type: ignore[arg-type]
    return value


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)
