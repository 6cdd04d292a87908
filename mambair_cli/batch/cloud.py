"""The manifest of an output folder at a URL, beside the results."""

import contextlib
import fnmatch
import logging
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from ..errors import UploadError
from ..system.urls import Place, Url, objects_below, read_object, write_object
from .claims import Claims
from .jobs import Job
from .listing import MANIFESTS
from .manifest import Manifest, Record
from .ranks import Ranks
from .shards import Shard

STORED_EVERY = 10.0
"""Seconds between two times that the manifest is stored; a run that is killed loses no more."""

SHARE = 0.05
"""Of the time, at most, goes into storing it: the longer it takes, the rarer it is done."""

LARGEST = 2**32
"""Bytes of a manifest."""

log = logging.getLogger(__name__)


class CloudManifest(Manifest):
    """What was done in an output folder at a URL.

    Nothing can be appended to an object, so the manifest grows in a temporary file that is stored
    every few seconds and at the end. Two whole runs may do the same work; shards never do.

    Args:
        url: the output folder.
        settings: as for `Manifest`.
        shard: as for `Manifest`.

    Raises:
        DownloadError: the folder cannot be listed.
    """

    def __init__(self, url: Url, settings: dict[str, Any], shard: Shard | None = None):
        self._url = url
        self._staging = Path(tempfile.mkdtemp(prefix="mambair-"))
        weakref.finalize(self, shutil.rmtree, self._staging, ignore_errors=True)
        # What is there; one listing is quicker than a question for each result.
        self._there: set[str] = set()
        for found in objects_below(url):
            name = found.below(url)
            if fnmatch.fnmatch(name, MANIFESTS) and "/" not in name:
                (self._staging / name).write_bytes(read_object(found, LARGEST))
            else:
                self._there.add(name)
        self._storing = threading.Lock()
        self._due = 0.0
        self._is_stored = True
        # Under torchrun each process stores a file of its own.
        super().__init__(self._staging, settings, shard, Ranks.own())

    @property
    def result_folder(self) -> Place:
        """The folder of the results."""
        return self._url

    def exists(self, job: Job) -> bool:
        """Whether there was a result of a job when this run began."""
        return job.name_in(self._url) in self._there

    def claims(self) -> Claims | None:
        """Return None: a bucket has no locks."""
        return None

    def append(self, record: Record) -> None:
        """Add the record of a file; it is stored some seconds later."""
        super().append(record)
        self._is_stored = False
        # The threads that write do not wait for each other.
        if time.monotonic() >= self._due and self._storing.acquire(blocking=False):
            try:
                # It is tried again with the next one.
                with contextlib.suppress(UploadError):
                    self._store()
            finally:
                self._storing.release()

    def compact(self) -> None:
        """Keep the last line of each file."""
        super().compact()
        self._is_stored = False

    def close(self) -> None:
        """Store the manifest. Raises UploadError."""
        with self._storing:
            if not self._is_stored:
                self._store()

    def _store(self) -> None:
        started = time.monotonic()
        self._is_stored = True
        try:
            # A line that is being appended meanwhile may come cut off, and whole the next time.
            write_object(self.path, self._url / self.path.name)
        except UploadError as error:
            self._is_stored = False
            log.info("%s", error)
            raise
        finally:
            now = time.monotonic()
            self._due = now + max(STORED_EVERY, (now - started) / SHARE)

    def _name(self, output: str) -> str:
        return output.removeprefix(f"{str(self._url).rstrip('/')}/")
