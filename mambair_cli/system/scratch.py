"""Arrays that may be larger than memory: large ones lie in a file that vanishes with them."""

import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import RestorationError

LARGE = 2**28
"""Bytes from which an array lies on disk."""

Array = NDArray[Any]


def folder() -> Path:
    """Where large arrays lie: TMPDIR, or else /var/tmp, or else the system's temporary folder.

    /tmp comes last, as it may itself be in memory.
    """
    usual = Path("/var/tmp")
    if "TMPDIR" not in os.environ and os.access(usual, os.W_OK):
        return usual
    return Path(tempfile.gettempdir())


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """An array of any content; from LARGE bytes on it lies on disk.

    Raises RestorationError if the disk has no room for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=folder()) as file:
            _reserve(file.fileno(), size)
            mapped = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise RestorationError(
            f"{folder()}: no room for a result of {size / 2**30:.1f} GiB while it is computed:"
            f" {error.strerror}; set TMPDIR to another folder"
        ) from error
    return np.frombuffer(mapped, dtype).reshape(shape)


def release(*arrays: Array) -> None:
    """Take arrays that lie on disk out of memory; they come back when they are read."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        base = base.obj if isinstance(base, memoryview) else base
        if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)


def _reserve(file: int, size: int) -> None:
    """Make room now: if the disk turned out to be full later, the process would be killed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = bytes(2**20)
    for start in range(0, size, len(zeros)):
        os.write(file, zeros[: size - start])
