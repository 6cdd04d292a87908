"""What a run is given besides its recipe: folders of images, and how to run on this machine."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import CallError
from ..system.devices import free_memory
from . import parallel
from .config import TrainConfig
from .data import TrainingPairs
from .photos import Photos, add_targets, find_sources, split
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
        if folder and folder.is_dir() and not (folder / "model.safetensors").is_file():
            return folder
        return None


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
    sources = find_sources(folders.data, folders.low, config.scale)
    chosen = find_sources(folders.val, folders.val_low, config.scale) if folders.val else None
    sources, chosen = split(sources, chosen, config.data.validation)
    if folders.targets:
        sources = add_targets(sources, folders.data, folders.targets)
    degradation = build_degradation(config)
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
    crop = None if folders.val else VALIDATION_CROP
    validation, skipped = validation_pairs(chosen, config.scale, degradation, config.channels, crop)
    return pairs, validation, photos.skipped + skipped
