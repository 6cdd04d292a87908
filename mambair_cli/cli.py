"""The command line: parse, one call, print, exit code.

Nothing heavy is imported here, so the help is instant.
"""

import contextlib
import errno
import io
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .commands import bench, compare, doctor, help, models, restore, train, watch
from .commands.presets import NAME as PRESETS
from .commands.presets import apply_presets, is_preset
from .commands.terminal import say
from .errors import MambairError
from .models.tasks import TASKS

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
}

UsageError: Any = typer.BadParameter.__base__
"""Click's, wherever this version of Typer keeps it."""

EXAMPLES = "\n".join(
    (
        "mambair upscale photo.jpg",
        "mambair denoise holiday/ -o better/",
        "mambair compare photo.jpg photo_x4.jpg -o page.html",
        "mambair help upscale",
    )
)

app = typer.Typer(
    cls=help.Group,
    help="Make a bad photograph better with state-space networks.",
    epilog=EXAMPLES,
    context_settings=SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
_COMMANDS: tuple[tuple[str, Any, str], ...] = (
    ("watch", watch.command(), watch.EXAMPLES),
    ("compare", compare.compare, compare.EXAMPLES),
    ("train", train.train, train.EXAMPLES),
    ("doctor", doctor.doctor, doctor.EXAMPLES),
    *((task.name, restore.command(task), restore.examples_of(task)) for task in TASKS.values()),
)
for _name, _function, _examples in _COMMANDS:
    app.command(_name, cls=help.Command, epilog=_examples)(_function)
app.command("help", cls=help.Command, hidden=True)(help.show_help)


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
        message = _in_plain_words(error.format_message())
        if len(message.splitlines()) == 1:
            command = error.ctx.command_path if error.ctx else "mambair"
            param = getattr(error, "param", None)
            if error.ctx and param and is_preset(error.ctx, param):
                message = f"{message.rstrip('.')}, in {PRESETS}"
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


WORDS = (
    (r"Input should be a valid number.*", "this is not a number"),
    (r"Input should be a valid integer.*", "this is not a whole number"),
    (r"'([^']*)' is not a valid float.*", r"'\1' is not a number"),
    (r"'([^']*)' is not a valid integer.*", r"'\1' is not a whole number"),
    (r"Input should be greater than or equal to (\S+)", r"it must be at least \1"),
    (r"Input should be less than or equal to (\S+)", r"it must be at most \1"),
    (r"Input should be ", "it must be "),
    (r"Value error, ", ""),
)
"""What the parsers of options say, in the words of people."""


def _in_plain_words(message: str) -> str:
    for pattern, words in WORDS:
        message = re.sub(pattern, words, message)
    return message


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
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"mambair {__version__}")
        raise typer.Exit
    apply_presets(context)
