"""Keeps libraries in C from writing to the terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Turn off file descriptor 2, where libraries complain of files; `sys.stderr` goes on.

    For the whole process: only one thread at a time may be inside.
    """
    python = sys.stderr
    try:
        saved = os.dup(2)
    # closed by whoever started the process
    except OSError:
        yield
        return
    try:
        # what Python prints meanwhile, as in other threads, still arrives
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if python.fileno() == 2:
                python.flush()
                sys.stderr = os.fdopen(os.dup(2), "w", 1, python.encoding, python.errors)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        sys.stderr = python
