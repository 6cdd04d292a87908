"""Which models run: by the task, the scale, what a photograph suffered, or as named. No torch."""

import shlex
from contextlib import suppress
from dataclasses import dataclass

from ..errors import CallError, CheckpointError
from .cache import cached_file, is_offline
from .catalog import Model, bundled_models, list_models, model_named
from .tasks import MAX_SCALE, TASKS, Task

WORTHWHILE = 0.1  # dB that a slower model has to be better


def gain(model: Model, other: Model) -> float:
    """By how many dB `model` is better than another where both were scored first on the same; else 0."""
    for ours, theirs in zip(model.scores[:1], other.scores[:1], strict=False):
        if (ours.dataset, ours.channel) == (theirs.dataset, theirs.channel):
            return ours.psnr - theirs.psnr
    return 0.0


def better_model(model: Model) -> Model | None:
    """The cheapest one for the same images that is worth its time, of those that are here or can be fetched."""
    better = (
        other
        for other in list_models()
        if (other.task, other.scale, other.levels) == (model.task, model.scale, model.levels)
        and gain(other, model) >= WORTHWHILE
        and (is_here(other) or (other.urls and not is_offline()))
    )
    return min(better, key=lambda other: other.gmacs, default=None)


def is_here(model: Model) -> bool:
    """Whether it needs not be fetched. A record of the cache that cannot be read counts as none."""
    with suppress(CheckpointError):
        return model.bundled or ((path := cached_file(model.name)) is not None and path.is_file())
    return False


def find_models(
    task: str, scale: float = 1, *, real: bool = False, level: int | None = None
) -> list[Model]:
    """The bundled models of a task that together reach at least `scale`, in the order to run them.

    The smallest one that reaches it; above the largest one's scale that one first, as often as needed. Of those for
    levels of a degradation the nearest that is at least as strong as `level` (None: the weakest).
    real: those for real photographs.
    Raises CallError where there is none, and for a scale outside 1 to MAX_SCALE.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise CallError(f"the scale must lie between 1 and {MAX_SCALE}, not {scale:g}")
    models = bundled_models(task, real)
    if not models or models[-1].scale < min(scale, 2):
        reach = f" reaches x{scale:g}" if scale > 1 else " yet"
        what = f"{task} --{TASKS[task].option} real" if real else task
        hint = f"a file, or a name of mambair models list --task {task}"
        raise CallError(f"no bundled model for {what}{reach}; give one with -m: {hint}")
    if levels := {
        max(model.levels, key=TASKS[task].strength): model for model in models if model.levels
    }:
        return [levels[TASKS[task].nearest(levels, level)]]
    largest = models[-1]
    if scale > largest.scale:
        return [largest, *find_models(task, scale / largest.scale, real=real)]
    return [next(m for m in models if m.scale >= scale)]


@dataclass(frozen=True)
class Choice:
    """Which models are meant: one that is named, or those bundled for a task.

    task: a name of TASKS. model: a name or file. real: of the bundled ones those for real photographs.
    level: of the degradation; None: as each image needs.
    """

    task: str = "upscale"
    model: str | None = None
    real: bool = False
    level: int | None = None

    @property
    def by_level(self) -> bool:
        """Whether the level of the degradation decides, so that it has to be measured."""
        return (
            bool(TASKS[self.task].level) and not self.model and not self.real and self.level is None
        )

    def models(self, scale: float, level: int | None = None) -> list[Model]:
        """Those to run one after the other, for a level as measured; none where the one that is named has no row.

        Raises CallError where none reach the scale.
        """
        if self.model is not None:
            return list(filter(None, [model_named(self.model)]))
        return find_models(
            self.task, scale, real=self.real, level=level if self.level is None else self.level
        )

    def possible(self, scale: float | None) -> list[str]:
        """The names of all that may run for images of a scale (None: of any), whatever is measured of them.

        Raises CallError where none reach the scale.
        """
        if self.model is not None:
            return [self.model]
        if scale is None or self.by_level:
            return [model.name for model in bundled_models(self.task, self.real)]
        return list(dict.fromkeys(model.name for model in self.models(scale)))


def parse_choice(task: Task, setting: str | None, model: str | None) -> Choice:
    """What the option of a task says, None: nothing; and `-m`, which names a model.

    Raises CallError for what the option does not take, and where both choose.
    """
    option, settings = f"--{task.option}", task.settings
    if setting and model:
        raise CallError(
            f"{option} chooses among the bundled models, and -m names another; leave out one of them"
        )
    if not setting or setting in settings:
        return Choice(task.name, model, real=setting == "real")
    low, high = sorted((task.weakest, task.worst))
    if task.level and setting.isdecimal() and low <= int(setting) <= high:
        return Choice(task.name, level=int(setting))
    values = [f"a number from {low} to {high}"] if task.level else []
    raise CallError(f"{option} takes {' or '.join([*settings, *values])}, not {setting!r}")


def check_task(command: str, name: str, task: str | None, scale: int) -> None:
    """Raise CallError, with the command that fits, where a network cannot serve `command` (a name of TASKS).

    task: what it is known to be for; None: only its scale tells, and one that does not enlarge may be for any other.
    """
    task = task if task in TASKS else None
    if (task or command) == command and (scale > 1) == (TASKS[command].scale > 1):
        return
    what = (
        f"is for {task}" if task else f"enlarges {scale} times" if scale > 1 else "does not enlarge"
    )
    fitting = [task] if task else [t.name for t in TASKS.values() if (t.scale > 1) == (scale > 1)]
    raise CallError(
        f"{name} {what}; use mambair {' or '.join(fitting)} INPUT -m {shlex.quote(name)}"
    )
