"""Presets: `mambair.toml` holds defaults of options, which the command line overrides.

It lies in the working directory or in the user's configuration directory; the former counts first.
A table is a command, a key is an option without its dashes:

    [upscale]
    scale = 2
    keep-times = true
"""

import sys
from pathlib import Path
from typing import Any

import platformdirs
import typer

from ..errors import CallError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "mambair.toml"


def preset_files() -> list[Path]:
    """Where presets may lie, the weaker first."""
    user = platformdirs.user_config_path("mambair", appauthor=False)
    return [user / NAME, Path(NAME)]


def read_presets() -> list[tuple[Path, dict[str, Any]]]:
    """The files that exist and their tables, the weaker first.

    Raises CallError where a file cannot be read or is not TOML.
    """
    found = []
    for path in preset_files():
        try:
            found.append((path, tomllib.loads(path.read_text("utf-8"))))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CallError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CallError(f"{path}: is not valid TOML: {error}") from None
    return found


def apply_presets(context: typer.Context) -> None:
    """Make presets the defaults of the commands below a context.

    Raises CallError where a file names no command or option; names the file and the key. A value
    that does not fit is refused as on the command line.
    """
    for path, tables in read_presets():
        for key, value in _defaults(context, tables, str(path)).items():
            context.default_map = context.default_map or {}
            context.default_map.setdefault(key, {}).update(value)


def is_preset(context: Any, param: Any) -> bool:
    """Whether presets gave an option its value, in the context of its command."""
    source = context.get_parameter_source(param.name)
    return source is not None and source.name == "DEFAULT_MAP"


def _defaults(context: Any, tables: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """The tables of a file by command, with the options by their names in Python."""
    commands = context.command.commands
    defaults = {}
    for name, table in tables.items():
        if name not in commands or not isinstance(table, dict):
            hint = did_you_mean(name, commands, f"there are {', '.join(commands)}")
            raise CallError(f"{where}: {name!r} is no command; {hint}")
        found = commands[name]
        below = type(context)(found, info_name=name, parent=context, **found.context_settings)
        defaults[name] = _options(below, table, f"{where}, [{name}]")
    return defaults


def _options(context: Any, table: dict[str, Any], where: str) -> dict[str, Any]:
    params = context.command.get_params(context)
    known = {
        text.removeprefix("--"): param
        for param in params
        for text in param.opts
        if text.startswith("--") and text not in ("--help", "--verbose")
    }
    values = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            hint = did_you_mean(name, known, f"see {context.command_path} --help")
            raise CallError(f"{where}: {key!r} is no option; {hint}")
        param = known[name]
        if getattr(param, "is_flag", False) and not isinstance(value, bool):
            raise CallError(f"{where}: {key} must be true or false, not {value!r}")
        values[param.name] = value if isinstance(value, (bool, list)) else str(value)
    return values
