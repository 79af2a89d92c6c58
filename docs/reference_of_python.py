"""Tells of the Python interface, as it stands in the source: signatures and docstrings.

It reads the source and imports nothing, so that every Python version writes the same page.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_FOLDERS = {"upt_server": "server", "upt_zoo": "zoo"}
# in the order in which a reader meets them; what a module does not list here is not promised
_PUBLIC: dict[str, tuple[str, ...]] = {
    "upt_server.client": ("Client", "AsyncClient"),
    "upt_server.inputs": ("Options",),
    "upt_server.columns": ("ask_columns",),
    "upt_server.results": (
        *("Prediction", "Output", "AdapterIdentity", "Timings", "BatchFacts"),
        "AdapterDescription",
    ),
    "upt_zoo.answers": (
        *("LabelAnswer", "LabelSetAnswer", "ValueAnswer", "SpanAnswer", "EntitiesAnswer"),
        "EmbeddingAnswer",
    ),
    "upt_server.tls": ("ClientTls",),
    "upt_server.admin_client": ("AdminClient",),
    "upt_zoo.catalogue": ("home_store", "embedded_catalogue"),
    "upt_zoo.references": ("Reference",),
    "upt_zoo.local.store": ("Store", "StoredAdapter"),
    "upt_zoo.local.tags": ("move_alias", "roll_back"),
    "upt_zoo.remote.remotes": ("Remotes",),
}
_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python() -> str:
    """Render every public name."""
    return "\n\n".join(_module(name) for name in _PUBLIC)


def _module(name: str) -> str:
    path = Path(_FOLDERS[name.partition(".")[0]], *name.split(".")).with_suffix(".py")
    tree = ast.parse((_ROOT / path).read_text(encoding="utf-8"))
    found = {each.name: each for each in tree.body if isinstance(each, _Documented)}
    missing = set(_PUBLIC[name]) - found.keys()
    if missing:
        raise LookupError(f"{name} has no {', '.join(sorted(missing))}: mend {__file__}")
    parts = [f"## {name}"]
    for public in _PUBLIC[name]:
        parts += _entry(found[public], heading=f"### {public}")
    return "\n\n".join(part for part in parts if part)


def _entry(node: _Documented, *, heading: str) -> Iterator[str]:
    yield heading
    yield f"```text\n{_signature(node)}\n```"
    yield _prose(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        for method in _methods(node):
            yield f"**`{method.name}`**"
            yield f"```text\n{_signature(method)}\n```"
            yield _prose(ast.get_docstring(method) or "")


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        each
        for each in node.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        if not each.name.startswith("_")
    ]


def _signature(node: _Documented) -> str:
    """Write what a caller writes: the fields of a value, the arguments of a call."""
    if not isinstance(node, ast.ClassDef):
        return _call(node)
    inits = [each for each in node.body if getattr(each, "name", "") == "__init__"]
    if inits and isinstance(inits[0], ast.FunctionDef):
        return f"{node.name}{_arguments(inits[0])}"
    fields = [ast.unparse(each) for each in node.body if isinstance(each, ast.AnnAssign)]
    return _wrapped(node.name, [each for each in fields if not each.startswith("_")], "")


def _call(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    marks = [f"@{ast.unparse(each)}\n" for each in node.decorator_list]
    word = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    return "".join(marks) + word + node.name + _arguments(node)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    positional = [*node.args.posonlyargs, *node.args.args]
    if positional and positional[0].arg in ("self", "cls"):
        node.args.args = node.args.args[1:]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return _wrapped("", _split(ast.unparse(node.args)), returned)


def _split(arguments: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _wrapped(name: str, parts: list[str], tail: str) -> str:
    line = f"{name}({', '.join(parts)}){tail}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){tail}"


def _prose(docstring: str) -> str:
    """Turn a docstring into Markdown: code marks, and a line for each error raised."""
    text = inspect.cleandoc(docstring).replace("``", "`")
    head, _, raised = text.partition("\nRaises:\n")
    if not raised:
        return head.strip()
    errors = re.sub(r"\n {8,}", " ", raised)
    lines = [f"- raises `{name}`: {why}" for name, why in re.findall(r" *(\w+): (.+)", errors)]
    return "\n\n".join([head.strip(), "\n".join(lines)])
