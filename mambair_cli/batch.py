"""Many files in one run: what goes where, what is finished already, and reading, restoring and writing at once.

An output folder keeps `.mambair.jsonl`, one line for each file that was restored or failed. A line is appended
when its output has been renamed into place, later lines count, and a run ends by dropping the earlier ones. So it can
be read after a kill at any moment, and several runs can share a folder.
"""

import contextlib
import errno
import fnmatch
import itertools
import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CallError, ImageError, MambairError
from .image_io import (
    MAX_PIXELS,
    OUTPUT_SUFFIXES,
    Image,
    check_writable,
    decode_image,
    encode_image,
    read_image,
    write_image,
)
from .registry import MAX_SCALE

if sys.platform != "win32":
    import fcntl
if TYPE_CHECKING:
    from .engine import Upscaler
    from .resize import Size

MANIFEST = ".mambair.jsonl"
INPUT_SUFFIXES = {
    *OUTPUT_SUFFIXES,
    *(".apng", ".avif", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".pbm", ".pnm", ".psd", ".tga"),
}
"""What counts as an image in a folder, in lower case; a file that is named itself may have any suffix."""

WRITERS = 4  # threads that encode
PIXELS_BEHIND = 32 * 2**20  # of results that wait for the writers; a larger one is computed when all are written
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An image and where its result goes.

    source: None for stdin. target: None for stdout, which gets the format of `suffix` (such as ".png").
    """

    source: Path | None
    target: Path | None
    suffix: str = ""


@dataclass
class Record:
    """What became of a file.

    status is ok, skipped (it was finished) or failed, and error then says why. Sizes are (width, height) in
    pixels, as far as they became known. seconds are those of reading, restoring and writing without the waiting.
    notes are warnings. key tells one state of an input, together with the settings, from others.
    """

    input: str
    output: str
    status: str = "failed"
    size_in: list[int] | None = None
    size_out: list[int] | None = None
    tiles: int | None = None
    seconds: float = 0.0
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    key: dict[str, Any] | None = None


# What goes where


def find_jobs(
    inputs: Sequence[str],
    output: str | None,
    *,
    suffix: str | None = None,
    default_suffix: str = "",
    format: str | None = None,
    globs: Sequence[str] = (),
) -> tuple[list[Job], Path | None]:
    """The jobs in natural order, and the output folder, where they go into one.

    A folder is searched recursively for images, except what is hidden and the output folder, and its tree is
    mirrored: right in the output folder where it is the only input, else in a subfolder of its name.
    Of results that would get the same name, that of an image of this type gets it; a.jpg becomes a.jpg.png.

    Args:
        inputs: one file, several, folders; or "-" for stdin.
        output: a file (or "-" for stdout) where there is one file; else, or where it ends in a slash or exists
            as a folder, a folder. None is for one file: beside it.
        suffix: appended to the stems of the results; None is `default_suffix` beside the input, else nothing.
        default_suffix: what tells a result from the input beside it.
        format: of the results, one of OUTPUT_SUFFIXES without the dot; by default the input's, or png.
        globs: patterns of names, or of paths below the folder, one of which the files in folders must match.

    Raises CallError (no such input, no image, an output that is an input, what contradicts itself) and, for one
    file, what `check_writable` raises.
    """
    if "-" in inputs or output == "-":
        return [_piped_job(inputs, output, suffix, format)], None
    if suffix and Path(suffix).name != suffix:
        raise CallError(f"--suffix is a part of a name, which {suffix!r} cannot be")
    sources = [Path(name) for name in inputs]
    for source in sources:
        if not source.exists():
            raise CallError(f"{source}: no such file; check the path")
    folders = [source for source in sources if source.is_dir()]
    if output is None:
        if folders:
            raise CallError(f"{folders[0]}: is a folder; give -o FOLDER for the results")
        if len(sources) > 1:
            raise CallError("several inputs need -o FOLDER for the results")
        extension = output_suffix(sources[0], format)
        ending = default_suffix if suffix is None else suffix
        job = Job(sources[0], sources[0].with_name(f"{sources[0].stem}{ending}{extension}"))
    elif folders or len(sources) > 1 or output.endswith(("/", os.sep)) or Path(output).is_dir():
        jobs = _folder_jobs(sources, Path(output), suffix or "", format, globs)
        _keep_inputs(jobs)
        return jobs, Path(output)
    else:
        _whole_name(output, suffix, format)
        if not Path(output).suffix:
            raise CallError(f"{output}: unknown suffix ''; add one such as .png, or a slash if it is a folder")
        job = Job(sources[0], Path(output))
    _keep_inputs([job])
    assert job.target
    check_writable(job.target)
    return [job], None


def output_suffix(source: Path, format: str | None) -> str:
    """The suffix of the result of `source`, with its dot. Raises CallError for a format that cannot be written."""
    if format is None:
        return source.suffix if source.suffix.lower() in OUTPUT_SUFFIXES else ".png"
    suffix = f".{format.lower().removeprefix('.')}"
    if suffix not in OUTPUT_SUFFIXES:
        known = " ".join(OUTPUT_SUFFIXES).replace(".", "")
        raise CallError(f"--format cannot be {format!r}; use one of {known}")
    return suffix


def natural_key(name: str) -> list[int | str]:
    """Sorts photo2 before photo10, and capitals with small letters."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def _piped_job(inputs: Sequence[str], output: str | None, suffix: str | None, format: str | None) -> Job:
    if len(inputs) > 1:
        raise CallError("- (stdin or stdout) goes with one input only")
    if output is None:
        raise CallError("where does the result of - go? give -o FILE, or -o - for stdout")
    source = None if inputs[0] == "-" else Path(inputs[0])
    if source and not source.exists():
        raise CallError(f"{source}: no such file; check the path")
    if source and source.is_dir():
        raise CallError(f"{source}: is a folder; give -o FOLDER for the results")
    if output != "-":
        _whole_name(output, suffix, format)
        check_writable(Path(output))
        return Job(source, Path(output))
    if sys.stdout.isatty():
        raise CallError("an image does not go to a terminal; redirect stdout, or give -o FILE")
    return Job(source, None, output_suffix(source or Path(), format))


