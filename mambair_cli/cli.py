"""The command line: parse, one call, print, exit code.

Nothing heavy is imported here, so the help is instant.
"""

import io
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
for _name, _function, _examples in (
    ("watch", watch.command(), watch.EXAMPLES),
    ("compare", compare.compare, compare.EXAMPLES),
    ("train", train.train, train.EXAMPLES),
    ("doctor", doctor.doctor, doctor.EXAMPLES),
    *((task.name, restore.command(task), restore.examples_of(task)) for task in TASKS.values()),
):
    app.command(_name, cls=help.Command, epilog=_examples)(_function)
app.command("help", cls=help.Command, hidden=True)(help.show_help)


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
    except OSError as error:
        # Such as a name that is too long, or a full disk behind stdout.
        _fail(str(error), 1)
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
)
"""What the parsers of options say, in the words of people."""


def _in_plain_words(message: str) -> str:
    for pattern, words in WORDS:
        message = re.sub(pattern, words, message)
    return message


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
