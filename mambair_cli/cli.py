"""The command line: parse, one call, print, exit code.

Nothing heavy is imported here, so the help is instant.
"""

import io
import logging
import sys
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .commands import bench, doctor, models, restore, train
from .commands.terminal import say
from .errors import MambairError
from .models.tasks import TASKS

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
}

UsageError: Any = typer.BadParameter.__base__
"""Click's, wherever this version of Typer keeps it."""

app = typer.Typer(
    help="Make a bad photograph better with state-space networks.",
    context_settings=SETTINGS,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)
for _task in TASKS.values():
    app.command(_task.name)(restore.command(_task))


def main() -> None:
    """Run the command line; a foreseen error becomes one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # For the names of files that it cannot encode.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="mambair", standalone_mode=False) or 0
        # Newer versions of Typer return this for KeyboardInterrupt.
        if code == 130:
            raise KeyboardInterrupt
        sys.exit(code)
    except MambairError as error:
        _fail(str(error), error.exit_code)
    except UsageError as error:
        message = error.format_message()
        if len(message.splitlines()) == 1:
            command = error.ctx.command_path if error.ctx else "mambair"
            _fail(f"{message.rstrip('.')}; see {command} --help", error.exit_code)
        # Nothing was asked for: the help.
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        # Such as a name that is too long, or a full disk behind stdout.
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    say(message)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what is decided and why.")
    ] = False,
) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, format="mambair: %(message)s")
    if version:
        print(f"mambair {__version__}")
        raise typer.Exit