def _whole_name(output: str, suffix: str | None, format: str | None) -> None:
    if suffix is not None or format is not None:
        raise CallError(f"{output}: is the whole name of the result; leave out --suffix and --format")


def _folder_jobs(
    sources: Sequence[Path], output: Path, suffix: str, format: str | None, globs: Sequence[str]
) -> list[Job]:
    if output.exists() and not output.is_dir():
        raise CallError(f"{output}: is a file; name a folder for the results")
    found: dict[Path, tuple[Path, Path, bool]] = {}  # by the absolute path: as given, in the output folder, matches
    for source in sources:
        if not source.is_dir():
            found.setdefault(source.parent.resolve() / source.name, (source, Path(source.name), True))
            continue
        absolute = source.resolve()
        if absolute == output.resolve():
            raise CallError(f"{output}: is the folder of the inputs as well; name another for the results")
        top = Path() if len(sources) == 1 else Path(absolute.name)
        for relative, matches in _images_below(source, output.resolve(), globs):
            found.setdefault(absolute / relative, (source / relative, top / relative, matches))
    files = sorted(found.values(), key=lambda file: (natural_key(str(file[1])), str(file[0])))
    names = _result_names([relative for _, relative, _ in files], suffix, format)  # the same with any globs
    jobs = [Job(source, output / name) for (source, _, matches), name in zip(files, names, strict=True) if matches]
    if not jobs:
        what = " that matches --glob" if globs else ""
        raise CallError(f"{', '.join(map(str, sources))}: there is no image{what}")
    return jobs


