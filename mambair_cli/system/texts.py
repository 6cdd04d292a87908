"""JSON and TOML of strangers: bounded in depth and length, so that no reader of them recurses."""

import json
import sys
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEEPEST = 32
"""Tables and lists within others; a recipe has 4."""

MOST_VALUES = 10**6
"""Tables and lists in all."""


def parse_json(text: str | bytes) -> Any:
    """What JSON says. Raises ValueError."""
    try:
        return checked(json.loads(text))
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """What TOML says. Raises ValueError."""
    try:
        return dict(checked(tomllib.loads(text)))
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def checked(value: Any) -> Any:
    """Plain values, if they nest at most DEEPEST deep and are at most MOST_VALUES.

    Raises ValueError.
    """
    level, count = [value], 0
    for _ in range(DEEPEST):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, dict | list)]
        count += len(level)
        if count > MOST_VALUES:
            raise ValueError("it is too long")
        if not level:
            return value
    raise ValueError("it nests too deeply")


def _parts(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
