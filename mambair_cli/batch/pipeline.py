"""Many files in one run: read, restored and written at once, and skipped if they are finished."""

import contextlib
import errno
import itertools
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CallError, ImageError, MambairError
from ..images.io import (
    MAX_BYTES,
    MAX_PIXELS,
    Image,
    decode_image,
    encode_image,
    most_bytes,
    read_image,
    receive_image,
    write_image,
)
from ..models.catalog import model_named
from ..models.tasks import MAX_SCALE
from ..restore.condition import Finding, advice
from ..system import scratch
from ..system.files import TEMPORARY, clear
from ..system.urls import Url, write_object
from .claims import Claims
from .inputs import read_content
from .jobs import Job, check_target
from .manifest import Manifest, Record
from .ranks import Ranks

if TYPE_CHECKING:
    from ..restore.size import Size
    from ..restore.upscaler import Upscaler

WRITERS = 4
"""Threads that encode."""

PIXELS_BEHIND = 32 * 2**20
"""Of results that wait for the writers; a larger one is computed once all others are written."""

PIXELS_AHEAD = 32 * 2**20
"""Of the image at work; from this size on no other is read meanwhile."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """Restores files one after the other while others are read and written.

    At any time, memory holds the image at work, the next one (unless the first is large), and
    results that wait to be written: PIXELS_BEHIND pixels of them at most, or a single larger one.
    Large results lie on disk.

    Attributes:
        upscaler: does the work.
        size: of the results.
        quality: of lossy formats, 1 to 100.
        manifest: of the output folder. Without one, for a single file, nothing is recorded or
            skipped, and the first error is raised.
        overwrite: also restore what is finished.
        max_pixels: of an input; larger ones fail (a guard against decompression bombs).
        max_bytes: of an input's file; longer ones fail.
        keep_times: give results the times and permissions of their inputs.
        first_frame: of animations, and the first page of documents, is all that is restored.
        check: look at the results, and record what is left in them and what would help.
        work: for each model that ran, the pixels of its inputs and the seconds that they took.
    """

    upscaler: "Upscaler"
    size: "Size"
    quality: int | None = None
    manifest: Manifest | None = None
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    keep_times: bool = False
    first_frame: bool = False
    check: bool = False
    work: dict[str, list[float]] = field(default_factory=dict)

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Record], None],
        progress: Callable[[float, str], None],
    ) -> None:
        """Restore what is not finished.

        Under torchrun the processes share the work, and the first tells of it. An interrupt is
        raised after the results that are computed have been written and told.

        Args:
            jobs: as found by `find_jobs`; those of rank 0 count.
            done: called with the record of each file, in the order in which they finish. Only in
                the process of rank 0, and there also for the files of the others.
            progress: called with the share of this process's work that is done, from 0 to 1, and
                what is at work.

        Raises:
            ImageError: no more files can be written (a full disk).
            CallError: the upscaler cannot do what is asked.
            MambairError: without a manifest, whatever happens to the file.
        """
        if self.manifest:
            _prepare_folder(self.manifest.folder)
        try:
            self._share(jobs, done, progress)
        finally:
            if self.manifest:
                self.manifest.close()

    def _share(
        self,
        jobs: Sequence[Job],
        done: Callable[[Record], None],
        progress: Callable[[float, str], None],
    ) -> None:
        """Restore what is not finished, shared with the other processes of torchrun."""
        ranks = Ranks()
        if ranks.rank > 0:
            records: list[Record] = []
            # A record tells the process of rank 0 of the error.
            with contextlib.suppress(ImageError):
                self._restore(ranks.receive_jobs(), records.append, progress)
            ranks.send_records(records)
            return
        left = self.left(jobs, done)
        ranks.send_jobs(left)
        stopped = None
        try:
            self._restore(left[:: ranks.world], done, progress)
        except ImageError as error:
            stopped = error
        for record in ranks.receive_records():
            done(record)
        if stopped:
            raise stopped
        if self.manifest:
            # All that counts is in the manifest already.
            with contextlib.suppress(ImageError):
                self.manifest.compact()

    def left(self, jobs: Sequence[Job], done: Callable[[Record], None]) -> list[Job]:
        """The jobs that are not finished; calls `done` with the records of the others."""
        left = []
        for job in jobs:
            finished = self.manifest.finished(job) if self.manifest and not self.overwrite else None
            if finished:
                done(finished)
            else:
                left.append(job)
        return left

    def preview(self, jobs: Sequence[Job], done: Callable[[Record], None]) -> None:
        """Call `done` with a record of what `run` would make of each file; write nothing.

        The status is planned, skipped or failed. Raises as `run`.
        """
        for job in self.left(jobs, done):
            record = Record(*job.names, "planned")
            try:
                image, found = self._read(job, record)
                height, width = image.pixels.shape[:2]
                chain = self.upscaler.chain(self.size.factor(height, width), found)
                record.models = list(dict.fromkeys(restorer.name for restorer in chain))
                record.tiles = self.upscaler.tiles(self.size, height, width, found)
                rows, columns = self.size.of(height, width)
                record.size_out = [columns, rows]
                record.memory = self.upscaler.memory(self.size, image, found)
            except Exception as error:
                if self.manifest is None:
                    raise
                record.status, record.error = "failed", _reason(record, error)
            record.seconds = 0.0
            done(record)

    def _restore(
        self,
        jobs: Sequence[Job],
        done: Callable[[Record], None],
        progress: Callable[[float, str], None],
    ) -> None:
        # For the progress, as the pixels are not known yet.
        weights = [_file_size(job) for job in jobs]
        starts = list(itertools.accumulate(weights, initial=0))
        looks_again = self.manifest and not self.overwrite
        claims = self.manifest.claims() if self.manifest and looks_again else None
        busy: list[int] = []

        def claimed(order: Iterable[int], wait: bool) -> Iterator[int]:
            """The jobs that no other run works on and that none has finished meanwhile."""
            for i in order:
                target = jobs[i].target
                if claims is None or self.manifest is None or not isinstance(target, Path):
                    yield i
                elif not claims.take(target, wait=wait):
                    busy.append(i)
                elif finished := self._finished_meanwhile(jobs[i]):
                    claims.give_back(target)
                    done(finished)
                else:
                    yield i

        def work(order: Iterable[int], wait: bool = False) -> None:
            def report(i: int) -> Callable[[float], None]:
                place = f"{i + 1} of {len(jobs)}: " if len(jobs) > 1 else ""
                label = place + _name(jobs[i])
                share = weights[i] / starts[-1]
                return lambda part: progress(starts[i] / starts[-1] + part * share, label)

            todo = ((jobs[i], Record(*jobs[i].names), report(i)) for i in claimed(order, wait))
            self._work(todo, _Results(self.manifest, done, claims))

        try:
            work(range(len(jobs)))
            # Their runs have gone on meanwhile; one at a time, or two runs could wait for each
            # other.
            for i in list(busy):
                work([i], wait=True)
        finally:
            if claims:
                claims.give_all_back()

    def _finished_meanwhile(self, job: Job) -> Record | None:
        """The record of a job that another run has finished since this one began."""
        # Without a result there can be none, which is quicker to see.
        if self.manifest is None or not self.manifest.exists(job):
            return None
        self.manifest.refresh()
        return self.manifest.finished(job)

    def _work(
        self, todo: Iterator[tuple[Job, Record, Callable[[float], None]]], results: "_Results"
    ) -> None:
        """Restore jobs one after the other; each comes with its record and its progress."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writers:
            reading = (
                (job, record, report, reader.submit(self._read, job, record))
                for job, record, report in todo
            )
            try:
                current = next(reading, None)
                while current and not results.fatal:
                    (job, record, report, coming), ahead = current, None
                    report(0)
                    try:
                        image, found = coming.result()
                    except Exception as error:
                        results.fail(record, error)
                        current = next(reading, None)
                        continue
                    if image.pixels.size < PIXELS_AHEAD:
                        ahead = next(reading, None)
                    frames = 1 + len(image.frames.images if image.frames else ())
                    pixels = frames * math.prod(self.size.of(*image.pixels.shape[:2]))
                    results.make_room(pixels)
                    if results.fatal:
                        break
                    try:
                        result = self._compute(image, found, record, report)
                    except CallError:
                        # What is wrong for one is wrong for all.
                        raise
                    except Exception as error:
                        results.fail(record, error)
                    else:
                        written = writers.submit(self._write, job, record, result)
                        results.add(record, pixels, written)
                        # Or the next one would find less memory.
                        del result
                    del image
                    current = ahead or next(reading, None)
            finally:
                reader.shutdown(wait=False, cancel_futures=True)
                results.settle()
        if results.fatal:
            raise results.fatal

    def _read(self, job: Job, record: Record) -> tuple[Image, Finding]:
        with _timed(record):
            if self.manifest and job.source:
                # Before it is read: it could change.
                record.key = self.manifest.key(job.source)
            options: dict[str, Any] = {
                "max_pixels": self.max_pixels,
                "first_frame": self.first_frame,
            }
            if isinstance(job.source, Url):
                content = read_content(job.source, most_bytes(self.max_bytes))
                image = decode_image(content, str(job.source), **options)
            elif job.source:
                image = read_image(job.source, max_bytes=self.max_bytes, **options)
            else:
                image = receive_image(sys.stdin, max_bytes=self.max_bytes, **options)
            height, width = image.pixels.shape[:2]
            record.size_in = [width, height]
            record.notes += image.notes
            factor = self.size.factor(height, width)
            if not 1 <= factor <= MAX_SCALE:
                why = _wrong_size(self.size, width, height)
                raise ImageError(f"{job.source or 'stdin'}: {why}")
            if job.target:
                check_target(job.target, self.size.of(height, width))
            found = self.upscaler.measure(image)
            record.level, record.seen, record.why = found.level, found.kind, found.words
            return image, found

    def _compute(
        self, image: Image, found: Finding, record: Record, report: Callable[[float], None]
    ) -> Image:
        with _timed(record):
            height, width = image.pixels.shape[:2]
            chain = self.upscaler.chain(self.size.factor(height, width), found)
            record.models = list(dict.fromkeys(restorer.name for restorer in chain))
            record.tiles = self.upscaler.tiles(self.size, height, width, found)
            started = time.perf_counter()
            result = self.upscaler.restore_image(image, self.size, report, found)
            if len(chain) == 1:
                done = self.work.setdefault(chain[0].name, [0.0, 0.0])
                done[0] += height * width
                done[1] += time.perf_counter() - started
            record.size_out = [result.pixels.shape[1], result.pixels.shape[0]]
            return result

    def _write(self, job: Job, record: Record, result: Image) -> None:
        with _timed(record):
            if self.check and record.size_in:
                scale = record.size_out[0] / record.size_in[0] if record.size_out else 1
                row = model_named(record.models[0])
                real = row.for_real_photos if row else True
                task = self.upscaler.choice.task
                record.left = advice(result, scale, task, real, record.output)
            if isinstance(job.target, Path):
                _make_folder(job.target.parent)
            record.notes += _write_image(job, result, self.quality)
            if self.keep_times and isinstance(job.source, Path) and isinstance(job.target, Path):
                shutil.copystat(job.source, job.target)
        record.status = "ok"
        if self.manifest:
            self.manifest.append(record)
            # Nothing needs it any more, and there may be a million records.
            record.key = None


