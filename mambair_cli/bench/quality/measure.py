"""Quality on a data set: every image goes through every network and is measured meanwhile."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
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
from ..cache import Cache, code_digest, key_of
from .candidates import Candidate
from .pairing import Pair, Sample, find_pairs, load_sample
from .perceptual import load_distance
from .protocols import Protocol, choose_protocol
from .results import ImageRow, Report, Result
from .sets import DataSet, check_files, describe_copy, find_set

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2
"""Images a worker that are read before they are needed."""
KEY = "mambair bench"
"""Of the text in a saved image that tells which result it is."""


@dataclass(frozen=True)
class Benchmark:
    """A data set as it lies on disk and how it is measured.

    Args:
        name: of the set, or of the folder.
        row: of the set; None for a folder that is no known set.
        folder: where it lies.
        protocol: how it is measured.
        pairs: truths and their inputs.
        pixels: of each truth.
        whole: whether all images that are there take part.
    """

    name: str
    row: DataSet | None
    folder: Path
    protocol: Protocol
    pairs: list[Pair]
    pixels: list[int]
    whole: bool = True


def open_benchmark(
    name_or_folder: str,
    data_root: Path | None = None,
    images: int | None = None,
    fetch: Callable[[DataSet], Path] | None = None,
    **choices: Any,
) -> Benchmark:
    """Find a data set, check its copy and pair its files.

    Args:
        name_or_folder: of SETS, or a folder.
        data_root: see `find_set`.
        images: how many to take, the first ones by name; None: all.
        fetch: see `find_set`.
        choices: see `choose_protocol`.

    Raises:
        CallError: there is no such set, its copy is wrong, a file has no pair, or the choices
            contradict each other or the set.
        ImageError: a file cannot be read.
    """
    row, folder = find_set(name_or_folder, data_root, fetch)
    protocol = choose_protocol(row, **choices)
    pairs = find_pairs(folder, protocol)
    if row and row.members:
        pairs = [pair for pair in pairs if pair.name in row.members]
    sizes = {pair.name: image_size(pair.truth) for pair in pairs}
    if row:
        check_files(row, folder, sizes)
    kept = pairs[:images]
    pixels = [sizes[pair.name][0] * sizes[pair.name][1] for pair in kept]
    name = row.name if row else folder.resolve().name
    return Benchmark(name, row, folder, protocol, kept, pixels, len(kept) == len(pairs))


def run(
    benchmark: Benchmark,
    candidates: Sequence[Candidate],
    *,
    metrics: Iterable[str] = (),
    cache: Path | None = None,
    fresh: bool = False,
    save: Path | None = None,
    progress: Callable[[float, str], None] = lambda share, label: None,
) -> Report:
    """Measure networks, and what they have to beat, on all images of a benchmark.

    Args:
        benchmark: what to measure on.
        candidates: the networks.
        metrics: of `perceptual.METRICS`, besides PSNR and SSIM.
        cache: a file that keeps results from one run to the next; None: nothing is kept.
        fresh: compute everything again, whatever is in the cache.
        save: folder for the restored images, see `saved_image`.
        progress: is called with the share done and what is at work.

    Raises:
        CallError, ImageError: an image cannot be measured. CacheError. Others as
        `Restorer.restore`.
    """
    protocol = benchmark.protocol
    names = [protocol.baseline, *(candidate.name for candidate in candidates)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CallError(f"two results would be called {twice}; rename a model's file")
    started = time.perf_counter()
    distances = {name: load_distance(name) for name in metrics}
    with closing(Cache(cache)) as kept:
        scorer = _Scorer(benchmark, distances, kept, fresh, save)
        rows, hashes, network = _measure_all(benchmark, candidates, scorer, progress)
    networks = [None, *(candidate.network for candidate in candidates)]
    results = tuple(map(Result, rows, map(tuple, rows.values()), networks))
    copy = f"{len(hashes)} images"
    if benchmark.row and benchmark.whole:
        copy = describe_copy(benchmark.row, hashes)
    return Report(
        mambair=__version__,
        threads=torch.get_num_threads(),
        dataset=benchmark.name,
        folder=str(benchmark.folder),
        copy=copy,
        complete=benchmark.row is not None and len(hashes) == benchmark.row.images,
        task=protocol.task,
        setting=protocol.setting,
        channel=protocol.channel,
        border=protocol.border,
        inputs="read from files" if benchmark.pairs[0].input else protocol.made,
        seed=protocol.seed,
        tiler=candidates[0].tiler if candidates else None,
        seconds=time.perf_counter() - started,
        network_seconds=network,
        results=results,
        published=tuple(published(protocol.tables, protocol.setting, benchmark.name)),
    )


def _measure_all(
    benchmark: Benchmark,
    candidates: Sequence[Candidate],
    scorer: "_Scorer",
    progress: Callable[[float, str], None],
) -> tuple[dict[str, list[ImageRow]], list[str], float]:
    """Measure all images: rows by the name of each result, a hash of each truth, and seconds."""
    protocol, hashes, network = benchmark.protocol, list[str](), 0.0
    futures: dict[str, list[Future[ImageRow]]] = {protocol.baseline: []}
    futures |= {candidate.name: [] for candidate in candidates}
    done, total = 0, sum(benchmark.pixels)
    workers = min(8, os.cpu_count() or 1)
    ahead = AHEAD * workers
    with ThreadPoolExecutor(workers) as pool:
        samples = _prefetch(pool, lambda pair: load_sample(pair, protocol), benchmark.pairs, ahead)
        for sample, pixels in zip(samples, benchmark.pixels, strict=True):
            hashes.append(sample.pixels)
            futures[protocol.baseline].append(pool.submit(scorer.baseline, sample))
            for i, candidate in enumerate(candidates):
                start = (done + pixels * i / len(candidates)) / total
                length = pixels / len(candidates) / total
                report = partial(
                    _report, progress, f"{candidate.name} {sample.name}", start, length
                )
                report(0.0)
                future, seconds = scorer.result(pool, candidate, sample, report)
                futures[candidate.name].append(future)
                network += seconds
            done += pixels
            # Or restored images would pile up before slow metrics.
            if len(hashes) > ahead:
                for waiting in futures.values():
                    waiting[-ahead].result()
    rows = {name: [future.result() for future in found] for name, found in futures.items()}
    return rows, hashes, network


def _report(
    progress: Callable[[float, str], None], label: str, start: float, length: float, share: float
) -> None:
    """Turn the progress of one part into progress of the whole."""
    progress(start + length * share, label)


def _prefetch(
    pool: ThreadPoolExecutor, make: Callable[[A], B], items: Iterable[A], ahead: int
) -> Iterator[B]:
    """Make something of each item, in order, with up to `ahead` of them made in advance."""
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

    def key(self, sample: Sample, settings: Mapping[str, Any]) -> str:
        """The key of a result: what it was computed from, and how."""
        protocol = self.protocol
        how = [protocol.task, protocol.scale, protocol.channel, protocol.border, *self.distances]
        return key_of(code=self.code, data=sample.digest, how=how, **settings)

    def finished(self, key: str, name: str, image: str) -> ImageRow | None:
        """The row of an earlier run, unless its image is to be saved and is not there."""
        found = None if self.fresh else self.cache.get(key)
        if found is None:
            return None
        if self.save and not _is_saved(saved_image(self.save, self.benchmark, name, image), key):
            return None
        return replace(ImageRow.from_json(found), image=image)

    def baseline(self, sample: Sample) -> ImageRow:
        """Measure what the networks have to beat."""
        name = self.protocol.baseline
        key = self.key(sample, {"model": name})
        if found := self.finished(key, name, sample.name):
            return found
        enlarged = self.protocol.enlarge(sample.input, sample.truth.shape[:2])
        return self.score(key, name, sample, enlarged)

    def result(
        self, pool: ThreadPoolExecutor, candidate: Candidate, sample: Sample, report: Progress
    ) -> tuple[Future[ImageRow], float]:
        """Restore an image and measure it in the pool: its row, and the seconds it took now."""
        key = self.key(sample, candidate.settings(sample.input))
        if found := self.finished(key, candidate.name, sample.name):
            future: Future[ImageRow] = Future()
            future.set_result(found)
            return future, 0.0
        restored, seconds, peak = candidate.measure(sample.input, sample.truth.shape[:2], report)
        future = pool.submit(self.score, key, candidate.name, sample, restored, seconds, peak)
        return future, seconds

    def score(
        self,
        key: str,
        name: str,
        sample: Sample,
        restored: Pixels,
        seconds: float | None = None,
        peak: int | None = None,
    ) -> ImageRow:
        """Measure, keep and save one result, and return its row."""
        height, width = sample.truth.shape[:2]
        decibels, similarity = scores(
            restored, sample.truth, channel=self.protocol.channel, border=self.protocol.border
        )
        found = {"psnr": decibels, "ssim": similarity}
        for metric, distance in self.distances.items():
            found[metric] = distance(restored, sample.truth)
        row = ImageRow(sample.name, width, height, found, seconds, peak)
        if self.save:
            target = saved_image(self.save, self.benchmark, name, sample.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(target, Image(restored, text={KEY: key}))
        self.cache.put(key, row.to_json())
        return row


def saved_image(save: Path, benchmark: Benchmark, name: str, image: str) -> Path:
    """Where a network's result for an image is saved: DATASET-SETTING/NAME/IMAGE.png."""
    # The setting of pairs is -.
    folder = f"{benchmark.name}-{benchmark.protocol.setting}".rstrip("-")
    return save / folder / name / f"{image}.png"


def _is_saved(path: Path, key: str) -> bool:
    """Whether the file is the whole image of this result, and not of another run."""
    # It may be missing or damaged.
    try:
        return read_image(path).text.get(KEY) == key
    except (CallError, ImageError):
        return False
