"""mambair: make a bad photograph better with state-space networks.

>>> from pathlib import Path
>>> from mambair_cli import load_restorer, read_image, write_image
>>> image = read_image(Path("photo.jpg"))
>>> write_image(Path("large.jpg"), load_restorer("tiny-x4").restore_image(image))
"""

from typing import Any

from .models.catalog import Model, list_models
from .system.runtime import limit_spinning

__version__ = "0.1.0"
__all__ = [
    "Image",
    "Model",
    "Restorer",
    "list_models",
    "load_restorer",
    "read_image",
    "write_image",
]

# before anything imports torch
limit_spinning()


def __getattr__(name: str) -> Any:
    """Import what needs torch or Pillow only when it is asked for."""
    if name in ("load_restorer", "Restorer"):
        from .restore import restorer

        return getattr(restorer, name)
    if name in ("Image", "read_image", "write_image"):
        from .images import io

        return getattr(io, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