def _result_names(files: Sequence[Path], suffix: str, format: str | None) -> list[Path]:
    """A name for each result that no other has, also where the file system ignores the case."""
    plain = [file.parent / f"{file.stem}{suffix}{output_suffix(file, format)}" for file in files]
    wanted = Counter(str(name).casefold() for name in plain)
    names, taken = list(plain), set[str]()
    keeps_type = [file.suffix.lower() == name.suffix.lower() for file, name in zip(files, plain, strict=True)]
    for i in sorted(range(len(files)), key=lambda i: not keeps_type[i]):
        first = [plain[i]] if keeps_type[i] or wanted[str(plain[i]).casefold()] == 1 else []
        numbers = itertools.chain([""], (f"-{n}" for n in itertools.count(2)))
        others = (files[i].parent / f"{files[i].name}{n}{suffix}{plain[i].suffix}" for n in numbers)
        names[i] = next(name for name in itertools.chain(first, others) if str(name).casefold() not in taken)
        taken.add(str(names[i]).casefold())
    return names


def _images_below(folder: Path, output: Path, globs: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Paths below `folder` of its images, and whether a glob matches them.

    Also paths of subfolders that cannot be listed: trying to read these as images tells why.
    """
    unreadable: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename))):
        here = Path(where)
        folders[:] = [name for name in folders if name[0] != "." and (here / name).resolve() != output]
        for name in files:
            path = (here / name).relative_to(folder)
            if name[0] != "." and path.suffix.lower() in INPUT_SUFFIXES and (here / name).is_file():
                texts = name, path.as_posix()
                yield path, not globs or any(fnmatch.fnmatch(text, glob) for text in texts for glob in globs)
    yield from ((path.relative_to(folder), True) for path in unreadable)


def _keep_inputs(jobs: Sequence[Job]) -> None:
    """Raise CallError where a result would replace an input, also through a link."""

    def identity(path: Path | None) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            if path:
                status = path.stat()
                return status.st_dev, status.st_ino
        return None

    inputs = {identity(job.source) for job in jobs} - {None}
    for job in jobs:
        if identity(job.target) in inputs:
            raise CallError(f"{job.target}: is the input itself; name another output with -o, or give --suffix")


# What is finished


class Manifest:
    """What was done in an output folder, as its `.mambair.jsonl` tells: see the head of this module.

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
        return Record(
            str(job.source), str(job.target), "skipped", found.get("size_in"), found.get("size_out"), found.get("tiles")
        )

    def append(self, record: Record) -> None:
        """Add the record of a file, at once and whole. Raises ImageError where that cannot be."""
        line = json.dumps({**asdict(record), "output": self._name(Path(record.output))}).encode() + b"\n"
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
                temporary.write_text("".join(f"{json.dumps(record)}\n" for record in records.values()))
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
                    if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):  # else it has been compacted
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


# The work


