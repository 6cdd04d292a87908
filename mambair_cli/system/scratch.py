"""Arrays that may be larger than memory: from a size on, they lie in a file that vanishes with them."""

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
    """Where large arrays lie: TMPDIR where it is set, else /var/tmp (as /tmp may be in memory), else the system's."""
    usual = Path("/var/tmp")
    return (
        usual
        if "TMPDIR" not in os.environ and os.access(usual, os.W_OK)
        else Path(tempfile.gettempdir())
    )


def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """An array of any content, on disk from LARGE bytes on.

    Raises RestorationError where the disk lacks room for it.
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
            f"{folder()}: no room for a result of {size / 2**30:.1f} GiB on its way: {error.strerror};"
            " name another folder by TMPDIR"
        ) from error
    return np.frombuffer(mapped, dtype).reshape(shape)


def release(*arrays: Array) -> None:
    """Take what lies on disk out of memory for now; it comes back when it is read. Others stay as they are."""
    for array in arrays:
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        base = base.obj if isinstance(base, memoryview) else base
        if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)


def _reserve(file: int, size: int) -> None:
    """Make room now: on a disk that turns out to be full later, the process would be killed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = bytes(2**20)
    for start in range(0, size, len(zeros)):
        os.write(file, zeros[: size - start])
