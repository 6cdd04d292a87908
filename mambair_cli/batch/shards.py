"""Parts of a folder for machines that know nothing of each other."""

import hashlib
import heapq
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CallError
from ..system.urls import Place
from .jobs import Job

SIZED = 100_000
"""Files up to which their pixels balance the shards; of more, chance balances well enough."""


@dataclass(frozen=True)
class Shard:
    """One of the equal parts of a folder.

    Attributes:
        number: which one, from 1.
        count: how many there are.
        told_by: what chose it, such as a scheduler; empty if the caller did.
    """

    number: int
    count: int
    told_by: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_shard(text: str) -> Shard:
    """The shard that a text such as 3/8 names. Raises CallError."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise CallError(f"`shard` is a part such as 1/4 or 4/4, not {text!r}")
    return Shard(number, count)


def scheduled_shard(environment: Mapping[str, str] = os.environ) -> Shard | None:
    """The shard of a task of a Slurm array; None elsewhere, and in an array of one task.

    The first task, whatever its number, has shard 1.

    Raises CallError if the numbers of the array have gaps, as shards cannot be told from them.
    """
    prefix = "SLURM_ARRAY_TASK_"
    if f"{prefix}ID" not in environment or f"{prefix}COUNT" not in environment:
        return None
    try:
        number, count = (int(environment[prefix + name]) for name in ("ID", "COUNT"))
        first = int(environment.get(f"{prefix}MIN", 0))
        last = int(environment.get(f"{prefix}MAX", first + count - 1))
        step = int(environment.get(f"{prefix}STEP", 1))
    except ValueError as error:
        raise CallError(f"the variables {prefix}* are not numbers: {error}") from None
    if count <= 1:
        return None
    place, rest = divmod(number - first, max(1, step))
    if rest or last - first != step * (count - 1) or not 0 <= place < count:
        raise CallError(
            f"the numbers of this Slurm array have gaps ({first} to {last}, {count} tasks);"
            " name a part with `shard=I/N`"
        )
    return Shard(place + 1, count, "Slurm's array")


def share(jobs: Sequence[Job], folder: Place, shard: Shard) -> list[Job]:
    """The jobs of a shard, in their order.

    Which job belongs to which shard depends on the inputs alone, not on their order or on what is
    finished. Where the heads of all files can be read quickly, all shards get about the same number
    of pixels, else about the same number of files.

    Args:
        jobs: of all shards.
        folder: the output folder, a Path or a Url; names below it tell the jobs apart.
        shard: which part.
    """
    names = [job.name_in(folder) for job in jobs]
    mine = shard.number - 1
    if len(jobs) > SIZED or any(not isinstance(job.source, Path) for job in jobs):
        return [
            job
            for job, name in zip(jobs, names, strict=True)
            if _chance(name) % shard.count == mine
        ]
    pixels = [_pixels(job) for job in jobs]
    largest_first = sorted(range(len(jobs)), key=lambda i: (-pixels[i], names[i]))
    loads = [(0, part) for part in range(shard.count)]
    chosen = []
    for i in largest_first:
        load, part = loads[0]
        heapq.heapreplace(loads, (load + pixels[i], part))
        if part == mine:
            chosen.append(i)
    return [jobs[i] for i in sorted(chosen)]


def _chance(name: str) -> int:
    """Return a number that looks random but is always the same for a name."""
    return int.from_bytes(
        hashlib.blake2b(name.encode("utf-8", "surrogateescape")).digest()[:8], "big"
    )


def _pixels(job: Job) -> int:
    """Count the pixels of the input; 1 if the head of its file does not tell."""
    from ..images.folders import stored_size

    size = stored_size(job.source) if isinstance(job.source, Path) else None
    return size[0] * size[1] if size else 1
