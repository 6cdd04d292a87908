"""Results that need not be computed again: rows by the hash of all that they depend on."""

import contextlib
import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..system.texts import parse_json


def key_of(**settings: Any) -> str:
    """A hash of settings of types that JSON has."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def code_digest(folder: Path = Path(__file__).parents[1]) -> str:
    """A hash of all Python sources in a folder: results of other code are other results."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.py")
    }
    return key_of(**{name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


class Cache:
    """Rows by key in a SQLite file that several runs may share. An interrupt leaves whole rows.

    Args:
        path: of the file, which is made where it is missing; None keeps nothing.

    Raises CacheError where the file cannot be opened.
    """

    def __init__(self, path: Path | None):
        self.path, self._lock = path, threading.Lock()
        with self._named():
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = sqlite3.connect(
                path or ":memory:", timeout=30, check_same_thread=False, isolation_level=None
            )
            self._rows.execute(
                "create table if not exists rows (key text primary key, row text not null)"
            )

    def get(self, key: str) -> Any:
        """The row of a key; None where there is none. Raises CacheError."""
        with self._named():
            found = self._rows.execute("select row from rows where key = ?", (key,)).fetchone()
            return parse_json(found[0]) if found else None

    def put(self, key: str, row: Any) -> None:
        """Keep a row, from any thread. Raises CacheError."""
        with self._named():
            self._rows.execute("insert or replace into rows values (?, ?)", (key, json.dumps(row)))

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    @contextlib.contextmanager
    def _named(self) -> Any:
        try:
            with self._lock:
                yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise CacheError(
                f"{self.path}: the results kept there cannot be used ({error}); delete it"
            ) from error
