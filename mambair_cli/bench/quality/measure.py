"""Quality on a data set: every image through every network, measured while the next ones are computed."""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ... import __version__
from ...errors import CallError, ImageError
from ...images.folders import Pixels, image_size
from ...images.io import Image, read_image, write_image
from ...images.metrics import scores
from ...models.published import published
from ...restore.restorer import Progress
from .candidates import Candidate
from .intervals import interval
from .pairing import Sample, Source, find_sources, load_sample
from .perceptual import load_distance
from .protocols import Protocol, choose_protocol
from .results import Cache, code_digest, key_of
from .sets import DataSet, check_files, describe_copy, find_set

Facts = dict[str, Any]
Report = Callable[[float, str], None]
A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2  # images a worker that are read before they are needed
KEY = "mambair bench"  # of the text in a saved image that tells which result it is


@dataclass(frozen=True)
class Benchmark:
    """A data set as it lies on disk and how it is measured; `row` is None for a folder that is no known set.

    pixels: of each source's truth. whole: whether all images that are there take part.
    """

    name: str
    row: DataSet | None
    folder: Path
    protocol: Protocol
    sources: list[Source]
    pixels: list[int]
    whole: bool = True


def open_benchmark(
    name_or_folder: str, data_root: Path | None = None, images: int | None = None, **choices: Any
) -> Benchmark:
    """Find a data set, check its copy and pair its files.

    Args:
        name_or_folder: of SETS, or a folder.
        data_root: see `find_set`.
        images: only so many, the first by name.
        choices: see `choose_protocol`.

    Raises CallError (no such set, a wrong copy, unpaired files, a call that does not fit) and ImageError.
    """
    row, folder = find_set(name_or_folder, data_root)
    protocol = choose_protocol(row, **choices)
    sources = find_sources(folder, protocol)
    if row and row.members:
        sources = [source for source in sources if source.name in row.members]
    sizes = {source.name: image_size(source.truth) for source in sources}
    if row:
        check_files(row, folder, sizes)
    kept = sources[:images]
    pixels = [sizes[source.name][0] * sizes[source.name][1] for source in kept]
    name = row.name if row else folder.resolve().name
    return Benchmark(name, row, folder, protocol, kept, pixels, len(kept) == len(sources))