@dataclass
class _Results:
    """Results on their way to the disk, and errors on their way to the user.

    Attributes:
        manifest: of the output folder, if there is one.
        done: called with each record that is finished.
        writing: for each result its record, its pixels, and what tells that it is written.
        claims: what this run has claimed, if other runs could want it.
        fatal: the error that ends the run.
    """

    manifest: Manifest | None
    done: Callable[[Record], None]
    claims: Claims | None = None
    writing: deque[tuple[Record, int, Future[None]]] = field(default_factory=deque)
    fatal: Exception | None = None

    def add(self, record: Record, pixels: int, written: Future[None]) -> None:
        """Take a result that a writer has begun with."""
        self.writing.append((record, pixels, written))

    def make_room(self, pixels: int) -> None:
        """Wait until a result of so many pixels may be computed."""
        while self.writing:
            oldest = self.writing[0][2]
            behind = sum(waiting for _, waiting, _ in self.writing)
            if not oldest.done() and behind + pixels <= PIXELS_BEHIND:
                return
            self._settle_oldest()

    def settle(self) -> None:
        """Wait for all that is being written."""
        while self.writing:
            self._settle_oldest()

    def fail(self, record: Record, error: Exception) -> None:
        """Record an error; without a manifest, and if the disk is full, it ends the run."""
        if self.manifest is None:
            self.fatal = error
            return
        record.status, record.error = "failed", _reason(record, error)
        if not isinstance(error, (MambairError, OSError)):
            logger.info("not foreseen", exc_info=error)
        if _is_disk_full(error):
            self.fatal = ImageError(
                "stopped, as nothing more can be written; make room and run it again"
            )
        # The error of the file is the one to tell.
        with contextlib.suppress(ImageError):
            self.manifest.append(record)
        self._give_back(record)
        self.done(record)

    def _give_back(self, record: Record) -> None:
        if self.claims:
            self.claims.give_back(Path(record.output))

    def _settle_oldest(self) -> None:
        record, _, written = self.writing.popleft()
        try:
            written.result()
        except Exception as error:
            self.fail(record, error)
        else:
            self._give_back(record)
            self.done(record)


