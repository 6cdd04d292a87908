"""A training run as frozen dataclasses; `limits` in a field's metadata bound its numbers."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..degradations.jpeg import Jpeg
from ..degradations.mixed import Clean, Mixed
from ..degradations.noise import Noise
from ..degradations.rain import Rain
from ..degradations.real_world import RealWorld
from ..degradations.sensor import Sensor

DEGRADATIONS: dict[str, tuple[type[Any], str]] = {
    "noise": (Noise, "denoise"),
    "jpeg": (Jpeg, "dejpeg"),
    "rain": (Rain, "derain"),
    "sensor": (Sensor, "denoise"),
    "real": (RealWorld, "upscale"),
    "mixed": (Mixed, ""),
    "clean": (Clean, ""),
}
"""The kinds that a recipe may name: each one's class, and the task that undoes it.

That of `mixed` is the task of its parts; `clean` is for its parts alone.
"""


@dataclass(frozen=True)
class DataConfig:
    """What a batch is.

    `patch` and `batch` hold a number for each stage of `ScheduleConfig.iterations`, or one for all
    stages.

    Attributes:
        patch: pixels a side of the degraded image.
        batch: samples of an iteration, on all devices together.
        validation: how many images are held out where no folder of them is given.
        degradation: `kind`, a name of DEGRADATIONS, and fields of that class other than the scale;
            `then` holds another one that comes after it. Kind `mixed` has a list `of` them instead
            of fields, each with its `share`. Empty: photographs are shrunk as the benchmarks do.
        mixup: half of the batches mix each sample with another, in shares drawn from Beta(mixup,
            mixup).
    """

    patch: tuple[int, ...] = field(metadata={"limits": (4, 4096)})
    batch: tuple[int, ...] = field(metadata={"limits": (1, 65536)})
    validation: int = field(default=8, metadata={"limits": (1, 10_000)})
    degradation: dict[str, Any] = field(default_factory=dict)
    mixup: float = field(default=0.0, metadata={"limits": (0, 100)})


@dataclass(frozen=True)
class LossConfig:
    """What is minimised: the mean of |error| (l1) or of sqrt(error^2 + epsilon^2) (charbonnier).

    Attributes:
        pixel: which of the two.
        epsilon: of charbonnier.
        perceptual: weight of the distance of VGG19 features.
        adversarial: weight of the vanilla GAN loss.
        discriminator_lr: learning rate of the discriminator's Adam.
    """

    pixel: Literal["l1", "charbonnier"] = "l1"
    epsilon: float = field(default=1e-3**0.5, metadata={"limits": (1e-9, 1)})
    perceptual: float = field(default=0.0, metadata={"limits": (0, 1000)})
    adversarial: float = field(default=0.0, metadata={"limits": (0, 1000)})
    discriminator_lr: float = field(default=1e-4, metadata={"limits": (1e-9, 1)})


@dataclass(frozen=True)
class TeacherConfig:
    """What a teacher counts: another network, or targets that one made.

    What nobody can predict from a degraded image is noise to a learner; a teacher's targets have
    none of it.

    Attributes:
        weight: of the teacher in the targets, the truth having the rest; 0: there is no teacher.
    """

    weight: float = field(default=0.0, metadata={"limits": (0, 1)})


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW, which is Adam without weight decay; only matrices decay.

    Attributes:
        lr: the highest learning rate.
        betas: decays of the two moments.
        weight_decay: share of a matrix that a step at rate 1 takes away.
        clip: largest norm of the gradient; 0: any.
        ema: decay of the averaged weights, which are the result.
    """

    lr: float = field(metadata={"limits": (1e-9, 1)})
    betas: tuple[float, float] = field(metadata={"limits": (0, 0.9999)})
    weight_decay: float = field(default=0.0, metadata={"limits": (0, 10)})
    clip: float = field(default=0.0, metadata={"limits": (0, 1e6)})
    ema: float = field(default=0.999, metadata={"limits": (0, 1)})


@dataclass(frozen=True)
class ScheduleConfig:
    """How long a run is and how its learning rate goes.

    Attributes:
        iterations: of each stage.
        warmup: share of the run in which the rate rises to `lr`.
        halve_at: shares of the run at which the rate halves.
        flat: without `halve_at`, the share of the run up to which the rate stays at `lr`; then it
            falls as a cosine.
        floor: the rate at which the cosine ends.
    """

    iterations: tuple[int, ...] = field(metadata={"limits": (1, 1e9)})
    warmup: float = field(default=0.0, metadata={"limits": (0, 1)})
    halve_at: tuple[float, ...] = field(default=(), metadata={"limits": (0, 1)})
    flat: float = field(default=0.0, metadata={"limits": (0, 1)})
    floor: float = field(default=0.0, metadata={"limits": (0, 1)})


@dataclass(frozen=True)
class TrainConfig:
    """A recipe.

    Attributes:
        scale: how many times larger the truth is than the degraded image.
        seed: of everything random.
        network: `arch`, a name of ARCHITECTURES, and fields of its configuration other than the
            scale.
        summary: one line.
        init: the recipe whose weights this one starts from.
    """

    scale: int = field(metadata={"limits": (1, 8)})
    seed: int = field(metadata={"limits": (0, 2**32)})
    network: dict[str, Any]
    data: DataConfig
    optimiser: OptimiserConfig
    schedule: ScheduleConfig
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig = TeacherConfig()
    summary: str = ""
    init: str = ""

    @property
    def iterations(self) -> int:
        """Iterations of all stages together."""
        return sum(self.schedule.iterations)

    @property
    def channels(self) -> int:
        """Channels of the images: 3, or 1 for gray."""
        return int(self.network.get("in_chans", 3))

    @property
    def task(self) -> str:
        """What the network is for, a name of TASKS."""
        degradation = self.data.degradation
        if not degradation:
            return "upscale"
        tasks = [DEGRADATIONS[part["kind"]][1] for part in degradation.get("of", [degradation])]
        return next(task for task in tasks if task)
