"""What mambair can do and with which weights: tables of data, no torch."""

from dataclasses import dataclass

from .errors import CallError


@dataclass(frozen=True)
class Task:
    """A kind of restoration, and the command of the same name.

    scale is the default one. suffix tells a result from the input beside it; {scale} in it stands for the scale.
    """

    name: str
    summary: str
    scale: int
    suffix: str


@dataclass(frozen=True)
class Model:
    """A trained network.

    file is its name under weights/, sha256 that of the file, parameters their number, degradation what its
    inputs should have suffered, score what it reaches and on what.
    """

    name: str
    task: str
    arch: str
    scale: int
    file: str
    sha256: str
    parameters: int
    degradation: str
    score: str
    licence: str
    source: str


TASKS = {
    "upscale": Task("upscale", "Enlarge photographs and restore their detail.", scale=4, suffix="_x{scale:g}"),
}

MODELS: tuple[Model, ...] = (
    Model(
        name="tiny-x2",
        task="upscale",
        arch="mambair",
        scale=2,
        file="tiny-x2.safetensors",
        sha256="92f705a332da259ce1cf6dbc429ed05259c1ade307e7248708732dc2c6145beb",
        parameters=158226,
        degradation="bicubic downsampling",
        score="Set5 37.33 dB PSNR-Y",
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-x2.md",
    ),
    Model(
        name="tiny-x4",
        task="upscale",
        arch="mambair",
        scale=4,
        file="tiny-x4.safetensors",
        sha256="37c0f2153d567524d9eea7cea4047f54a320b9308cffdbaef2e8e1bd41237d36",
        parameters=173814,
        degradation="bicubic downsampling",
        score="Set5 31.23 dB PSNR-Y",
        licence="Apache-2.0",
        source="trained by this project, see weights/tiny-x4.md",
    ),
)


def find_model(task: str, scale: float) -> Model:
    """The default model of a task that reaches at least `scale`: the smallest that does.

    Raises CallError where none reaches it.
    """
    candidates = sorted((m for m in MODELS if m.task == task), key=lambda m: m.scale)
    for model in candidates:
        if model.scale >= scale:
            return model
    known = ", ".join(f"{m.name} (x{m.scale})" for m in candidates) or "none"
    raise CallError(f"no bundled model for {task} reaches x{scale:g}; there are {known}; give one with -m")


def model_named(name: str) -> Model | None:
    """The row of this name, if there is one."""
    return next((model for model in MODELS if model.name == name), None)