@dataclass
class Batch:
    """Restores files one after the other, while others are read and written.

    At any time there are in memory: one image read ahead, one at work, and results for the writers of at most
    PIXELS_BEHIND pixels together or a single one.

    Attributes:
        upscaler: does the work. size: of the results. quality: of the formats that have one, 1 to 100.
        manifest: of the output folder. Without one, for a single file, nothing is recorded or skipped, and the
            first error is raised.
        overwrite: also restore what is finished.
        max_pixels: of an input; larger ones fail (a guard against decompression bombs).
    """

    upscaler: "Upscaler"
    size: "Size"
    quality: int | None = None
    manifest: Manifest | None = None
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS

    def run(self, jobs: Sequence[Job], done: Callable[[Record], None], progress: Callable[[float, str], None]) -> None:
        """Restore what is not finished. Under torchrun the processes share the work, and the first tells of it.

        Args:
            jobs: as found by `find_jobs`; those of rank 0 count.
            done: called with the record of each file, in the order in which they finish; only in the process of
                rank 0, there also for the files of the others.
            progress: called with the share of this process's work that is done, from 0 to 1, and what is at work.

        An interrupt is raised after the results that are computed have been written and told.
        Raises ImageError where no more files can be written (a full disk), CallError where the upscaler cannot do
        what is asked; or without a manifest any error.
        """
        if self.manifest:
            try:
                self.manifest.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ImageError(f"{self.manifest.folder}: cannot be created: {error.strerror}") from error
            if not os.access(self.manifest.folder, os.W_OK | os.X_OK):
                raise ImageError(f"{self.manifest.folder}: no permission to write into it; name another folder")
        peers = Peers()
        if peers.rank > 0:
            records: list[Record] = []
            with contextlib.suppress(ImageError):  # its record tells the process of rank 0
                self._restore(peers.receive_jobs(), records.append, progress)
            peers.send_records(records)
            return
        left = []
        for job in jobs:
            finished = self.manifest.finished(job) if self.manifest and not self.overwrite else None
            if finished:
                done(finished)
            else:
                left.append(job)
        peers.send_jobs(left)
        stopped = None
        try:
            self._restore(left[:: peers.world], done, progress)
        except ImageError as error:
            stopped = error
        for record in peers.receive_records():
            done(record)
        if stopped:
            raise stopped
        if self.manifest:
            with contextlib.suppress(ImageError):  # all that counts is in it
                self.manifest.compact()

    def _restore(
        self, jobs: Sequence[Job], done: Callable[[Record], None], progress: Callable[[float, str], None]
    ) -> None:
        weights = [_file_size(job) for job in jobs]  # for the progress, as the pixels are not known yet
        writing: deque[tuple[Record, int, Future[None]]] = deque()
        fatal: Exception | None = None

        def fail(record: Record, error: Exception) -> None:
            nonlocal fatal
            if self.manifest is None:
                fatal = error
                return
            record.status, record.error = "failed", _reason(record, error)
            if not isinstance(error, (MambairError, OSError)):
                logger.info("not foreseen", exc_info=error)
            if _is_disk_full(error):
                fatal = ImageError("stopped, as nothing more can be written; make room and run it again")
            with contextlib.suppress(ImageError):  # the error of the file is the one to tell
                self.manifest.append(record)
            done(record)

        def settle_oldest() -> None:
            record, _, written = writing.popleft()
            try:
                written.result()
            except Exception as error:
                fail(record, error)
            else:
                done(record)

        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writers:
            records = [Record(str(job.source or "-"), str(job.target or "-")) for job in jobs]
            reads = (reader.submit(self._read, job, record) for job, record in zip(jobs, records, strict=True))
            # A pair makes the generator submit the following read before the current one is worked on.
            pairs = itertools.pairwise(itertools.chain(reads, [Future[Image]()]))
            starts = list(itertools.accumulate(weights, initial=0))
            try:
                for i, (reading, _) in enumerate(pairs):
                    if fatal:
                        break
                    job, record = jobs[i], records[i]
                    label = _name(job) if len(jobs) == 1 else f"{i + 1} of {len(jobs)}: {_name(job)}"

                    def report(share: float, i: int = i, label: str = label) -> None:
                        progress((starts[i] + share * weights[i]) / starts[-1], label)

                    report(0)
                    try:
                        image = reading.result()
                    except Exception as error:
                        fail(record, error)
                        continue
                    pixels = math.prod(self.size.of(*image.pixels.shape[:2]))
                    while writing and (writing[0][2].done() or sum(w[1] for w in writing) + pixels > PIXELS_BEHIND):
                        settle_oldest()
                    if fatal:
                        break
                    try:
                        result = self._compute(image, record, report)
                    except CallError:  # wrong for one, wrong for all
                        raise
                    except Exception as error:
                        fail(record, error)
                        continue
                    writing.append((record, pixels, writers.submit(self._write, job, record, result)))
                    del image, result  # or the next one finds less memory
            finally:
                reader.shutdown(wait=False, cancel_futures=True)
                while writing:
                    settle_oldest()
        if fatal:
            raise fatal

    def _read(self, job: Job, record: Record) -> Image:
        with _timed(record):
            if self.manifest and job.source:
                record.key = self.manifest.key(job.source)  # before it is read: it could change
            if job.source:
                image = read_image(job.source, max_pixels=self.max_pixels)
            else:
                image = decode_image(sys.stdin.buffer.read(), "stdin", max_pixels=self.max_pixels)
            height, width = image.pixels.shape[:2]
            record.size_in = [width, height]
            record.notes += image.notes
            factor = self.size.factor(height, width)
            if not 1 <= factor <= MAX_SCALE:
                name = job.source or "stdin"
                raise ImageError(f"{name}: would become {factor:g} times as large; possible is 1 to {MAX_SCALE} times")
            if job.target:
                if self.manifest:
                    job.target.parent.mkdir(parents=True, exist_ok=True)
                check_writable(job.target, self.size.of(height, width))
            return image

    def _compute(self, image: Image, record: Record, report: Callable[[float], None]) -> Image:
        with _timed(record):
            height, width = image.pixels.shape[:2]
            record.tiles = self.upscaler.tiles(self.size, height, width)
            result = self.upscaler.restore_image(image, self.size, report)
            record.size_out = [result.pixels.shape[1], result.pixels.shape[0]]
            return result

    def _write(self, job: Job, record: Record, result: Image) -> None:
        with _timed(record):
            record.notes += _write_image(job, result, self.quality)
        record.status = "ok"
        if self.manifest:
            self.manifest.append(record)


