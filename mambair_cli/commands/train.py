"""`mambair train`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Option(help="A recipe's name or a TOML file.")],
    data: Annotated[Path, typer.Option(help="Folder of high-resolution photographs.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log, checkpoint, weights.")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    patch: Annotated[int | None, typer.Option(min=1, help="Low-resolution pixels, instead of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on exactly where the run in --out stopped.")] = False,
    init: Annotated[str | None, typer.Option(help="Model or file to start from; tensors that fit are taken.")] = None,
    val: Annotated[Path | None, typer.Option(help="Folder of validation photographs.")] = None,
) -> None:
    """Train a network by a recipe."""
    from dataclasses import replace

    from ..runtime import keep_freed_memory
    from ..training.loop import train as run
    from ..training.recipe import read_recipe

    keep_freed_memory()
    config = read_recipe(recipe)
    config = replace(
        config,
        data=replace(config.data, patch=patch or config.data.patch, batch=batch or config.data.batch),
        schedule=replace(config.schedule, iterations=iterations or config.schedule.iterations),
    )
    print(run(config, data, out, resume=resume, init=init, val=val))
