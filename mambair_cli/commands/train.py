"""`mambair train`."""

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CallError
from .terminal import Choices, Device, print_table, say, show

if TYPE_CHECKING:
    from ..training.config import TrainConfig
    from ..training.inputs import Folders, Settings


EXAMPLES = "\n".join(
    (
        "mambair train --list",
        "mambair train --recipe tiny-x2 --data photos/ --out runs/x2 --dry-run",
        "mambair train --recipe tiny-x2 --data photos/ --out runs/x2",
        "mambair train --resume --data photos/ --out runs/x2",
    )
)

Recipe = Annotated[str | None, typer.Option(help="A recipe's name or a TOML file; see --list.")]
Data = Annotated[Path | None, typer.Option(help="Folder of photos to train on.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run: log, checkpoints, weights.")]
ListRecipes = Annotated[bool, typer.Option("--list", help="List the recipes.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: optimiser.lr=1e-4."),
]
Iterations = Annotated[int | None, typer.Option(min=1, help="How many, instead of the recipe's.")]
ImportYaml = Annotated[Path | None, typer.Option(help="A BasicSR option file instead of a recipe.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on exactly where the run in --out stopped.")
]
Init = Annotated[str, typer.Option(help="Model or file to start from; what fits is taken.")]
Val = Annotated[Path | None, typer.Option(help="Folder of photos to validate with, whole.")]
Low = Annotated[
    Path | None, typer.Option(help="Folder with the degraded form of each image of --data.")
]
ValLow = Annotated[
    Path | None, typer.Option(help="Folder with the degraded form of each image of --val.")
]
Teacher = Annotated[
    Path | None, typer.Option(help="Folder of targets for --data, or a model, to learn from too.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few steps and say what the run will take.")
]


class PrecisionNames(Choices):
    """Those of `training.parallel.Precision`."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP64 = "fp64"


Precision = Annotated[
    PrecisionNames | None,
    typer.Option(help="Of the training. Default: fp32, or that of the run to resume."),
]
DeviceBatch = Annotated[
    int | None, typer.Option(min=1, help="Samples at once; default: what fits.")
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Threads that make batches.")]
Cache = Annotated[
    float | None,
    typer.Option(min=0, help="GiB for decoded images; default: half of the free memory."),
]
Recompute = Annotated[
    bool,
    typer.Option("--recompute", help="Take less memory and more time (gradient checkpointing)."),
]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Log to TensorBoard too.")]
Vgg = Annotated[Path | None, typer.Option(help="File of VGG19's weights, for perceptual losses.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Fuse operations with torch.compile, on a GPU.")
]


def train(
    recipe: Recipe = None,
    data: Data = None,
    out: Out = None,
    list_recipes: ListRecipes = False,
    changes: Changes = None,
    iterations: Iterations = None,
    import_yaml: ImportYaml = None,
    resume: Resume = False,
    init: Init = "",
    val: Val = None,
    low: Low = None,
    val_low: ValLow = None,
    teacher: Teacher = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    precision: Precision = None,
    device_batch: DeviceBatch = None,
    workers: Workers = 1,
    cache: Cache = None,
    recompute: Recompute = False,
    tensorboard: Tensorboard = False,
    vgg: Vgg = None,
    compiled: Compile = False,
) -> None:
    """Train a network by a recipe."""
    from ..system.runtime import keep_freed_memory
    from ..training import loop, plan
    from ..training.inputs import Folders, Settings
    from ..training.recipe import read_recipe, recipe_names

    if list_recipes:
        print_table(("recipe", ""), [(name, read_recipe(name).summary) for name in recipe_names()])
        return
    if resume and out and not (recipe or import_yaml):
        recipe = str(out / "recipe.json")
    if not (recipe or import_yaml) or (recipe and import_yaml):
        raise CallError("give --recipe, or --import-yaml; mambair train --list names the recipes")
    if not data:
        raise CallError("give --data DIR, a folder of photographs")
    if not (out or dry_run):
        raise CallError("give --out DIR, the folder of the run")
    if val_low and not val:
        raise CallError("--val-low holds the degraded forms of --val; give that too")
    keep_freed_memory()
    if import_yaml:
        config = _import_yaml(import_yaml, changes or [], iterations)
    else:
        config = read_recipe(str(recipe), changes or [], iterations)
    gib = None if cache is None else cache * 2**30
    kind = precision and precision.value
    settings = Settings(
        device, kind, device_batch, workers, gib, recompute, tensorboard, vgg, compiled
    )
    folders = Folders(data, val, low, val_low, teacher)
    if dry_run:
        print_table(("", ""), plan.plan(config, folders, settings, init))
        return
    assert out
    # of the processes of torchrun
    first = os.environ.get("RANK", "0") == "0"
    try:
        weights = loop.train(config, folders, out, resume=resume, init=init, settings=settings)
    except loop.Stopped:
        if first:
            say(f"go on with: {how_to_resume(folders, out, settings)}")
        raise
    if first:
        show(weights)


def _import_yaml(path: Path, changes: list[str], iterations: int | None) -> "TrainConfig":
    """The recipe in a BasicSR option file; says what it leaves out."""
    from ..training.basicsr import convert
    from ..training.recipe import resolve

    imported = convert(path)
    for note in imported.notes:
        say(note)
    for name, (field, value) in imported.given.items():
        say(f"{name}: give --{field.replace('_', '-')} {value}")
    return resolve(imported.table, path.name, changes, iterations)


def how_to_resume(folders: "Folders", out: Path, settings: "Settings") -> str:
    """The command that goes on with a run on this machine as it began."""
    from ..training import parallel
    from ..training.inputs import Settings

    words = ["mambair"]
    processes = parallel.processes_here()
    if processes > 1:
        words = ["torchrun", "--nproc-per-node", str(processes), "-m", "mambair_cli"]
    words += ["train", "--resume", "--out", str(out)]
    defaults = asdict(Settings())
    gib = settings.cache and settings.cache / 2**30
    for name, value in (asdict(folders) | asdict(settings) | {"cache": gib}).items():
        if value is not None and value != defaults.get(name):
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [str(value)]
    return shlex.join(words)
