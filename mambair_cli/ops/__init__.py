"""The selective-scan operation and its back ends."""

from .scan import BACKENDS, Backend, resolve_backend, ss2d_scan

__all__ = ["BACKENDS", "Backend", "resolve_backend", "ss2d_scan"]
