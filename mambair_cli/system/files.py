"""Files that are there whole or not at all, and their hashes."""

import contextlib
import hashlib
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".mambair-{}.tmp"
"""The name of a file until it is whole."""


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of target at the end; where anything fails, target is
    untouched.

    A file that is replaced passes its mode on. Raises OSError.
    """
    temporary = target.with_name(TEMPORARY.format(secrets.token_hex(8)))
    try:
        with temporary.open("xb") as file:
            yield file
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
