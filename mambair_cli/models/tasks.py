"""The kinds of restoration, one row each; every row becomes a command."""

from collections.abc import Iterable
from dataclasses import dataclass

# How many times a side can be enlarged.
MAX_SCALE = 16


@dataclass(frozen=True)
class Task:
    """A kind of restoration, and the command of the same name.

    Attributes:
        name: what the command is called.
        summary: one line of help.
        scale: the default scale.
        suffix: tells a result from the input beside it; {scale} in it stands for the scale.
        option: what chooses among the task's models, if anything does. It takes one of `settings`
            or, where each model is for a level of the degradation, a number.
        option_help: what the option means.
        settings: the words that the option takes, the default first.
        level: what the number counts, such as sigma.
        weakest: the number of the weakest degradation.
        worst: the number of the worst degradation.
    """

    name: str
    summary: str
    scale: int
    suffix: str
    option: str = ""
    option_help: str = ""
    settings: tuple[str, ...] = ()
    level: str = ""
    weakest: int = 0
    worst: int = 0

    def strength(self, level: int) -> int:
        """How strong the degradation of this level is: a higher number is worse."""
        return level if self.worst > self.weakest else -level

    def nearest(self, levels: Iterable[int], level: int | None) -> int:
        """The nearest of `levels` that is at least as strong as `level`, else the strongest."""
        least = self.strength(self.weakest if level is None else level)
        enough = [other for other in levels if self.strength(other) >= least]
        return min(enough, key=self.strength) if enough else max(levels, key=self.strength)


TASKS = {
    task.name: task
    for task in (
        Task(
            "upscale",
            "Enlarge photographs and restore their detail.",
            scale=4,
            suffix="_x{scale:g}",
            option="degradation",
            option_help="What the photo suffered: bicubic (it was only made smaller) or real"
            " (blur, noise, JPEG); auto measures it. Default: auto.",
            settings=("auto", "bicubic", "real"),
        ),
        Task(
            "denoise",
            "Remove the noise from photographs.",
            scale=1,
            suffix="_denoised",
            option="noise",
            option_help="How strong the noise is: its sigma on the scale of 255, such as 25; auto"
            " measures it; real is for the noise of cameras. Default: auto.",
            settings=("auto", "real"),
            level="sigma",
            weakest=0,
            worst=255,
        ),
        Task("derain", "Remove the rain from photographs.", scale=1, suffix="_derained"),
        Task(
            "dejpeg",
            "Remove the artefacts of JPEG compression.",
            scale=1,
            suffix="_dejpeg",
            option="jpeg",
            option_help="The JPEG quality, such as 40; auto reads it off the file and its pixels."
            " Default: auto.",
            settings=("auto",),
            level="quality",
            weakest=100,
            worst=1,
        ),
    )
}
