"""Settings of the process that cost or save more time than a kernel does."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's names for mallopt (malloc.h)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def limit_spinning() -> None:
    """Keep idle OpenMP threads from burning a core.

    With one other busy process, 2 threads took 30 times longer. Has effect only before torch is
    imported, and only if the user has not decided otherwise.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers instead of returning them to the system after every operation.

    Fresh pages cost more than the arithmetic on them: a network at 256x256 ran 1.7 times faster.
    It holds for the whole process, so programs that restore or train call it, not this package's
    import.
    """
    if sys.platform == "linux":
        # The C library musl has none.
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers below 1e-38 for zero, in this thread and in those that it starts meanwhile.

    Gradients behind a saturated GELU get there, and processors take a hundred times longer for
    them: a training was slowed down by half within 3,000 iterations.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
