"""The command line: parse, one call, print, exit code.

Nothing heavy is imported here, so the help is instant.
"""

import contextlib
import errno
import io
import logging
import os
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
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # For the names of files that it cannot encode.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(prog_name="mambair", standalone_mode=False) or 0
        if sys.stdout:
            # While it can still be told that nobody takes it.
            sys.stdout.flush()
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
    except BrokenPipeError:
        # As `head` leaves it.
        _drop_stdout()
        sys.exit(1)
    except OSError as error:
        # Such as a name that is too long, or a full disk behind stdout.
        _drop_stdout()
        _fail(_words(error), 1)
    except MemoryError:
        _fail("too little memory is free; close other programs, or raise its limit", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)


def _open_streams() -> None:
    """Take the places of closed stdin, stdout and stderr, so that no file gets their numbers and
    with it what libraries complain of.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)


def _drop_stdout() -> None:
    """Keep Python from trying once more at its end to print what cannot be printed."""
    if sys.stdout is sys.__stdout__ and sys.stdout:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            return
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _words(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        return f"{error}; allow more with ulimit -n"
    return str(error)


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
