from typing import get_args, get_origin, get_type_hints

import pytest

from mambair_cli.archs.mambair import MambaIRConfig
from mambair_cli.archs.mambair_unet import MambaIRUNetConfig
from mambair_cli.archs.vmambair import VmambaIRConfig
from mambair_cli.degradations.jpeg import Jpeg
from mambair_cli.degradations.noise import Noise
from mambair_cli.degradations.rain import Rain
from mambair_cli.degradations.sensor import Sensor
from mambair_cli.errors import CallError
from mambair_cli.training.config import (
    DataConfig,
    LossConfig,
    OptimiserConfig,
    ScheduleConfig,
    TeacherConfig,
    TrainConfig,
)
from mambair_cli.training.recipe import read_recipe


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (("light-x2", "real-x4", "real-x4-gan", "vmambair-x4", "tiny-real-x4"), "upscale"),
        (("denoise-15", "denoise-real", "tiny-denoise", "tiny-denoise-real"), "denoise"),
        (("derain", "derain-finetune", "tiny-derain"), "derain"),
        (("jpeg-10", "tiny-dejpeg"), "dejpeg"),
    ],
)
def test_recipes_know_what_their_networks_are_for(names, task):
    assert {read_recipe(name).task for name in names} == {task}


def numbers(kind):
    """The keys of all numbers in a dataclass of recipes, and how many a list holds (0: no list)."""
    for key, annotation in get_type_hints(kind).items():
        parts = get_args(annotation)
        if annotation in (int, float):
            yield key, 0
        elif get_origin(annotation) is tuple and parts[0] in (int, float):
            yield key, 1 if parts[-1] is ... else len(parts)


SECTIONS = [
    ("", TrainConfig, "tiny-x2"),
    ("data.", DataConfig, "tiny-x2"),
    ("loss.", LossConfig, "tiny-x2"),
    ("teacher.", TeacherConfig, "tiny-x2"),
    ("optimiser.", OptimiserConfig, "tiny-x2"),
    ("schedule.", ScheduleConfig, "tiny-x2"),
    ("network.", MambaIRConfig, "tiny-x2"),
    ("network.", VmambaIRConfig, "derain"),
    ("network.", MambaIRUNetConfig, "denoise-real"),
    ("data.degradation.", Rain, "derain"),
    ("data.degradation.", Sensor, "denoise-real"),
    ("data.degradation.", Noise, "denoise-15"),
    ("data.degradation.", Jpeg, "jpeg-10"),
]


@pytest.mark.parametrize(
    "value", ["-1e12", "1e12", "nan", "inf", "-inf", "true", "'1'", "1000000000000"]
)
@pytest.mark.parametrize(("section", "kind", "name"), SECTIONS)
def test_no_number_is_absurd(section, kind, name, value):
    """Of all keys that there are: one line that names the key, what it may be, and what it is."""
    asked = [
        (key, count) for key, count in numbers(kind) if key not in ("upscale", "channel_inner")
    ]
    assert asked
    for key, count in asked:
        given = f"[{', '.join([value] * count)}]" if count else value
        with pytest.raises(
            CallError,
            match=rf"^{section}{key}=.*: {key} must be a (whole )?number from \S+ to \S+, not \S+$",
        ):
            read_recipe(name, [f"{section}{key}={given}"])
