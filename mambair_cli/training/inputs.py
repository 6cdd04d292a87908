"""What a run is given besides its recipe: folders of images, and how to run on this machine."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..degradations.base import Degradation
from ..errors import CallError
from ..models.weights import in_run
from ..system.devices import free_memory
from . import parallel
from .config import TrainConfig
from .data import TrainingPairs
from .photos import Photos, Source, add_targets, find_sources, split
from .recipe import build_degradation
from .schedule import stages
from .validation import Pair, validation_pairs

VALIDATION_CROP = 192
"""Degraded pixels a side of held-out images, so that a validation takes seconds."""
CACHE_SHARE = 0.5
"""Share of the free memory for decoded images."""


@dataclass(frozen=True)
class Folders:
    """Where the images are.

    Attributes:
        data: photographs to train on.
        val: photographs to validate with; None: some of `data`.
        low: degraded forms of `data`; None: they are made.
        val_low: degraded forms of `val`; None: they are made.
        teacher: folder of targets for `data`, with the same names, or a model's name or file; None:
            no teacher.
    """

    data: Path
    val: Path | None = None
    low: Path | None = None
    val_low: Path | None = None
    teacher: Path | None = None

    @property
    def targets(self) -> Path | None:
        """The folder of targets, where the teacher is one.

        The folder of a run is that of a model.
        """
        folder = self.teacher
        is_targets = folder and folder.is_dir() and in_run(folder) == folder
        return folder if is_targets else None


@dataclass(frozen=True)
class Settings:
    """How to run a recipe on this machine; what is learnt depends on it by rounding alone.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: a name of `parallel.Precision`; None: fp32, or that of the run to resume.
        device_batch: samples that a device takes at once; None: as many as fit, or those of the run
            to resume.
        workers: threads that make batches.
        cache: bytes of decoded images; None: half of the free memory.
        recompute: keep less for the backward pass (gradient checkpointing).
        tensorboard: log to TensorBoard too.
        vgg: file of VGG19's weights, for perceptual losses.
        compile: run the network through torch.compile, on GPUs.
    """

    device: str = "auto"
    precision: str | None = None
    device_batch: int | None = None
    workers: int = 1
    cache: float | None = None
    recompute: bool = False
    tensorboard: bool = False
    vgg: Path | None = None
    compile: bool = False


def open_data(
    config: TrainConfig, folders: Folders, settings: Settings
) -> tuple[TrainingPairs, list[Pair], list[str]]:
    """Pairs to train on, pairs to validate with, and why images are left out. Raises CallError."""
    if folders.val_low and not folders.val:
        raise CallError("`val_low` holds the degraded forms of `val`; give that too")
    degradation = build_degradation(config)
    sources, validation, skipped = _hold_out(config, folders, degradation)
    if folders.targets:
        sources = add_targets(sources, folders.data, folders.targets)
    memory = settings.cache
    if memory is None:
        memory = CACHE_SHARE * free_memory(torch.device("cpu")) / parallel.processes_here()
    photos = Photos(
        sources,
        config.scale,
        config.channels,
        shrink=degradation is None,
        smallest=min(stage.patch for stage in stages(config)),
        memory=memory,
    )
    on_the_fly = None if folders.low else degradation
    pairs = TrainingPairs(photos, on_the_fly, config.seed, config.data.mixup, config.teacher.weight)
    for stage in stages(config):
        pairs.check(stage.patch)
    return pairs, validation, photos.skipped + skipped


def _hold_out(
    config: TrainConfig, folders: Folders, degradation: Degradation | None
) -> tuple[list[Source], list[Pair], list[str]]:
    """Images to train on, pairs to validate with, and why images cannot be validated with.

    Where none of the images that are held out can be used, others take their place.
    Raises CallError where none is left.
    """
    scale, count = config.scale, config.data.validation
    sources = find_sources(folders.data, folders.low, scale)
    given = find_sources(folders.val, folders.val_low, scale) if folders.val else None
    crop = None if given else VALIDATION_CROP
    sources, chosen = split(sources, given, count)
    pairs, skipped = validation_pairs(chosen, scale, degradation, config.channels, crop)
    while not pairs and not given and len(sources) > count:
        sources, chosen = split(sources, None, count)
        pairs, reasons = validation_pairs(chosen, scale, degradation, config.channels, crop)
        skipped += reasons
    if not pairs:
        first = "".join(skipped[:1])
        raise CallError(f"none of {len(skipped)} images can be used; the first: {first}")
    return sources, pairs, skipped
