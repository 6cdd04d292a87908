"""`mambair train`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CallError
from .terminal import Device, print_table, say


def train(
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name or a TOML file; see --list.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of photographs to train on.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run: log, checkpoints, weights.")
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="Print the recipes and leave.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe: optimiser.lr=1e-4."),
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    import_yaml: Annotated[
        Path | None, typer.Option(help="A BasicSR option file instead of a recipe.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on exactly where the run in --out stopped.")
    ] = False,
    init: Annotated[
        str, typer.Option(help="Model or file to start from; tensors that fit are taken.")
    ] = "",
    val: Annotated[
        Path | None, typer.Option(help="Folder of validation photographs, taken whole.")
    ] = None,
    low: Annotated[
        Path | None, typer.Option(help="Folder of the degraded forms of --data.")
    ] = None,
    val_low: Annotated[
        Path | None, typer.Option(help="Folder of the degraded forms of --val.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure a few steps, say what it will take.")
    ] = False,
    device: Device = "auto",
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp64; default: fp32, or that of the run to resume."),
    ] = None,
    device_batch: Annotated[
        int | None, typer.Option(min=1, help="Samples at once; default: what fits.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Threads that make batches.")] = 1,
    cache: Annotated[
        float | None,
        typer.Option(min=0, help="GiB of decoded images; default: half of what is free."),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Less memory, more time: checkpoint gradients.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log to TensorBoard too.")
    ] = False,
    vgg: Annotated[
        Path | None, typer.Option(help="File of VGG19's weights, for perceptual losses.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Fuse operations by torch.compile, on a GPU.")
    ] = False,
) -> None:
    """Train a network by a recipe."""
    from ..system.runtime import keep_freed_memory
    from ..training.basicsr import convert
    from ..training.loop import Folders, Settings
    from ..training.loop import train as run
    from ..training.recipe import read_recipe, recipe_names, resolve

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
    if import_yaml:
        table, notes = convert(import_yaml)
        for note in notes:
            say(note)
        config = resolve(table, import_yaml.name, changes or [], iterations)
    else:
        config = read_recipe(str(recipe), changes or [], iterations)
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
    if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun
        print(weights)
