"""What was done in an output folder: `.mambair.jsonl`, one line a file.

A line is appended when its output has been renamed into place. Later lines count, and a run ends by
dropping the earlier ones. So the file can be read after a kill at any moment, and several runs can
share a folder; `.mambair.jsonl.lock` keeps them from writing at the same time.

A shard writes a file of its own, such as `.mambair-3-of-8.jsonl`; every run reads all of them.
"""

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from ..errors import ImageError
from ..system.files import write_atomically
from ..system.texts import parse_json
from ..system.urls import Place, Url
from .claims import Claims
from .jobs import Job
from .listing import MANIFEST, MANIFESTS
from .shards import Shard

LOCK = f"{MANIFEST}.lock"

LONGEST_LINE = 2**20
"""Bytes of a line; a record has less than a thousand."""

_FILE_BITS = 20
"""Of the number that tells where a record is: which file; the others are the place in it."""


@dataclass(slots=True)
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
    """What was done in an output folder, as its manifests tell.

    Lines that are not records are passed over. Memory holds only where the last line of each file
    is, as there may be a million.

    Args:
        folder: the output folder; it need not exist yet.
        settings: what decides the pixels of a result besides the input, such as the model's hash
            and the scale; its values are of JSON's types.
        shard: which part of the folder this run restores; None: the whole.
        rank: of this process, if several write manifests of their own for one run.

    Raises:
        ImageError: a manifest exists and cannot be read.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], shard: Shard | None = None, rank: int = 0
    ):
        self.folder, self.settings = folder, settings
        self.path = folder / _manifest_name(shard, rank)
        self._lock = FileLock(folder / f"{self.path.name}.lock")
        self._files = [self.path]
        # By the name of an output: the place of its last line, and which file that is in.
        self._places: dict[str, int] = {}
        # Of each file: which one was read, and how much of it.
        self._read: dict[Path, tuple[int, int]] = {}
        # What is the same for many records is kept once.
        self._same: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read what has been appended since, by this run or another one."""
        try:
            # The one of this run first.
            found = sorted({self.path, *self.folder.glob(MANIFESTS)} - set(self._files))
        except OSError as error:
            raise ImageError(f"{self.folder}: cannot be listed: {error.strerror}") from error
        self._files += found
        if any(self._is_new(path) for path in self._files):
            # Places in a file that is gone mean nothing any more.
            self._places, self._read = {}, {}
        for number, path in enumerate(self._files):
            self._read_on(number, path)

    def names(self) -> set[str]:
        """The names of the outputs that have a record."""
        return set(self._places)

    def key(self, source: Place) -> dict[str, Any] | None:
        """What tells this state of an input and the settings from others; None without a file."""
        if isinstance(source, Url):
            state = {"name": source.name, "bytes": source.bytes, "version": source.version}
            return {**state, **self.settings}
        try:
            status = source.stat()
        except OSError:
            return None
        state = {"name": source.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        return {**state, **self.settings}

    def exists(self, job: Job) -> bool:
        """Whether there is a result of a job, whoever made it."""
        # Of a name that is too long there is none.
        with contextlib.suppress(OSError):
            return isinstance(job.target, Path) and job.target.is_file()
        return False

    def finished(self, job: Job) -> Record | None:
        """The record of a job whose result exists, made of this input with these settings."""
        assert job.source
        name = job.name_in(self.result_folder)
        place = self._places.get(name)
        if place is None:
            return None
        found = self._record_at(place, name)
        if found is None:
            # Another run has compacted the file.
            self.refresh()
            place = self._places.get(name)
            found = None if place is None else self._record_at(place, name)
        if not found or found.get("status") != "ok" or found.get("key") != self.key(job.source):
            return None
        if not self.exists(job):
            return None
        known = {
            name: self._shared(found[name])
            for name in ("size_in", "size_out", "tiles", "level", "seen", "why", "models")
            if name in found
        }
        record = Record(*job.names, "skipped", **known)
        record.notes = self._shared(record.notes)
        return record

    @property
    def result_folder(self) -> Place:
        """The folder of the results."""
        return self.folder

    def append(self, record: Record) -> None:
        """Add the record of a file, at once and whole. Raises ImageError if that is impossible."""
        facts = {**asdict(record), "output": self._name(record.output), "at": time.time()}
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
                lines, last = 0, {}
                for line in _lines(file):
                    lines += 1
                    if record := _record(line):
                        last[record["output"]] = line
            if len(last) < lines:
                write_atomically(self.path, b"".join(last.values()))

    def close(self) -> None:
        """End a run: nothing more is appended."""

    def claims(self) -> Claims | None:
        """Return what keeps two runs from doing the same work; None where nothing can."""
        return Claims(self.folder)

    def _name(self, output: str) -> str:
        return Path(output).relative_to(self.folder).as_posix()

    def _is_new(self, path: Path) -> bool:
        """Whether another file has taken the place of the one that was read."""
        known = self._read.get(path)
        try:
            status = path.stat()
        except OSError:
            return known is not None
        return known is not None and (known[0] != status.st_ino or known[1] > status.st_size)

    def _read_on(self, number: int, path: Path) -> None:
        """Read the lines that were added to a file."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ImageError(f"{path}: is not a regular file; move it away")
            with path.open("rb") as file:
                place = self._read.get(path, (0, 0))[1]
                file.seek(place)
                for line in _lines(file):
                    self._take_in(line, place, number)
                    place = file.tell()
                self._read[path] = os.fstat(file.fileno()).st_ino, place
        except FileNotFoundError:
            return
        except OSError as error:
            raise ImageError(f"{path}: cannot be read: {error.strerror}") from error

    def _take_in(self, line: bytes, place: int, number: int) -> None:
        record = _record(line)
        if record is None:
            return
        name = record["output"]
        known = self._places.get(name)
        if known is not None and known % 2**_FILE_BITS != number:
            other = self._record_at(known, name)
            if other and _moment(other) > _moment(record):
                return
        self._places[name] = place << _FILE_BITS | number

    def _record_at(self, place: int, name: str) -> dict[str, Any] | None:
        """The record of an output at a place; None if something else is there by now."""
        path = self._files[place % 2**_FILE_BITS]
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(place >> _FILE_BITS)
            record = _record(file.readline(LONGEST_LINE))
            if record and record["output"] == name:
                return record
        return None

    def _shared(self, value: Any) -> Any:
        """Return the one copy that is kept of all equal values."""
        return self._same.setdefault(repr(value), value) if len(self._same) < 10_000 else value

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one thread of one process in at a time."""
        with contextlib.ExitStack() as stack:
            try:
                # Some network file systems cannot lock: filelock then raises NotImplementedError.
                with contextlib.suppress(NotImplementedError):
                    stack.enter_context(self._lock)
                yield
            except OSError as error:
                raise ImageError(f"{self.path}: cannot be written: {error.strerror}") from error


def _manifest_name(shard: Shard | None, rank: int) -> str:
    """The name of the manifest of a shard, or of whole runs."""
    stem, dot, suffix = MANIFEST.rpartition(".")
    part = f"-{shard.number}-of-{shard.count}" if shard else ""
    part += f"-rank-{rank}" if rank else ""
    return f"{stem}{part}{dot}{suffix}"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines that end, with their ends; of one that is too long, nothing but its end."""
    parts = iter(lambda: file.readline(LONGEST_LINE), b"")
    begins = True
    for part in parts:
        ends = part.endswith(b"\n")
        if ends:
            yield part if begins else b"\n"
        begins = ends


def _record(line: bytes) -> dict[str, Any] | None:
    """Parse a line of the manifest; None if it holds no record."""
    with contextlib.suppress(ValueError):
        record = parse_json(line)
        if _is_record(record):
            found: dict[str, Any] = record
            return found
    return None


def _moment(record: dict[str, Any]) -> float:
    """When a record was written, in seconds; 0 if it does not tell."""
    moment = record.get("at")
    return float(moment) if isinstance(moment, (int, float)) else 0.0


def _is_record(record: Any) -> bool:
    """Whether a parsed line describes a file, with the right types in the fields that are used."""
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
