"""What all commands share: common options, and how they speak to the user."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from .help import ADVANCED, COMMON, SPEED


class Choices(str, Enum):
    """The values that an option takes, which its help lists. Each member is its own string."""

    __str__ = str.__str__


def choices(name: str, values: Iterable[str]) -> Any:
    """An enumeration of words, for an option whose help lists them."""
    make: Any = Choices
    return make(name, {value.upper(): value for value in values})


def _backend_names() -> list[str]:
    """Those of `ops.BACKENDS`, which would import torch: each has a file of its name."""
    files = Path(__file__).parents[1].joinpath("ops").glob("scan_*.py")
    return sorted(file.stem.removeprefix("scan_").replace("_", "-") for file in files)


class BackendNames(Choices):
    """Auto, and the back ends of the scan."""

    _ignore_ = "_each"
    AUTO = "auto"
    for _each in _backend_names():
        locals()[_each] = _each


class DtypeNames(Choices):
    """Those that `system.devices.resolve_dtype` knows."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        help="Where to run: auto, cpu, cuda, cuda:N or mps.",
        rich_help_panel=SPEED,
    ),
]
Backend = Annotated[
    BackendNames,
    typer.Option(
        metavar="NAME",
        help=f"What computes the selective scan: {', '.join(BackendNames)}.",
        rich_help_panel=SPEED,
    ),
]
Dtype = Annotated[
    DtypeNames,
    typer.Option(
        help="Precision of convolutions and linear layers; auto is fp16 on a GPU.",
        rich_help_panel=SPEED,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on stdout and nothing else there.",
        rich_help_panel=COMMON,
    ),
]

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress bar, no advice.", rich_help_panel=COMMON),
]


def _go_offline(wanted: bool) -> None:
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"


Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        callback=_go_offline,
        help="Download nothing, as HF_HUB_OFFLINE=1 does.",
        rich_help_panel=ADVANCED,
    ),
]


SHORT = {"output": "-o", "model": "-m"}
"""Fields whose flags people know by a letter."""


def as_flags(message: str) -> str:
    """A message of the core in the words of the command line.

    The core names what a caller chooses as Python does: `tile_overlap`, or `device=cpu` with a
    value. Here these become --tile-overlap and --device cpu.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        text = SHORT.get(name) or f"--{name.replace('_', '-')}"
        return f"{text} {value}" if value else text

    return re.sub(r"(?<![^\s(])`([a-z_]+)(?:=([^`]+))?`(?![^\s,.;:)])", flag, message)


def announce(message: str) -> None:
    """Print at once what begins, if somebody watches."""
    if sys.stderr and sys.stderr.isatty():
        say(message)


def ignore(message: str) -> None:
    """Take what nobody wants to know."""


def visible(text: str) -> str:
    """A text of strangers, such as the name of a file, on one line and without commands to the
    terminal.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, ends of lines, and what turns the direction of writing."""


def say(message: str) -> None:
    """Print one line on stderr, even if the name of a file has several."""
    if sys.stderr:
        show(f"mambair: {as_flags(message)}", sys.stderr)


def show(text: object, stream: TextIO | None = None) -> None:
    """Print one line, on stdout or another stream."""
    print(visible(str(text)), file=stream)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[float, str], None]]:
    """Show a bar with the time left on a terminal, and nothing elsewhere.

    Yields a function that takes the share done, from 0 to 1, and a label.
    """
    on_terminal = all(stream and stream.isatty() for stream in (sys.stdout, sys.stderr))
    # Under torchrun only the first process shows one.
    first = os.environ.get("RANK", "0") == "0"
    if quiet or not first or not on_terminal:
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
            table_column=Column(no_wrap=True, overflow="ellipsis", max_width=56),
        ),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def update(share: float, label: str) -> None:
            bar.update(task, completed=share, description=visible(label))

        yield update


def print_json(facts: Any, stream: TextIO | None = None) -> None:
    """Print one line of JSON.

    JSON has no word for infinity (the PSNR of equal images): it becomes null.
    """
    plain = json.loads(json.dumps(facts), parse_constant=lambda _: None)
    print(json.dumps(plain), file=stream)


WORD = 18
"""Letters of the longest words that a table never breaks."""


def print_table(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Print a table on stdout; a header of empty names is left out.

    If stdout is not a terminal, lines are wide, so that they can be searched.
    """
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, emoji=False)
    cells = [(text, *(str(row[i]) for row in rows)) for i, text in enumerate(header)]
    words = [
        max((len(word) for cell in column for word in cell.split()), default=1) for column in cells
    ]
    # Names of models are never wrapped: people have to type them. Other words stay whole, but for
    # such as paths and addresses.
    columns = (
        Column(text, overflow="fold", no_wrap=text == "name", min_width=min(longest, WORD))
        for text, longest in zip(header, words, strict=True)
    )
    table = Table(*columns, box=None, show_header=any(header))
    for row in rows:
        table.add_row(*map(visible, row))
    if not console.is_terminal:
        console.width = 400
    console.print(table)
