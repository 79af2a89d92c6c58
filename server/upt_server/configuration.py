"""Where the options of ``upt-server run`` come from that are not on the command line.

The command line goes before a variable of the environment, that before the file, that before the
default. Typer does this by itself, from a prefix of variables and a map of defaults; here the map
is read from a file of TOML, whose keys are the options without their dashes.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import typer
from typer.core import TyperGroup, TyperOption

from upt_zoo.close_names import did_you_mean
from upt_zoo.errors import InvalidInput

VARIABLES = "UPT_SERVER"  # the prefix
Value = str | bool | list[str]


def use_file(context: typer.Context, file: Path | None) -> Path | None:
    """Take a file's values for defaults, before any other option is looked at.

    Raises:
        InvalidInput: the file cannot be read, or says what no option of ``run`` takes.
    """
    if file is not None and not context.resilient_parsing:
        context.default_map = dict(read_file(file, _options_of_run(context)))
    return file


def read_file(file: Path, options: Iterable[TyperOption]) -> Mapping[str, Value]:
    """Return a file's values by the names that typer gives the options.

    Raises:
        InvalidInput: the file cannot be read, or says what no option takes.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"cannot read {file} as TOML: {error}") from error
    by_key = {key_of(option): option for option in options if key_of(option) != "config"}
    for key in found.keys() - by_key.keys():
        raise InvalidInput(f"{file}: no option {key}{did_you_mean(key, by_key)}")
    return {
        by_key[key].name or key: _value(f"{file}: {key}", value, by_key[key])
        for key, value in found.items()
    }


def unknown_variables(environ: Iterable[str], options: Iterable[TyperOption]) -> list[str]:
    """Say of each variable that looks like an option's and is none what may be meant."""
    known = {variable_of(option): option for option in options}
    return [
        f"{name} names no option{did_you_mean(name, known)}"
        for name in sorted(environ)
        if name.startswith(f"{VARIABLES}_") and name not in known
    ]


def options_of(parameters: Iterable[object]) -> list[TyperOption]:
    """Return the options among a command's parameters."""
    return [each for each in parameters if isinstance(each, TyperOption)]


def key_of(option: TyperOption) -> str:
    """Return an option's key in the file."""
    return option.opts[0].removeprefix("--")


def variable_of(option: TyperOption) -> str:
    """Return an option's variable of the environment."""
    return str(option.envvar or f"{VARIABLES}_{option.name}".upper())


def _options_of_run(context: typer.Context) -> list[TyperOption]:
    """Return what the file may say; another command takes from it what it shares with ``run``."""
    group = context.find_root().command
    command = group.commands["run"] if isinstance(group, TyperGroup) else context.command
    return options_of(command.params)


def _value(where: str, value: object, option: TyperOption) -> Value:
    """Check a value's kind; typer reads strings as it reads the command line."""
    if option.is_flag:
        if isinstance(value, bool):
            return value
        raise InvalidInput(f"{where}: expected true or false, got {value!r}")
    if option.multiple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
        raise InvalidInput(f"{where}: expected a list of strings, got {value!r}")
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise InvalidInput(f"{where}: expected a string or a number, got {value!r}")
