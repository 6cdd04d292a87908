"""The command line: parse, one call, print, exit code. No torch at import, so `--help` is instant."""

import io
import logging
import sys
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .commands import bench, models, restore, train
from .commands.terminal import Json, print_json, print_table, say
from .errors import MambairError
from .models.tasks import TASKS

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
}
UsageError: Any = typer.BadParameter.__base__  # click's, wherever this version of typer keeps it

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
for _task in TASKS.values():
    app.command(_task.name)(restore.command(_task))


def main() -> None:
    """Run the command line; every error that is foreseen becomes one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for the names of files that it cannot encode
    try:
        code = app(prog_name="mambair", standalone_mode=False) or 0
        if code == 130:  # what newer versions of typer make of KeyboardInterrupt
            raise KeyboardInterrupt
        sys.exit(code)
    except MambairError as error:
        _fail(str(error), error.exit_code)
    except UsageError as error:
        message = error.format_message()
        if len(message.splitlines()) == 1:
            command = error.ctx.command_path if error.ctx else "mambair"
            _fail(f"{message.rstrip('.')}; see {command} --help", error.exit_code)
        error.show()  # nothing was asked for: the help
        sys.exit(error.exit_code)
    except OSError as error:  # such as a name that is too long, or a full disk behind stdout
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


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this installation can use, why a scan back end is unavailable, and what to install to get faster."""
    from .commands.doctor import report

    facts = report()
    if as_json:
        print_json(facts)
        return
    rows = [("version", name, version) for name, version in facts["versions"].items()]
    rows += [("device", name, text) for name, text in facts["devices"].items()]
    rows += [
        ("back end", name, reason or "available") for name, reason in facts["backends"].items()
    ]
    print_table(("", "", ""), rows)
    print(
        f"to get faster: {facts['faster'] or 'nothing to install, all that is faster here is there'}"
    )