def run(
    benchmark: Benchmark,
    candidates: Sequence[Candidate],
    *,
    metrics: Iterable[str] = (),
    cache: Path | None = None,
    fresh: bool = False,
    save: Path | None = None,
    progress: Report = lambda share, label: None,
) -> Facts:
    """Measure networks, and what they have to beat, on all images of a benchmark.

    Args:
        benchmark: what to measure on.
        candidates: the networks.
        metrics: of `perceptual.METRICS`, besides PSNR and SSIM.
        cache: file of results of earlier runs, which are taken from there and put there; None: none.
        fresh: take none from there.
        save: folder for the restored images, see `saved_image`.
        progress: is called with the share done and what is at work.

    Returns:
        What `mambair bench --json` prints: the protocol, `results` (the baseline first) with rows of images and
        means with 95 % intervals, the published figures, and the seconds in all and within the networks.

    Raises:
        CallError, ImageError: an image cannot be measured. CacheError. Others as `Restorer.restore`.
    """
    protocol, hashes = benchmark.protocol, []
    names = [protocol.baseline, *(candidate.name for candidate in candidates)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CallError(f"two results would be called {twice}; rename a model's file")
    started, network = time.perf_counter(), 0.0
    distances = {name: load_distance(name) for name in metrics}
    rows: dict[str, list[Future[Facts]]] = {name: [] for name in names}
    done, total = 0, sum(benchmark.pixels)
    workers = min(8, os.cpu_count() or 1)
    with closing(Cache(cache)) as kept, ThreadPoolExecutor(workers) as pool:
        scorer = _Scorer(benchmark, distances, kept, fresh, save)
        samples = _prefetch(
            pool, lambda source: load_sample(source, protocol), benchmark.sources, AHEAD * workers
        )
        for sample, pixels in zip(samples, benchmark.pixels, strict=True):
            hashes.append(sample.pixels)
            rows[protocol.baseline].append(pool.submit(scorer.baseline, sample))
            for i, candidate in enumerate(candidates):

                def report(
                    share: float, i: int = i, label: str = f"{candidate.name} {sample.name}"
                ) -> None:
                    progress((done + pixels * (i + share) / len(candidates)) / total, label)  # noqa: B023

                report(0.0)
                future, seconds = scorer.result(pool, candidate, sample, report)
                rows[candidate.name].append(future)
                network += seconds
            done += pixels
            if (
                len(hashes) > AHEAD * workers
            ):  # or restored images would pile up before slow metrics
                for futures in rows.values():
                    futures[-AHEAD * workers].result()
    results = [
        _summary({"name": name}, [future.result() for future in futures])
        for name, futures in rows.items()
    ]
    for result, candidate in zip(results[1:], candidates, strict=True):
        result |= candidate.facts
    return {
        "mambair": __version__,
        "threads": torch.get_num_threads(),
        "dataset": benchmark.name,
        "folder": str(benchmark.folder),
        "copy": describe_copy(benchmark.row, hashes)
        if benchmark.row and benchmark.whole
        else f"{len(hashes)} images",
        "complete": benchmark.row is not None and len(hashes) == benchmark.row.images,
        "task": protocol.task,
        "setting": protocol.setting,
        "channel": protocol.channel,
        "border": protocol.border,
        "inputs": "read from files" if benchmark.sources[0].input else protocol.made,
        "seed": protocol.seed,
        "tiler": candidates[0].tiler if candidates else None,
        "seconds": time.perf_counter() - started,
        "network_seconds": network,
        "results": results,
        "published": [
            asdict(row) for row in published(protocol.tables, protocol.setting, benchmark.name)
        ],
    }


def _prefetch(
    pool: ThreadPoolExecutor, make: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    """What `make` gives for each item, in order, up to `ahead` of them made before they are asked for."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(make, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class _Scorer:
    """Measures results, from any thread, keeps them, and saves the images."""

    def __init__(
        self,
        benchmark: Benchmark,
        distances: Mapping[str, Callable[[Pixels, Pixels], float]],
        cache: Cache,
        fresh: bool,
        save: Path | None,
    ):
        self.benchmark, self.protocol, self.distances = benchmark, benchmark.protocol, distances
        self.cache, self.fresh, self.save, self.code = cache, fresh, save, code_digest()

    def key(self, sample: Sample, settings: Facts) -> str:
        """Of a result: what it was computed from and how."""
        protocol = self.protocol
        how = [protocol.task, protocol.scale, protocol.channel, protocol.border, *self.distances]
        return key_of(code=self.code, data=sample.digest, how=how, **settings)

    def finished(self, key: str, name: str, image: str) -> Facts | None:
        """The row of an earlier run, unless its image shall be saved and is not there."""
        found: Facts | None = None if self.fresh else self.cache.get(key)
        if found is None or (
            self.save and not _is_saved(saved_image(self.save, self.benchmark, name, image), key)
        ):
            return None
        return {**found, "image": image}

    def baseline(self, sample: Sample) -> Facts:
        """The row of what the networks have to beat."""
        name = self.protocol.baseline
        key = self.key(sample, {"model": name})
        if found := self.finished(key, name, sample.name):
            return found
        return self.score(
            key, name, sample, self.protocol.enlarge(sample.input, sample.truth.shape[:2]), {}
        )

    def result(
        self, pool: ThreadPoolExecutor, candidate: Candidate, sample: Sample, report: Progress
    ) -> tuple[Future[Facts], float]:
        """The row of a network for an image, to be measured in the pool, and the seconds that the network took now."""
        key = self.key(sample, candidate.settings(sample.input))
        if found := self.finished(key, candidate.name, sample.name):
            future: Future[Facts] = Future()
            future.set_result(found)
            return future, 0.0
        restored, seconds, peak = candidate.measure(sample.input, sample.truth.shape[:2], report)
        cost = {"seconds": seconds, "peak_memory": peak}
        return pool.submit(self.score, key, candidate.name, sample, restored, cost), seconds

    def score(self, key: str, name: str, sample: Sample, restored: Pixels, cost: Facts) -> Facts:
        """Measure, keep and save one result; its row."""
        height, width = sample.truth.shape[:2]
        decibels, similarity = scores(
            restored, sample.truth, channel=self.protocol.channel, border=self.protocol.border
        )
        row = {
            "image": sample.name,
            "width": width,
            "height": height,
            "psnr": decibels,
            "ssim": similarity,
            **cost,
        }
        row |= {
            metric: distance(restored, sample.truth) for metric, distance in self.distances.items()
        }
        if self.save:
            target = saved_image(self.save, self.benchmark, name, sample.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(target, Image(restored, text={KEY: key}))
        self.cache.put(key, row)
        return row


def saved_image(save: Path, benchmark: Benchmark, name: str, image: str) -> Path:
    """Where a network's result for an image is saved: DATASET-SETTING/NAME/IMAGE.png."""
    folder = f"{benchmark.name}-{benchmark.protocol.setting}".rstrip(
        "-"
    )  # the setting of pairs is -
    return save / folder / name / f"{image}.png"


def _is_saved(path: Path, key: str) -> bool:
    """Whether the file is the whole image of this result, and not of another run that saved there."""
    try:
        return read_image(path).text.get(KEY) == key
    except (CallError, ImageError):  # missing or damaged
        return False


def _summary(facts: Facts, rows: Sequence[Facts]) -> Facts:
    """A result: its rows, and the means of what was measured with their intervals."""
    measured = [
        key for key in rows[0] if key not in ("image", "width", "height", "seconds", "peak_memory")
    ]
    mean = {key: statistics.fmean(row[key] for row in rows) for key in measured}
    intervals = {key: interval([row[key] for row in rows]) for key in measured}
    result = {**facts, "mean": mean, "interval": intervals, "images": list(rows)}
    if "seconds" in rows[0]:
        seconds = sum(row["seconds"] for row in rows)
        megapixels = sum(row["width"] * row["height"] for row in rows) / 1e6
        result |= {
            "seconds": seconds,
            "megapixels_per_second": megapixels / seconds,
            "peak_memory": max(row["peak_memory"] for row in rows),
        }
    return result
