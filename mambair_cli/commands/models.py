"""`mambair models`: which models there are."""

import typer

from ..registry import MODELS
from .terminal import Json, print_json, print_table

app = typer.Typer(help="Which models there are.", no_args_is_help=True)


@app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models that can be used by name."""
    from dataclasses import asdict

    if as_json:
        print_json([asdict(model) for model in MODELS])
        return
    rows = [(m.name, m.task, f"x{m.scale}", f"{m.parameters:,}", m.degradation, m.score) for m in MODELS]
    print_table(("name", "task", "scale", "parameters", "for", "score"), rows)
