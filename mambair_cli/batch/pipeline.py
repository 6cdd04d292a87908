"""Many files in one run: reading, restoring and writing at once, errors told, and what is finished skipped."""

import contextlib
import errno
import itertools
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CallError, ImageError, MambairError
from ..images.io import (
    MAX_PIXELS,
    Image,
    check_writable,
    decode_image,
    encode_image,
    read_image,
    write_image,
)
from ..models.catalog import MAX_SCALE, Model
from ..system.files import TEMPORARY
from .jobs import Job
from .manifest import Manifest, Record
from .peers import Peers

if TYPE_CHECKING:
    from ..images.resize import Size
    from ..restore.upscaler import Upscaler

WRITERS = 4  # threads that encode
PIXELS_BEHIND = (
    32 * 2**20
)  # of results that wait for the writers; a larger one is computed when all are written
PIXELS_AHEAD = 32 * 2**20  # of an image at work, from which on no other is read meanwhile
STALE = 3600  # seconds after which an unfinished result must be of a run that was killed
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """Restores files one after the other, while others are read and written.

    At any time there are in memory: one image at work, one read ahead (unless that at work is large), and results for
    the writers of at most PIXELS_BEHIND pixels together or a single one. Large results lie on disk.

    Attributes:
        upscaler: does the work. size: of the results. quality: of the formats that have one, 1 to 100.
        manifest: of the output folder. Without one, for a single file, nothing is recorded or skipped, and the
            first error is raised.
        overwrite: also restore what is finished.
        max_pixels: of an input; larger ones fail (a guard against decompression bombs).
        advise: called with the pixels and the name of each input, the model it gets first, and the level that was
            measured, says what its user should know.
    """

    upscaler: "Upscaler"
    size: "Size"
    quality: int | None = None
    manifest: Manifest | None = None
    overwrite: bool = False
    max_pixels: int = MAX_PIXELS
    advise: Callable[[Any, str, Model, int | None], str | None] = lambda *about: None

    def run(
        self,
        jobs: Sequence[Job],
        done: Callable[[Record], None],
        progress: Callable[[float, str], None],
    ) -> None:
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
                raise ImageError(
                    f"{self.manifest.folder}: cannot be created: {error.strerror}"
                ) from error
            if not os.access(self.manifest.folder, os.W_OK | os.X_OK):
                raise ImageError(
                    f"{self.manifest.folder}: no permission to write into it; name another folder"
                )
            for left_over in self.manifest.folder.rglob(TEMPORARY.format("*")):
                with contextlib.suppress(OSError):  # another process may be at it
                    if time.time() - left_over.stat().st_mtime > STALE:
                        left_over.unlink()
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
        self,
        jobs: Sequence[Job],
        done: Callable[[Record], None],
        progress: Callable[[float, str], None],
    ) -> None:
        weights = [
            _file_size(job) for job in jobs
        ]  # for the progress, as the pixels are not known yet
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
                fatal = ImageError(
                    "stopped, as nothing more can be written; make room and run it again"
                )
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
            ahead: Future[Image] | None = None
            starts = list(itertools.accumulate(weights, initial=0))
            try:
                for i, (job, record) in enumerate(zip(jobs, records, strict=True)):
                    if fatal:
                        break
                    label = (
                        _name(job) if len(jobs) == 1 else f"{i + 1} of {len(jobs)}: {_name(job)}"
                    )

                    def report(share: float, i: int = i, label: str = label) -> None:
                        progress((starts[i] + share * weights[i]) / starts[-1], label)

                    report(0)
                    reading, ahead = ahead or reader.submit(self._read, job, record), None
                    try:
                        image = reading.result()
                    except Exception as error:
                        fail(record, error)
                        continue
                    if i + 1 < len(jobs) and image.pixels.size < PIXELS_AHEAD:
                        ahead = reader.submit(self._read, jobs[i + 1], records[i + 1])
                    pixels = math.prod(self.size.of(*image.pixels.shape[:2]))
                    while writing and (
                        writing[0][2].done() or sum(w[1] for w in writing) + pixels > PIXELS_BEHIND
                    ):
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
                    writing.append(
                        (record, pixels, writers.submit(self._write, job, record, result))
                    )
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
                raise ImageError(
                    f"{name}: would become {factor:g} times as large; possible is 1 to {MAX_SCALE} times"
                )
            if job.target:
                if self.manifest:
                    job.target.parent.mkdir(parents=True, exist_ok=True)
                check_writable(job.target, self.size.of(height, width))
            record.level = self.upscaler.measure(image)
            for row in self.upscaler.choice.models(factor, record.level)[:1]:
                record.notes += filter(
                    None, [self.advise(image.pixels, record.input, row, record.level)]
                )
            return image

    def _compute(self, image: Image, record: Record, report: Callable[[float], None]) -> Image:
        with _timed(record):
            height, width = image.pixels.shape[:2]
            chain = self.upscaler.chain(self.size.factor(height, width), record.level)
            record.models = list(dict.fromkeys(restorer.name for restorer in chain))
            record.tiles = self.upscaler.tiles(self.size, height, width, record.level)
            result = self.upscaler.restore_image(image, self.size, report, record.level)
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
