"""Write the tables of the documents that the code knows; ``--check`` compares and changes nothing.

A table stands between two lines of its document, ``<!-- generated: NAME -->`` and
``<!-- end -->``; `make docs` renews what is between them.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_command

from reference_of_commands import commands, default
from reference_of_protocol import protocol
from reference_of_python import python
from tables import table
from upt_server import statuses
from upt_server.cli import app
from upt_server.configuration import options_of, variable_of
from upt_server.http_calls import http_code_of, respond_error
from upt_zoo import terminal
from upt_zoo.errors import AdapterNotFound, UptError

ROOT = Path(__file__).parent
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_NONE = "none"


def main() -> int:
    """Write or check, as the command line says; return the exit code."""
    match sys.argv[1:]:
        case []:
            for file, text in stale():
                file.write_text(text, encoding="utf-8")
            return 0
        case ["--check"]:
            names = [file.name for file, _ in stale()]
            sys.stderr.writelines(f"docs/{name}: run `make docs`\n" for name in names)
            return 1 if names else 0
    sys.stderr.write("usage: python docs/generate_docs.py [--check]\n")
    return 2


def stale() -> Iterator[tuple[Path, str]]:
    """Yield each document that is not what the code says, and what it should be."""
    for file in sorted(ROOT.glob("*.md")):
        text = file.read_text(encoding="utf-8")
        fresh = _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)
        if fresh != text:
            yield file, fresh


def errors() -> str:
    """Tell of every error: what it becomes on each edge, its cause and its cure."""
    said: list[tuple[type[BaseException], str, str]] = [
        (kind, _cause(kind), kind.cure) for kind in tree(UptError)
    ]
    said += [(kind, *words) for kind, words in terminal.OTHERS.items()]
    said.append((asyncio.CancelledError, *statuses.CANCELLED))
    return table(
        ("error", "gRPC", "HTTP", "exit code", "cause", "cure"),
        ((f"`{kind.__name__}`", *_codes(kind), cause, cure) for kind, cause, cure in said),
    )


def error_form() -> str:
    """Show one error as HTTP answers it, on a path of ours and on one of the protocol's."""
    error = AdapterNotFound("no adapter sst3; did you mean sst2?")
    answers = (
        f"{path} → {answer.status_code}\n{bytes(answer.body).decode()}"
        for path in ("/v1/predict", "/v2/models/sst3/infer")
        for answer in (respond_error(error, path),)
    )
    return "```text\n" + "\n".join(answers) + "\n```"


def exit_codes() -> str:
    """Tell of every exit code of the commands."""
    by_code: dict[int, list[str]] = {0: [], 2: [], terminal.UNEXPECTED: []}
    for kind, code in terminal.EXIT_CODES.items():
        by_code.setdefault(code, []).append(f"`{kind.__name__}`")
    words = {0: "done", 2: "a wrong command line", terminal.UNEXPECTED: "a fault of upt"}
    return table(
        ("code", "error"),
        ((str(code), words.get(code) or ", ".join(by_code[code])) for code in sorted(by_code)),
    )


def options() -> str:
    """Tell of every option of ``upt-server run``, and of its variable."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return table(
        ("option", "variable", "default", "meaning"),
        (
            (f"`{each.opts[0]}`", f"`{variable_of(each)}`", default(each), each.help or "")
            for each in options_of(group.commands["run"].params)
        ),
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "errors": errors,
    "error-form": error_form,
    "exit-codes": exit_codes,
    "protocol": protocol,
    "python": python,
    "run-options": options,
}


def _codes(kind: type[BaseException]) -> tuple[str, str, str]:
    """Return the status, the HTTP code and the exit code of an error's class."""
    code = statuses.code_of(kind(""))
    if not issubclass(kind, Exception):  # nobody is left to be answered over HTTP
        return f"`{code.name}`", _NONE, _NONE
    return f"`{code.name}`", str(int(http_code_of(code))), str(terminal.exit_code(kind("")))


def _cause(kind: type[UptError]) -> str:
    return (kind.__doc__ or "").partition("\n")[0].replace("``", "`")


def tree(kind: type[UptError]) -> Iterator[type[UptError]]:
    """Walk an error and all below it."""
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


if __name__ == "__main__":
    sys.exit(main())
