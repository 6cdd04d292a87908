"""A teacher: a trained network whose results take a share in what another one learns."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CallError
from ..models.fetch import find_checkpoint
from ..models.recognise import load_network
from .config import TeacherConfig, TrainConfig
from .inputs import Folders
from .schedule import stages

USUAL_WEIGHT = 0.5
"""The weight of a teacher for which the recipe names none."""


def with_teacher(config: TrainConfig, folders: Folders) -> TrainConfig:
    """The recipe, which has the usual weight for a teacher that it does not expect.

    Raises CallError where it expects a teacher and there is none.
    """
    expected = config.teacher.weight > 0
    if expected and not folders.teacher:
        raise CallError(
            "this recipe learns from a teacher too: give `teacher`, a folder of targets or a model,"
            " or set teacher.weight=0"
        )
    if folders.teacher and not expected:
        return replace(config, teacher=TeacherConfig(USUAL_WEIGHT))
    return config


def load_teacher(name_or_file: str, config: TrainConfig) -> nn.Module:
    """The network that teaches, on the CPU.

    Args:
        name_or_file: a model's name or its file.
        config: the recipe.

    Raises:
        CallError: there is no such model, or it does not fit the recipe.
        CheckpointError: its file is damaged.
    """
    network, _ = load_network(find_checkpoint(name_or_file))
    shape: Any = network.config
    scale, channels = shape.upscale, shape.in_chans
    if scale != config.scale or channels != config.channels:
        raise CallError(
            f"{name_or_file} cannot teach this recipe: it is for x{scale} and {channels} channels,"
            f" the recipe for x{config.scale} and {config.channels}"
        )
    odd = [stage.patch for stage in stages(config) if stage.patch % shape.multiple]
    if odd:
        raise CallError(
            f"{name_or_file} takes sides that are multiples of {shape.multiple},"
            f" but the recipe has patches of {odd[0]}; change data.patch"
        )
    return network.eval().requires_grad_(False)


def taught(teacher: nn.Module, weight: float, low: Tensor, high: Tensor) -> Tensor:
    """Targets for degraded patches (B,C,p,p), in which truths (B,C,s*p,s*p) count 1 - weight."""
    with torch.no_grad():
        made = teacher(low).to(high.dtype).clamp(0, 1)
    return torch.lerp(high, made, weight)
