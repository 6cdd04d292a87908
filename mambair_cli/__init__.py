"""mambair: make a bad photograph better with state-space networks."""

from .runtime import limit_spinning

__version__ = "0.1.0"

limit_spinning()