def _prepare_folder(folder: Path) -> None:
    """Create an output folder, or clear it of unfinished results. Raises ImageError."""
    _make_folder(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ImageError(f"{folder}: no permission to write into it; name another folder")
    clear(folder.rglob(TEMPORARY))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: cannot be created: {error.strerror}") from error


def _write_image(job: Job, image: Image, quality: int | None) -> list[str]:
    if isinstance(job.target, Url):
        return _store_image(job.target, image, quality)
    if job.target:
        return write_image(job.target, image, quality=quality)
    data, notes = encode_image(image, job.suffix.removeprefix("."), quality)
    if sys.stdout is None:
        raise ImageError("stdout: is closed; name a file for the result with `output`")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise ImageError(f"stdout: cannot be written: {error.strerror}") from error
    return [f"stdout: {note}" for note in notes]


def _store_image(url: Url, image: Image, quality: int | None) -> list[str]:
    """Encode an image into a temporary file, and store that at a URL."""
    with tempfile.TemporaryDirectory(prefix="mambair-", dir=scratch.folder()) as place:
        path = Path(place, f"result{url.suffix}")
        try:
            notes = write_image(path, image, quality=quality)
        except MambairError as error:
            raise type(error)(str(error).replace(str(path), str(url))) from error
        write_object(path, url)
    return [note.replace(str(path), str(url)) for note in notes]


def _name(job: Job) -> str:
    return job.source.name if job.source else "stdin"


def _file_size(job: Job) -> int:
    if isinstance(job.source, Url):
        return max(1, job.source.bytes or 1)
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
        # What was not read yet cannot have been written.
        place = record.output if record.size_out else record.input
        return f"{error.filename or place}: {error.strerror or error}"
    return f"{record.input}: {type(error).__name__}: {error}"


def _wrong_size(size: "Size", width: int, height: int) -> str:
    """Why a result cannot be of the size that was asked for."""
    rows, columns = size.of(height, width)
    told = f"is {width}x{height}, and {columns}x{rows} is"
    if size.factor(height, width) < 1:
        return f"{told} smaller; give a size of at least {width}x{height}"
    return f"{told} too large; give a size of at most {MAX_SCALE * width}x{MAX_SCALE * height}"


def _is_disk_full(error: BaseException) -> bool:
    cause = error.__cause__ or error
    return isinstance(cause, OSError) and cause.errno in _DISK_FULL
