"""Which files of an output folder a run is at work on, so that other runs leave them alone."""

import contextlib
import hashlib
import os
from pathlib import Path

from filelock import FileLock, Timeout


class Claims:
    """The results that this run makes now: a lock for each in the output folder.

    A run that ends in any way, also by a kill, holds none any more.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._locks: dict[Path, FileLock] = {}

    def take(self, target: Path, *, wait: bool = False) -> bool:
        """Claim a result; False if another run has it. With `wait`, until that run is done.

        File systems that cannot lock let every run have all.
        """
        name = hashlib.sha256(os.fsencode(target.relative_to(self.folder))).hexdigest()
        # The thread that writes gives back what the main thread has taken.
        lock = FileLock(self.folder / f".mambair-{name[:16]}.lock", thread_local=False)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        except (NotImplementedError, OSError):
            return True
        self._locks[target] = lock
        return True

    def give_back(self, target: Path | None) -> None:
        """Let others have a result; nothing happens if this run has not claimed it."""
        lock = self._locks.pop(target, None) if target else None
        if lock:
            lock.release()
            # Elsewhere it may be open.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)

    def give_all_back(self) -> None:
        """Let others have all that is still claimed."""
        for target in list(self._locks):
            self.give_back(target)
