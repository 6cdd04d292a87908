"""How fast models ran on this machine: kept in the cache, to say how long a run will take."""

import contextlib
import json
import os
import platform

from ..models.cache import cache_folder
from ..models.catalog import model_named
from ..system.files import read_file, write_atomically
from ..system.texts import parse_json

LEAST = 10_000
"""Pixels of the input from which on a run tells how fast a model is."""


def read_rate(model: str, backend: str, device: str) -> float | None:
    """Pixels of the input that a model restores in a second; None if that is not known.

    If only another model ran here in the same way, the multiply-adds of both tell.
    """
    rates = _read()
    place = _place(backend, device)
    found = rates.get(f"{model} {place}")
    if found is not None:
        return found
    wanted = model_named(model)
    for key, rate in rates.items():
        name, _, where = key.partition(" ")
        other = model_named(name)
        if wanted and other and where == place and wanted.gmacs:
            # Multiply-adds count for results of one size.
            cost = wanted.gmacs * wanted.scale**2 / (other.gmacs * other.scale**2)
            return rate / cost
    return None


def keep_rate(model: str, backend: str, device: str, pixels: int, seconds: float) -> None:
    """Remember how fast a model was, if it had enough to do. A cache that fails costs nothing."""
    if pixels < LEAST or seconds <= 0:
        return
    rates = _read() | {f"{model} {_place(backend, device)}": pixels / seconds}
    path = cache_folder() / "rates.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(rates, indent=1, sort_keys=True).encode())


def ran_here(backend: str = "numba") -> bool:
    """Whether a back end ran on this machine before, so that its kernels are compiled."""
    return any(f" {backend} " in key and key.endswith(_machine()) for key in _read())


def duration(seconds: float) -> str:
    """A time for people: 9 s, 4 min, 2 h 10 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"


def _read() -> dict[str, float]:
    try:
        rates = parse_json(read_file(cache_folder() / "rates.json"))
        return {str(key): float(rate) for key, rate in rates.items() if float(rate) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _place(backend: str, device: str) -> str:
    return f"{backend} {device} {_machine()}"


def _machine() -> str:
    return f"{platform.node()}/{os.cpu_count()}"
