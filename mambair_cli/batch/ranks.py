"""The processes that torchrun started for one call, on one machine or several."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from ..errors import CallError
from ..system.urls import Place, Url
from .jobs import Job
from .manifest import Record


class Ranks:
    """The processes that torchrun started for one call; they share the files.

    Attributes:
        rank: of this process; 0 without torchrun.
        world: how many there are.

    Raises:
        CallError: the environment is not complete.
    """

    def __init__(self) -> None:
        try:
            self.rank = int(os.environ.get("RANK", 0))
            self.world = int(os.environ.get("WORLD_SIZE", 1))
            if self.world > 1:
                from torch.distributed import rendezvous

                self._store = next(rendezvous("env://"))[0]
        except (ValueError, RuntimeError) as error:
            raise CallError(
                f"RANK and WORLD_SIZE are set, but the processes do not meet: {error};"
                " start them with torchrun"
            ) from error

    @staticmethod
    def own() -> int:
        """The rank of this process, before it meets the others; 0 if the environment is wrong."""
        rank = os.environ.get("RANK", "")
        return int(rank) if rank.isdecimal() else 0

    def send_jobs(self, jobs: Sequence[Job]) -> None:
        """From rank 0 to each of the others: its share."""
        for rank in range(1, self.world):
            places = [(_sent(job.source), _sent(job.target)) for job in jobs[rank :: self.world]]
            self._store.set(f"jobs {rank}", json.dumps(places))

    def receive_jobs(self) -> list[Job]:
        """On another rank than 0: its share."""
        places = self._receive(f"jobs {self.rank}")
        return [Job(_received(source), _received(target)) for source, target in places]

    def send_records(self, records: Sequence[Record]) -> None:
        """From another rank to rank 0."""
        self._store.set(f"records {self.rank}", json.dumps([asdict(record) for record in records]))

    def receive_records(self) -> Iterator[Record]:
        """On rank 0: the records of the others, as soon as each is done."""
        for rank in range(1, self.world):
            yield from (Record(**record) for record in self._receive(f"records {rank}"))

    def _receive(self, key: str) -> Any:
        # The store's own waiting could not be interrupted.
        while not self._store.check([key]):
            time.sleep(0.1)
        return json.loads(self._store.get(key))


def _sent(place: Place | None) -> str | tuple[Any, ...]:
    """A place as JSON has it."""
    return astuple(place) if isinstance(place, Url) else str(place)


def _received(place: str | list[Any]) -> Place:
    return Path(place) if isinstance(place, str) else Url(*place)
