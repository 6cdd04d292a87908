"""How the help looks: panels, the order of commands, `--verbose` everywhere, `mambair help`."""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

COMMON = "Common"
SIZE = "Size"
OUTPUT = "Output"
MODEL = "Model"
SPEED = "Memory and speed"
ADVANCED = "Advanced"

ORDER = (
    *("upscale", "denoise", "derain", "dejpeg", "watch", "compare"),
    *("models", "doctor", "bench", "train"),
)
"""The commands as `mambair --help` lists them."""


def _be_verbose(wanted: bool) -> None:
    if wanted:
        logging.basicConfig(level=logging.INFO, format="mambair: %(message)s")


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_be_verbose,
        expose_value=False,
        help="Say what is decided and why.",
    ),
]


class _Common:
    """What every command shares: `--verbose`, and flags that show no type."""

    _verbose: Any = None
    epilog: str | None

    def get_params(self, ctx: Any) -> list[Any]:
        """The options of the command, of which those that all share come last."""
        if self._verbose is None:
            self._verbose = _verbose_option()
        *params, last = super().get_params(ctx)  # type: ignore[misc]
        params += [self._verbose, last]
        options = [param for param in params if param.param_type_name == "option"]
        unnamed = any(option.rich_help_panel is None for option in options[:-2])
        for option in options:
            # The panel without a name comes first, so it takes the common options where it exists.
            if option in options[-2:] or option.rich_help_panel == COMMON:
                option.rich_help_panel = None if unnamed else COMMON
        for param in params:
            # Newer versions of Typer show <bool>, and <list[str]>.
            if param not in options or param.is_flag:
                param.display_type_rich = _nothing
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, and the examples as they are typed."""
        lines, self.epilog = self.epilog, None
        super().format_help(ctx, formatter)  # type: ignore[misc]
        self.epilog = lines
        if lines:
            print(" Examples:", *lines.splitlines(), sep="\n   ")


class Command(_Common, TyperCommand):
    """A command."""


class Group(_Common, TyperGroup):
    """A command that has commands of its own."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names in the order of the help; others keep theirs, behind."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def show_help(
    context: typer.Context,
    commands: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", show_default=False)
    ] = None,
) -> None:
    """Show the help of mambair, or of one of its commands."""
    _help_of(context.find_root(), commands or ())


def _help_of(context: Any, names: Sequence[str]) -> None:
    if not names:
        print(context.get_help())
        return
    find = getattr(context.command, "get_command", None)
    found: Any = find(context, names[0]) if find else None
    if found is None:
        context.fail(f"No such command {names[0]!r}")
    settings = {"info_name": names[0], "parent": context}
    _help_of(type(context)(found, **settings, **found.context_settings), names[1:])


def _verbose_option() -> Any:
    """The option as this version of Typer makes it of its annotation."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def command(verbose: Verbose = False) -> None: ...

    return typer.main.get_command(app).params[0]


def _nothing(**given: Any) -> None:
    return None
