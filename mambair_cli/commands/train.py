"""`mambair train`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CallError
from .terminal import Device, print_table, say

if TYPE_CHECKING:
    from ..training.recipe import TrainConfig

RecipeName = Annotated[
    str | None, typer.Option("--recipe", help="A recipe's name or a TOML file; see --list.")
]
Data = Annotated[Path | None, typer.Option(help="Folder of photos to train on.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the run: log, checkpoints, weights.")]
List = Annotated[bool, typer.Option("--list", help="List the recipes and exit.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: optimiser.lr=1e-4."),
]
Iterations = Annotated[int | None, typer.Option(min=1, help="How many, instead of the recipe's.")]
ImportYaml = Annotated[Path | None, typer.Option(help="A BasicSR option file as the recipe.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run in --out exactly where it stopped.")
]
Init = Annotated[str, typer.Option(help="Model or file to start from; tensors that fit are used.")]
Val = Annotated[Path | None, typer.Option(help="Folder of validation photos, used whole.")]
Low = Annotated[Path | None, typer.Option(help="Folder of the degraded versions of --data.")]
ValLow = Annotated[Path | None, typer.Option(help="Folder of the degraded versions of --val.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure a few steps, and say what the run will take.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, bf16 or fp64. Default: fp32, or that of the run to resume."),
]
DeviceBatch = Annotated[
    int | None, typer.Option(min=1, help="Samples at once. Default: as many as fit.")
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Threads that prepare batches.")]
Cache = Annotated[
    float | None,
    typer.Option(min=0, help="GiB of decoded images to keep. Default: half of the free memory."),
]
Recompute = Annotated[
    bool, typer.Option("--recompute", help="Use less memory and more time (checkpointing).")
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Also log to TensorBoard.")]
Vgg = Annotated[Path | None, typer.Option(help="File of VGG19's weights, for perceptual losses.")]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Fuse operations with torch.compile, on a GPU.")
]


def train(
    recipe: RecipeName = None,
    data: Data = None,
    out: Out = None,
    list_recipes: List = False,
    changes: Changes = None,
    iterations: Iterations = None,
    import_yaml: ImportYaml = None,
    resume: Resume = False,
    init: Init = "",
    val: Val = None,
    low: Low = None,
    val_low: ValLow = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    precision: Precision = None,
    device_batch: DeviceBatch = None,
    workers: Workers = 1,
    cache: Cache = None,
    recompute: Recompute = False,
    tensorboard: TensorBoard = False,
    vgg: Vgg = None,
    compiled: Compiled = False,
) -> None:
    """Train a network by a recipe."""
    from ..system.runtime import keep_freed_memory
    from ..training.loop import Folders, Settings
    from ..training.loop import train as run
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
    keep_freed_memory()
    config = _recipe(recipe, import_yaml, changes or [], iterations)
    gib = None if cache is None else cache * 2**30
    settings = Settings(
        device, precision, device_batch, workers, gib, recompute, tensorboard, vgg, compiled
    )
    folders = Folders(data, val, low, val_low)
    if dry_run:
        from ..training.plan import plan

        print_table(("", ""), plan(config, folders, settings, init))
        return
    assert out
    weights = run(config, folders, out, resume=resume, init=init, settings=settings)
    # Of the processes of torchrun, one speaks.
    if os.environ.get("RANK", "0") == "0":
        print(weights)


def _recipe(
    name: str | None, import_yaml: Path | None, changes: list[str], iterations: int | None
) -> "TrainConfig":
    """The recipe of a name or of a file of BasicSR, with what the command changes."""
    from ..training.basicsr import convert
    from ..training.recipe import read_recipe, resolve

    if not import_yaml:
        return read_recipe(str(name), changes, iterations)
    table, notes = convert(import_yaml)
    for note in notes:
        say(note)
    return resolve(table, import_yaml.name, changes, iterations)
