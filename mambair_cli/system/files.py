"""Files that are read whole, or written whole or not at all, and their hashes."""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import select
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

TEMPORARY = ".mambair-*.tmp"
"""How a file is called until it is whole: by the computer and process that write it."""

STALE = 3600
"""Seconds after which a temporary file of another computer must be of a process that was killed."""

SILENCE = 60.0
"""Seconds for which a pipe may send nothing."""

MAX_TEXT = 2**26
"""The most bytes of a text that people or programs write: recipes, records, manifests by line."""

_CHUNK = 2**20
_cleared: set[Path] = set()


def read_file(path: Path, limit: int = MAX_TEXT) -> bytes:
    """The content of a regular file, or of a pipe that somebody writes to.

    Raises:
        OSError: it cannot be read, is a device or a pipe without a writer, sends nothing for
            SILENCE seconds, or has more than `limit` bytes.
    """
    mode = path.stat().st_mode
    # Opening some devices does something to them; that of folders tells whether it is permitted.
    if not stat.S_ISDIR(mode) or os.name == "nt":
        _check_kind(mode, path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb", buffering=0) as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        _check_kind(status.st_mode, path)
        if stat.S_ISFIFO(status.st_mode):
            return _joined(_from_pipe(file, path), limit, path)
        if status.st_size > limit:
            raise _too_long(limit, path)
        return read_stream(file, limit, path)


def read_stream(stream: BinaryIO, limit: int, name: object = "stdin") -> bytes:
    """All that a stream sends. Raises OSError as soon as that is more than `limit` bytes."""
    return _joined(iter(lambda: stream.read(_CHUNK), b""), limit, name)


def _joined(chunks: Iterable[bytes], limit: int, name: object) -> bytes:
    whole = io.BytesIO()
    for chunk in chunks:
        if whole.tell() + len(chunk) > limit:
            raise _too_long(limit, name)
        whole.write(chunk)
    return whole.getvalue()


def _too_long(limit: int, name: object) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(name))


def _check_kind(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is a device, not a file", str(path))


def _from_pipe(file: io.FileIO, path: Path) -> Iterator[bytes]:
    """What a pipe sends, opened without waiting for its writer."""
    begun = False
    while True:
        # None: there is a writer, and nothing to read yet.
        chunk = file.read(_CHUNK)
        if chunk == b"" and not begun:
            raise OSError(errno.EPIPE, "it is a pipe that nobody writes to", str(path))
        if chunk == b"":
            return
        begun = True
        if chunk:
            yield chunk
        elif not select.select([file], [], [], SILENCE)[0]:
            raise OSError(errno.ETIMEDOUT, f"nothing came for {SILENCE:.0f} s", str(path))


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of target at the end; where anything fails, target is
    untouched.

    A file that is replaced passes its mode on. What killed processes have left in the folder is
    removed. Raises OSError, also where target is a device or a pipe.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        # It would take the place of a device.
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(target))
    if target.parent not in _cleared:
        _cleared.add(target.parent)
        clear(target.parent.glob(TEMPORARY))
    temporary = target.with_name(TEMPORARY.replace("*", f"{_owner()}-{secrets.token_hex(8)}"))
    try:
        with temporary.open("xb") as file:
            yield file
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear(temporaries: Iterable[Path]) -> None:
    """Remove those temporary files that no living process owns."""
    # Another process may remove them as well.
    with contextlib.suppress(OSError):
        for path in temporaries:
            with contextlib.suppress(OSError):
                if _is_left_over(path):
                    path.unlink()


def _owner() -> str:
    return f"{_computer()}-{os.getpid()}"


def _computer() -> str:
    """The name of this computer, as a part of a file's name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_left_over(path: Path) -> bool:
    """Whether whoever writes a temporary file is dead, or of another computer and long silent."""
    status = path.stat()
    owner = re.fullmatch(r"\.mambair-([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{16}\.tmp", path.name)
    # Also in the future, as the clock may have jumped.
    is_old = abs(time.time() - status.st_mtime) > STALE
    if owner is None or owner[1] != _computer():
        return is_old
    try:
        begun = psutil.Process(int(owner[2])).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return is_old
    # Else a later process has got the number of one that was killed.
    return begun > status.st_mtime + 10


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises OSError."""
    with replacing(path) as file:
        file.write(content)


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
