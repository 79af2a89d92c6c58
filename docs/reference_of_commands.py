"""Tells of every command: what it does, its arguments and its options, as its ``--help`` does."""

from collections.abc import Iterable, Iterator

from typer import Typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from tables import table
from upt_server.cli import app as server
from upt_training.cli import app as training
from upt_zoo.cli import app as zoo

_PROGRAMS: dict[str, Typer] = {"upt-zoo": zoo, "upt-server": server, "upt-train": training}
_ELSEWHERE = {"upt-server run": "Its options: [serving](serving.md#run)."}


def commands() -> str:
    """Render all commands of all programs."""
    parts = []
    for name, app in _PROGRAMS.items():
        group = get_command(app)
        parts.append(f"## {name}\n\n{_paragraphs(group.help)}")
        parts += [_command(words, command) for words, command in _walk(name, group)]
    return "\n\n".join(parts)


def default(option: TyperOption) -> str:
    """Say what an option is where nobody gives it."""
    if option.default in (None, "", False):
        words = option.show_default
        return words if isinstance(words, str) else "no" if option.is_flag else "none"
    return f"`{option.default}`"


def _walk(name: str, command: object) -> Iterator[tuple[str, TyperCommand]]:
    if isinstance(command, TyperGroup):
        for word in sorted(command.commands):
            yield from _walk(f"{name} {word}", command.commands[word])
    elif isinstance(command, TyperCommand) and not command.hidden:
        yield name, command


def _command(words: str, command: TyperCommand) -> str:
    context = command.make_context(words, [], resilient_parsing=True)
    parts = [f"### {words}", _paragraphs(command.help)]
    parts.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```")
    shown = [
        (f"`{record[0]}`", _absent(each), each.help or "")
        for each in command.params
        if isinstance(each, TyperArgument | TyperOption)
        and (record := each.get_help_record(context))
        and "--help" not in each.opts
    ]
    if words in _ELSEWHERE:
        parts.append(_ELSEWHERE[words])
    elif shown:
        parts.append(table(("argument or option", "default", "meaning"), _cells(shown)))
    return "\n\n".join(parts)


def _absent(parameter: TyperArgument | TyperOption) -> str:
    if parameter.required:
        return "must be given"
    return default(parameter) if isinstance(parameter, TyperOption) else "none"


def _cells(rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, ...]]:
    for name, absent, help_ in rows:
        words = " ".join(help_.split()).replace("<", "&lt;")
        yield tuple(cell.replace("|", "\\|") for cell in (name, absent, words))


def _paragraphs(text: str | None) -> str:
    """Join the lines of each paragraph of a docstring."""
    return "\n\n".join(" ".join(each.split()) for each in (text or "").strip().split("\n\n"))
