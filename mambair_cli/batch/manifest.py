"""What was done in an output folder: `.mambair.jsonl`, one line a file.

A line is appended when its output has been renamed into place. Later lines count, and a run ends by
dropping the earlier ones. So the file can be read after a kill at any moment, and several runs can
share a folder; `.mambair.jsonl.lock` keeps them from writing at the same time.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from ..errors import ImageError
from ..system.files import write_atomically
from ..system.texts import parse_json
from .jobs import MANIFEST, Job

LOCK = f"{MANIFEST}.lock"

LONGEST_LINE = 2**20
"""Bytes of a line; a record has less than a thousand."""


@dataclass
class Record:
    """What became of a file.

    Attributes:
        input: its path.
        output: the path of its result.
        status: ok, skipped (it was finished already), failed, or planned in a dry run.
        size_in: width and height of the input in pixels, if it could be read.
        size_out: width and height of the result in pixels.
        tiles: how many the input was cut into.
        level: how much degradation was measured.
        seen: what the input was found to be, such as clean or noisy; empty if nothing was judged.
        why: the same in words.
        left: what is left in the result, and what would help.
        models: those that ran.
        memory: bytes that the work needs at most, if that was estimated.
        seconds: of reading, restoring and writing, without the waiting.
        error: why it failed.
        notes: warnings.
        key: tells this state of the input and the settings from others.
    """

    input: str
    output: str
    status: str = "failed"
    size_in: list[int] | None = None
    size_out: list[int] | None = None
    tiles: int | None = None
    level: int | None = None
    seen: str = ""
    why: str = ""
    left: str | None = None
    models: list[str] = field(default_factory=list)
    memory: int | None = None
    seconds: float = 0.0
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    key: dict[str, Any] | None = None


class Manifest:
    """What was done in an output folder, as its `.mambair.jsonl` tells.

    Lines that are not records are passed over.

    Args:
        folder: the output folder; it need not exist yet.
        settings: what decides the pixels of a result besides the input, such as the model's hash
            and the scale; of types that JSON has.

    Raises:
        ImageError: the file exists and cannot be read.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.path, self.settings = folder, folder / MANIFEST, settings
        self._lock = FileLock(folder / LOCK)
        self.records: dict[str, dict[str, Any]] = {}
        # Which file was read, and how much of it.
        self._read = (0, 0)
        self.refresh()

    def refresh(self) -> None:
        """Read what has been appended since, by this run or another one."""
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise ImageError(f"{self.path}: is not a regular file; move it away")
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                known, place = self._read
                # Another run may have compacted it.
                if known != status.st_ino or place > status.st_size:
                    self.records, place = {}, 0
                file.seek(place)
                found, place, _ = _read_records(file)
        except FileNotFoundError:
            self.records = {}
            return
        except OSError as error:
            raise ImageError(f"{self.path}: cannot be read: {error.strerror}") from error
        self.records |= found
        self._read = (status.st_ino, place)

    def key(self, source: Path) -> dict[str, Any] | None:
        """What tells this state of an input and the settings from others; None without a file."""
        try:
            status = source.stat()
        except OSError:
            return None
        state = {"name": source.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        return {**state, **self.settings}

    def finished(self, job: Job) -> Record | None:
        """The record of a job whose result exists, made of this input with these settings."""
        assert job.source
        assert job.target
        found = self.records.get(self._name(job.target))
        if not found or found.get("status") != "ok" or found.get("key") != self.key(job.source):
            return None
        if not job.target.is_file():
            return None
        known = {
            name: found[name]
            for name in ("size_in", "size_out", "tiles", "level", "seen", "why", "models")
            if name in found
        }
        return Record(str(job.source), str(job.target), "skipped", **known)

    def append(self, record: Record) -> None:
        """Add the record of a file, at once and whole. Raises ImageError if that is impossible."""
        facts = {**asdict(record), "output": self._name(Path(record.output))}
        line = json.dumps(facts).encode() + b"\n"
        with self._locked(), self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # A full disk or a power failure may have cut off the last line.
                if file.read() != b"\n":
                    line = b"\n" + line
            file.write(line)

    def compact(self) -> None:
        """Keep the last line of each file. Raises ImageError if that is impossible."""
        with self._locked():
            with self.path.open("rb") as file:
                records, _, lines = _read_records(file)
            if len(records) < lines:
                kept = [f"{json.dumps(record)}\n" for record in records.values()]
                write_atomically(self.path, "".join(kept).encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one thread of one process is inside at a time."""
        with contextlib.ExitStack() as stack:
            try:
                # Some network file systems cannot lock: filelock then raises NotImplementedError.
                with contextlib.suppress(NotImplementedError):
                    stack.enter_context(self._lock)
                yield
            except OSError as error:
                raise ImageError(f"{self.path}: cannot be written: {error.strerror}") from error

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()


def _read_records(file: BinaryIO) -> tuple[dict[str, dict[str, Any]], int, int]:
    """By the name of the output, the last record of each; where the last whole line ends; how many
    lines there are.
    """
    records: dict[str, dict[str, Any]] = {}
    place, lines, inside = file.tell(), 0, False
    while line := file.readline(LONGEST_LINE):
        # of a line that is too long, a part
        ends, begins, inside = line.endswith(b"\n"), not inside, not line.endswith(b"\n")
        if not ends:
            continue
        place, lines = file.tell(), lines + 1
        with contextlib.suppress(ValueError):
            record = parse_json(line)
            if begins and _is_record(record):
                records[record["output"]] = record
    return records, place, lines


def _is_record(record: Any) -> bool:
    """Whether a line is of a file, and what is used of it has the types that it should have."""
    if not isinstance(record, dict):
        return False
    texts = ("output", "status", "seen", "why")
    sizes = (record.get("size_in") or [1, 1], record.get("size_out") or [1, 1])
    return (
        "output" in record
        and all(isinstance(record.get(name, ""), str) for name in texts)
        and all(isinstance(record.get(name), int | None) for name in ("tiles", "level"))
        and all(isinstance(size, list) and len(size) == 2 for size in sizes)
        and all(type(side) is int and side > 0 for size in sizes for side in size)
        and isinstance(record.get("models", []), list)
        and all(isinstance(name, str) for name in record.get("models", []))
    )
