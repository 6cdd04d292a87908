"""mambair: make a bad photograph better with state-space networks.

>>> from mambair_cli import load_restorer
>>> restored = load_restorer("tiny-x4").restore(image)  # H x W x 3 uint8 -> 4H x 4W x 3 uint8
"""

from typing import Any

from .models.catalog import Model, list_models
from .system.runtime import limit_spinning

__version__ = "0.1.0"
__all__ = ["Model", "Restorer", "list_models", "load_restorer"]

limit_spinning()  # before anything imports torch


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in ("load_restorer", "Restorer"):
        from .restore import restorer as engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
