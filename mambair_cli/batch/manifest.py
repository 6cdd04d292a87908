"""What was done in an output folder: `.mambair.jsonl`, one line for each file that was restored or failed.

A line is appended when its output has been renamed into place, later lines count, and a run ends by dropping the
earlier ones. So it can be read after a kill at any moment, and several runs can share a folder.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Any

from ..errors import ImageError
from .jobs import Job

if sys.platform != "win32":
    import fcntl

MANIFEST = ".mambair.jsonl"


@dataclass
class Record:
    """What became of a file.

    status is ok, skipped (it was finished) or failed, and error then says why. Sizes are (width, height) in
    pixels, as far as they became known. level is what was measured of the degradation; models are those
    that ran. seconds are those of reading,
    restoring and writing without the waiting. notes are warnings. key tells one state of an input, together with the
    settings, from others.
    """

    input: str
    output: str
    status: str = "failed"
    size_in: list[int] | None = None
    size_out: list[int] | None = None
    tiles: int | None = None
    level: int | None = None
    models: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    key: dict[str, Any] | None = None


class Manifest:
    """What was done in an output folder, as its `.mambair.jsonl` tells.

    Args:
        folder: the output folder, which need not exist yet.
        settings: what decides the pixels of a result besides the input, such as the model's hash and the scale;
            of types that JSON has.

    Raises ImageError where the file is there and cannot be read. Lines that are no records are passed over.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.path, self.settings = folder, folder / MANIFEST, settings
        self._lock = threading.Lock()
        try:
            self.records = _records(self.path.read_bytes().splitlines())
        except FileNotFoundError:
            self.records = {}
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be read: {error.strerror}") from error

    def key(self, source: Path) -> dict[str, Any] | None:
        """Tells this state of an input and the settings from others; None where there is no such file."""
        try:
            status = source.stat()
        except OSError:
            return None
        state = {"name": source.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        return {**state, **self.settings}

    def finished(self, job: Job) -> Record | None:
        """The record of a job whose result is there, made of this input with these settings."""
        assert job.source
        assert job.target
        found = self.records.get(self._name(job.target))
        if not found or found.get("status") != "ok" or found.get("key") != self.key(job.source):
            return None
        if not job.target.is_file():
            return None
        known = {
            name: found[name]
            for name in ("size_in", "size_out", "tiles", "level", "models")
            if name in found
        }
        return Record(str(job.source), str(job.target), "skipped", **known)

    def append(self, record: Record) -> None:
        """Add the record of a file, at once and whole. Raises ImageError where that cannot be."""
        line = (
            json.dumps({**asdict(record), "output": self._name(Path(record.output))}).encode()
            + b"\n"
        )
        with self._locked() as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # cut off by a full disk or a power failure
                    line = b"\n" + line
            file.write(line)

    def compact(self) -> None:
        """Leave one line for each file, the last. Raises ImageError where that cannot be."""
        with self._locked() as file:
            file.seek(0)
            lines = file.read().splitlines()
            records = _records(lines)
            if len(records) < len(lines):
                temporary = self.path.with_name(f"{MANIFEST}.tmp")
                temporary.write_text(
                    "".join(f"{json.dumps(record)}\n" for record in records.values())
                )
                temporary.replace(self.path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[BufferedRandom]:
        """The file, to read and append to, for one thread of one process at a time."""
        try:
            while True:
                with self._lock, self.path.open("ab+") as file:
                    if sys.platform != "win32":
                        with contextlib.suppress(OSError):  # some network file systems cannot lock
                            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
                    if os.path.samestat(
                        os.fstat(file.fileno()), self.path.stat()
                    ):  # else it has been compacted
                        yield file
                        return
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()


def _records(lines: Sequence[bytes]) -> dict[str, dict[str, Any]]:
    """By the name of the output, the last record of each."""
    records = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            records[record["output"]] = record
    return records