def _write_image(job: Job, image: Image, quality: int | None) -> list[str]:
    if job.target:
        return write_image(job.target, image, quality=quality)
    data, notes = encode_image(image, job.suffix.removeprefix("."), quality)
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise ImageError(f"stdout: cannot be written: {error.strerror}") from error
    return [f"stdout: {note}" for note in notes]


def _name(job: Job) -> str:
    return job.source.name if job.source else "stdin"


def _file_size(job: Job) -> int:
    try:
        return max(1, job.source.stat().st_size) if job.source else 1
    except OSError:
        return 1


@contextlib.contextmanager
def _timed(record: Record) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        record.seconds = round(record.seconds + time.perf_counter() - started, 3)


def _reason(record: Record, error: Exception) -> str:
    if isinstance(error, MambairError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or record.output}: {error.strerror}"
    return f"{record.input}: {type(error).__name__}: {error}"


def _is_disk_full(error: BaseException) -> bool:
    cause = error.__cause__ or error
    return isinstance(cause, OSError) and cause.errno in _DISK_FULL


class Peers:
    """The processes that torchrun started for one call: they share the files, and meet in torch's store.

    Attributes:
        rank: of this process, 0 without torchrun. world: how many there are.

    Raises CallError where the environment is not complete.
    """

    def __init__(self) -> None:
        try:
            self.rank, self.world = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
            if self.world > 1:
                from torch.distributed import rendezvous

                self._store = next(rendezvous("env://"))[0]
        except (ValueError, RuntimeError) as error:
            raise CallError(
                f"RANK and WORLD_SIZE are set, but the processes do not meet: {error}; use torchrun"
            ) from error

    def send_jobs(self, jobs: Sequence[Job]) -> None:
        """From rank 0 to each of the others: its share."""
        for rank in range(1, self.world):
            paths = [(str(job.source), str(job.target)) for job in jobs[rank :: self.world]]
            self._store.set(f"jobs {rank}", json.dumps(paths))

    def receive_jobs(self) -> list[Job]:
        """On another rank than 0: its share."""
        return [Job(Path(source), Path(target)) for source, target in self._receive(f"jobs {self.rank}")]

    def send_records(self, records: Sequence[Record]) -> None:
        """From another rank to rank 0."""
        self._store.set(f"records {self.rank}", json.dumps([asdict(record) for record in records]))

    def receive_records(self) -> Iterator[Record]:
        """On rank 0: the records of the others, as soon as each is done."""
        for rank in range(1, self.world):
            yield from (Record(**record) for record in self._receive(f"records {rank}"))

    def _receive(self, key: str) -> Any:
        while not self._store.check([key]):  # its own waiting cannot be interrupted
            time.sleep(0.1)
        return json.loads(self._store.get(key))
