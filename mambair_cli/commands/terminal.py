"""What all commands share: common options, and how they speak to the user."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TextIO

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Backend = Annotated[
    str, typer.Option(help="Of the selective scan: auto, numba, triton, mamba-ssm or reference.")
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Of convolutions and linear layers: auto (fp16 on a GPU), fp32, fp16 or bf16."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")
]


def _go_offline(wanted: bool) -> None:
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"


Offline = Annotated[
    bool,
    typer.Option(
        "--offline", callback=_go_offline, help="Fetch nothing (as HF_HUB_OFFLINE=1 does)."
    ),
]


def say(message: str) -> None:
    """One line on stderr, also where the name of a file has several."""
    print(f"mambair: {message}".replace("\n", "\\n"), file=sys.stderr)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """A bar with the time left on a terminal, nothing elsewhere; yields what takes the share done and a label."""
    first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    if (
        quiet
        or not first
        or not all(stream and stream.isatty() for stream in (sys.stdout, sys.stderr))
    ):
        yield lambda share, label: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=40),
        ),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, visible=False)

        def update(share: float, label: str) -> None:
            bar.update(task, completed=share, visible=True, description=label.replace("\n", "\\n"))

        yield update


def print_json(facts: Any, stream: TextIO | None = None) -> None:
    """One line of JSON, which has no word for infinity (the PSNR of equal images): it becomes null."""
    print(json.dumps(json.loads(json.dumps(facts), parse_constant=lambda _: None)), file=stream)


def print_table(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table on stdout; an empty header is left out. Wide where stdout is no terminal, so that it can be searched."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False)
    columns = (
        Column(text, overflow="fold", no_wrap=text == "name") for text in header
    )  # names have to be typed
    table = Table(*columns, box=None, show_header=any(header))
    for row in rows:
        table.add_row(*row)
    if not console.is_terminal:
        console.width = 400
    console.print(table)
