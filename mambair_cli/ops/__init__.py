"""The selective-scan operation with its back ends, and what surrounds it in the networks."""

from .attention import window_attention
from .backends import BACKENDS, Backend, resolve_backend
from .pixelwise import layer_norm, silu
from .scan import ss2d_scan

__all__ = [
    "BACKENDS",
    "Backend",
    "layer_norm",
    "resolve_backend",
    "silu",
    "ss2d_scan",
    "window_attention",
]
