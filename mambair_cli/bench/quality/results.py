"""What a benchmark found: rows of images, results of networks, and the report that holds them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...models.published import Published
from .intervals import interval

Scores = Mapping[str, float]
"""By the names of metrics, PSNR (dB) and SSIM first."""


@dataclass(frozen=True)
class ImageRow:
    """One image as one network (or the baseline) restored it.

    Args:
        image: its name.
        width: of the truth, in pixels.
        height: of the truth, in pixels.
        scores: what was measured.
        seconds: that the network took; None for the baseline, like the next.
        peak_memory: of the process (on a GPU: of its memory) in bytes.
    """

    image: str
    width: int
    height: int
    scores: Scores
    seconds: float | None = None
    peak_memory: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON, the scores among them; those of a network only where one ran."""
        facts = {"image": self.image, "width": self.width, "height": self.height, **self.scores}
        if self.seconds is not None:
            facts |= {"seconds": self.seconds, "peak_memory": self.peak_memory}
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "ImageRow":
        """Build a row from what `to_json` gave; null stands for an infinite score.

        Raises KeyError, TypeError.
        """
        own = cls.__dataclass_fields__
        scores = {
            name: math.inf if value is None else float(value)
            for name, value in facts.items()
            if name not in own
        }
        return cls(
            facts["image"],
            facts["width"],
            facts["height"],
            scores,
            facts.get("seconds"),
            facts.get("peak_memory"),
        )


@dataclass(frozen=True)
class Network:
    """What a network is and costs.

    Args:
        sha256: of its file.
        device: that it ran on.
        backend: of the scan.
        dtype: of convolutions and linear layers.
        parameters: all of them.
        leaf_parameters: as the papers count, see `archs.complexity`.
        macs: multiply-adds for an output of 1280x720.
        leaf_macs: as the papers count.
        seed: of what it draws at random; None: nothing is random.
    """

    sha256: str
    device: str
    backend: str
    dtype: str
    parameters: int
    leaf_parameters: int
    macs: int
    leaf_macs: int
    seed: int | None = None


def _without(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != key}


@dataclass(frozen=True)
class Result:
    """What one network reached on all images; `network` is None for the baseline."""

    name: str
    images: tuple[ImageRow, ...]
    network: Network | None = None

    @property
    def metrics(self) -> list[str]:
        """The names of the scores."""
        return list(self.images[0].scores)

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each score over the images."""
        return {m: statistics.fmean(row.scores[m] for row in self.images) for m in self.metrics}

    @property
    def interval(self) -> dict[str, tuple[float, float] | None]:
        """The 95 % interval of each mean."""
        return {m: interval([row.scores[m] for row in self.images]) for m in self.metrics}

    @property
    def seconds(self) -> float:
        """Seconds that the network took for all images."""
        return sum(row.seconds or 0.0 for row in self.images)

    @property
    def megapixels_per_second(self) -> float:
        """Megapixels of the results that the network makes in a second."""
        return sum(row.width * row.height for row in self.images) / 1e6 / self.seconds

    @property
    def peak_memory(self) -> int:
        """The largest peak of memory of all images, in bytes."""
        return max(row.peak_memory or 0 for row in self.images)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON; what a network costs only where one ran."""
        facts: dict[str, Any] = {"name": self.name, "mean": self.mean, "interval": self.interval}
        facts["images"] = [row.to_json() for row in self.images]
        if self.network:
            network = asdict(self.network)
            # Reports of networks that draw nothing are as they always were.
            facts |= network if self.network.seed is not None else _without(network, "seed")
            facts |= {
                "seconds": self.seconds,
                "megapixels_per_second": self.megapixels_per_second,
                "peak_memory": self.peak_memory,
            }
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Result":
        """Build a result from what `to_json` gave. Raises KeyError, TypeError."""
        fields = _without(Network.__dataclass_fields__, "seed")
        network = None
        if "sha256" in facts:
            network = Network(**{key: facts[key] for key in fields}, seed=facts.get("seed"))
        rows = tuple(ImageRow.from_json(row) for row in facts["images"])
        result = cls(facts["name"], rows, network)
        if result.to_json().keys() - facts.keys() or facts["mean"].keys() != result.mean.keys():
            raise KeyError("something is missing")
        return result


@dataclass(frozen=True)
class Report:
    """A benchmark: what was measured and how, and what was found.

    Args:
        mambair: its version.
        threads: of PyTorch.
        dataset: its name.
        folder: where it lies.
        copy: what is known of that copy, in words.
        complete: whether all images of a known set took part.
        task: of the networks.
        setting: of the task, such as x4; see `Protocol`.
        channel: what of the images counts.
        border: pixels left out on each side.
        inputs: where they came from, in words.
        seed: of the noise; None: there is none.
        tiler: how images are handed to networks; None: there are none.
        seconds: of the whole run.
        network_seconds: of these, within networks.
        results: the baseline first.
        published: what papers printed.
    """

    mambair: str
    threads: int
    dataset: str
    folder: str
    copy: str
    complete: bool
    task: str
    setting: str
    channel: str
    border: int
    inputs: str
    seed: int | None
    tiler: str | None
    seconds: float
    network_seconds: float
    results: tuple[Result, ...]
    published: tuple[Published, ...] = ()

    @property
    def baseline(self) -> Result:
        """What the networks have to beat."""
        return self.results[0]

    @property
    def networks(self) -> Sequence[Result]:
        """The results of the networks, without the baseline."""
        return self.results[1:]

    def to_json(self) -> dict[str, Any]:
        """What `mambair bench` prints as JSON."""
        facts = {key: getattr(self, key) for key in self.__dataclass_fields__}
        facts["results"] = [result.to_json() for result in self.results]
        facts["published"] = [asdict(row) for row in self.published]
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Report":
        """Build a report from what `to_json` gave. Raises KeyError or TypeError."""
        values = {key: facts[key] for key in cls.__dataclass_fields__}
        values["results"] = tuple(Result.from_json(result) for result in facts["results"])
        values["published"] = tuple(Published(**row) for row in facts["published"])
        return cls(**values)
