"""Which models run: by the task, the scale, what a photograph suffered, or as named. No torch."""

import shlex
from contextlib import suppress
from dataclasses import dataclass

from ..errors import CallError, CheckpointError
from .cache import cached_file, is_offline
from .catalog import Model, bundled_models, list_models, model_named
from .tasks import MAX_SCALE, TASKS, Task

# By how many dB a slower model has to be better.
WORTHWHILE = 0.1


def gain(model: Model, other: Model) -> float:
    """By how many dB `model` is better than another; 0 where their first scores do not compare."""
    for ours, theirs in zip(model.scores[:1], other.scores[:1], strict=False):
        if (ours.dataset, ours.channel) == (theirs.dataset, theirs.channel):
            return ours.psnr - theirs.psnr
    return 0.0


def better_model(model: Model) -> Model | None:
    """The cheapest model for the same images that is worth its time, here or to be fetched."""
    better = (
        other
        for other in list_models()
        if (other.task, other.scale, other.levels) == (model.task, model.scale, model.levels)
        and gain(other, model) >= WORTHWHILE
        and (is_here(other) or (other.urls and not is_offline()))
    )
    return min(better, key=lambda other: other.gmacs, default=None)


def is_here(model: Model) -> bool:
    """Whether its file is on this machine. A damaged record of the cache counts as none."""
    if model.bundled:
        return True
    with suppress(CheckpointError):
        path = cached_file(model.name)
        return path is not None and path.is_file()
    return False


def find_models(
    task: str, scale: float = 1, *, real: bool = False, level: int | None = None
) -> list[Model]:
    """The bundled models of a task that together reach at least `scale`, in the order to run them.

    That is the smallest model that reaches the scale; above the scale of the largest one, that one
    first, as often as needed. Of models for levels of a degradation it is the nearest one that is
    at least as strong.

    Args:
        task: a name of TASKS.
        scale: how many times larger the result is.
        real: take the models for real photographs.
        level: of the degradation; None: the weakest.

    Raises:
        CallError: there is none, or the scale lies outside 1 to MAX_SCALE.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise CallError(f"the scale must lie between 1 and {MAX_SCALE}, not {scale:g}")
    models = bundled_models(task, real)
    if not models or models[-1].scale < min(scale, 2):
        reach = f" reaches x{scale:g}" if scale > 1 else " yet"
        what = f"{task} with `{TASKS[task].option}=real`" if real else task
        hint = "choose a model yourself: a file, or a name of mambair models list"
        raise CallError(f"no bundled model for {what}{reach}; {hint}")
    strength = TASKS[task].strength
    levels = {max(model.levels, key=strength): model for model in models if model.levels}
    if levels:
        return [levels[TASKS[task].nearest(levels, level)]]
    largest = models[-1]
    if scale > largest.scale:
        return [largest, *find_models(task, scale / largest.scale, real=real)]
    return [next(m for m in models if m.scale >= scale)]


@dataclass(frozen=True)
class Choice:
    """Which models are meant: one that is named, or those bundled for a task.

    Attributes:
        task: a name of TASKS.
        model: a name or file; None: bundled ones.
        real: take the bundled models for real photographs; None: as each image needs.
        level: of the degradation; None: as each image needs.
    """

    task: str = "upscale"
    model: str | None = None
    real: bool | None = False
    level: int | None = None

    @property
    def by_image(self) -> bool:
        """Whether something has to be measured of each image to choose its models."""
        return self.by_level or (self.model is None and self.real is None)

    @property
    def by_level(self) -> bool:
        """Whether the level of the degradation decides, so that it has to be measured."""
        settled = self.model or self.real or self.level is not None
        return bool(TASKS[self.task].level) and not settled

    def models(self, scale: float, level: int | None = None, real: bool = False) -> list[Model]:
        """The models to run one after the other, for an image as measured.

        None where the one that is named is not in the catalog.
        Raises CallError where none reach the scale.
        """
        if self.model is not None:
            named = model_named(self.model)
            return [named] if named else []
        wanted = level if self.level is None else self.level
        if self.real is None:
            needs_real = real and bool(bundled_models(self.task, True))
        else:
            needs_real = self.real
        return find_models(self.task, scale, real=needs_real, level=wanted)

    def possible(self, scale: float | None) -> list[str]:
        """The names of all models that may run for a scale (None: any), whatever is measured.

        Raises CallError where none reach the scale.
        """
        if self.model is not None:
            return [self.model]
        if self.real is None:
            kinds = (False, True) if bundled_models(self.task, True) else (False,)
        else:
            kinds = (self.real,)
        if scale is None or self.by_level:
            return [model.name for real in kinds for model in bundled_models(self.task, real)]
        found = [model.name for real in kinds for model in self.models(scale, real=real)]
        return list(dict.fromkeys(found))


def parse_choice(task: Task, setting: str | None, model: str | None) -> Choice:
    """The choice of a user.

    Args:
        task: of the command.
        setting: what the task's option says; None: nothing.
        model: the model that is named; None: none is.

    Raises:
        CallError: the option does not take this, or both choose.
    """
    option, settings = task.option, task.settings
    if setting and model:
        raise CallError(
            f"`{option}={setting}` chooses among the bundled models, and {model} is another choice;"
            " leave out one of them"
        )
    if not setting or setting in settings:
        chosen = setting or next(iter(settings), "")
        by_image = chosen == "auto" and "real" in settings and model is None
        return Choice(task.name, model, real=None if by_image else chosen == "real")
    low, high = sorted((task.weakest, task.worst))
    if task.level and setting.isdecimal() and low <= int(setting) <= high:
        return Choice(task.name, level=int(setting))
    values = [f"a number from {low} to {high}"] if task.level else []
    raise CallError(f"`{option}` takes {' or '.join([*settings, *values])}, not {setting!r}")


def check_task(command: str, name: str, task: str | None, scale: int) -> None:
    """Raise CallError, with the command that fits, where a network cannot serve `command`.

    Args:
        command: a name of TASKS.
        name: of the model or file.
        task: what the network is known to be for; None: only its scale tells, and one that does not
            enlarge may be for anything else.
        scale: of the network.
    """
    task = task if task in TASKS else None
    enlarges = scale > 1
    if (task or command) == command and enlarges == (TASKS[command].scale > 1):
        return
    if task:
        what, fitting = f"is for {task}", [task]
    else:
        what = f"enlarges {scale} times" if enlarges else "does not enlarge"
        fitting = [other.name for other in TASKS.values() if enlarges == (other.scale > 1)]
    commands = " or ".join(fitting)
    raise CallError(f"{name} {what}; use mambair {commands} INPUT -m {shlex.quote(name)}")
