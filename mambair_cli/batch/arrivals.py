"""A folder that is watched: what arrives in it is restored once it is whole."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import NoImageError
from ..system.urls import Place
from .jobs import Job
from .restore_files import Plan, Request, load_upscaler, plan_files

State = tuple[int, int]


@dataclass
class Arrivals:
    """Which files are whole: those that were the same at two looks, one after the other.

    Attributes:
        seen: bytes and time of each file at the last look.
        tried: the same of files that were handed out.
    """

    seen: dict[Place, State] = field(default_factory=dict)
    tried: dict[Place, State] = field(default_factory=dict)

    def look(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs whose files are whole and were not handed out as they are now."""
        now: dict[Place, State] = {}
        ready = []
        for job in jobs:
            state = _state(job.source) if job.source else None
            if job.source is None or state is None:
                continue
            now[job.source] = state
            if self.seen.get(job.source) == state != self.tried.get(job.source):
                self.tried[job.source] = state
                ready.append(job)
        self.seen = now
        return ready

    @property
    def waiting(self) -> bool:
        """Whether a file may still grow."""
        return any(self.tried.get(path) != state for path, state in self.seen.items())


def _state(path: Place) -> State | None:
    assert isinstance(path, Path)
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if status.st_size else None


def restore_arrivals(
    request: Request, looks: Iterable[bool], restore: Callable[[Plan], None]
) -> None:
    """Restore what is in a folder, and what arrives in it.

    What an earlier run has finished is skipped, as in any run over a folder.

    Args:
        request: whose only input is the folder.
        looks: an element for each moment to look at the folder, whether something has changed.
            They are far enough apart for a file that is being written to grow.
        restore: called with a plan for the files that are whole; the networks stay loaded.

    Raises as `plan_files`.
    """
    arrivals, upscaler = Arrivals(), None
    for changed in looks:
        if not (changed or arrivals.waiting):
            continue
        try:
            plan = plan_files(request)
        except NoImageError:
            continue
        jobs = arrivals.look(plan.jobs)
        if jobs:
            upscaler = upscaler or load_upscaler(plan.choice, request.options)
            restore(replace(plan, jobs=jobs, upscaler=upscaler))
