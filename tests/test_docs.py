"""The documents against the code: what they name exists, and what they list is complete."""

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc import StatusCode
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

import build_site
import generate_docs
import upt_zoo.manifest
import upt_zoo.signatures
import upt_zoo.spec
from upt_server.configuration import options_of, variable_of
from upt_server.inputs import Limits
from upt_server.metrics import Metrics
from upt_server.results import BatchFacts
from upt_testing.adapters import BOTTLENECK, LORA, PREFIX, PROMPT, tiny_spec
from upt_testing.documents import FENCE, NAMES, PAGES, PYTHON, ROOT, SHELL, blocks, script
from upt_testing.predictions import make_prediction
from upt_training.recipe import Recipe
from upt_training.sweep import Sweep
from upt_zoo.errors import UptError
from upt_zoo.layout import tensor_shapes
from upt_zoo.spec import Head

LANGUAGES = {SHELL, PYTHON, "text", "yaml", "toml", "json"}
PROGRAMS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "scripts"
]
SPEC_MODELS = [
    kind
    for name, kind in vars(upt_zoo.spec).items()
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__module__ == "upt_zoo.spec"
    if not name.startswith("_")
]


@dataclass(frozen=True)
class Invocation:
    """A command line in a document; one inside a sentence may leave its arguments out."""

    words: tuple[str, ...]
    is_whole: bool

    @property
    def program(self) -> str:
        return Path(self.words[0]).name


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    return FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def invocations(text: str) -> Iterator[Invocation]:
    for _, language, block in FENCE.findall(text):
        if language == SHELL:
            for line in block.replace("\\\n", " ").splitlines():
                if set(line.split()) & {*PROGRAMS, "make"}:
                    yield from split_commands(line, is_whole=True)
    for span in code_spans(text):
        if span.split()[0] in (*PROGRAMS, "make"):
            yield from split_commands(span, is_whole=False)


def split_commands(line: str, *, is_whole: bool) -> Iterator[Invocation]:
    """Split a shell line at pipes and semicolons; prompts and assignments are left out."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if words:
                yield Invocation(tuple(words), is_whole)
            words = []
        elif words or not re.fullmatch(r"[A-Z_]+=.*", word):
            words.append(word)


def program(name: str) -> TyperGroup:
    command = get_command(importlib.import_module(PROGRAMS[name].partition(":")[0]).app)
    assert isinstance(command, TyperGroup)
    return command


def own_options(name: str) -> set[str]:
    """Return what may stand between a program's name and its command."""
    group = program(name)
    return {"--help", *(option for each in group.params for option in each.opts)}


def commands(name: str) -> dict[tuple[str, ...], TyperCommand]:
    """Return every command of a program by its words, those of groups too."""
    found: dict[tuple[str, ...], TyperCommand] = {}
    for word, command in program(name).commands.items():
        parts = command.commands if isinstance(command, TyperGroup) else {None: command}
        for part, each in parts.items():
            assert isinstance(each, TyperCommand)
            found[(word, part) if part else (word,)] = each
    return found


def words_of_command(call: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a command line that name its command."""
    group = program(Path(call[0]).name).commands.get(call[1])
    return call[1:3] if isinstance(group, TyperGroup) else call[1:2]


def subcommand(words: tuple[str, ...]) -> TyperCommand:
    return commands(Path(words[0]).name)[words_of_command(words)]


def options(command: TyperCommand) -> dict[str, object]:
    """Return the default of each option."""
    return {
        name: parameter.default
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }


def table(text: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table behind a heading."""
    assert text.count(f"\n{heading}\n") == 1, heading
    lines = text.partition(f"\n{heading}\n")[2].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def code(cell: str) -> str:
    (only,) = codes(cell)
    return only


def slug(heading: str) -> str:
    """Spell a heading as the anchor that a Markdown page gives it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_resolves(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(read(name))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(target.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_one_that_the_command_takes(name: str) -> None:
    for call in invocations(read(name)):
        if call.program not in PROGRAMS or len(call.words) == 1:
            continue
        if call.words[1] in own_options(call.program):
            continue
        words = words_of_command(call.words)
        assert words in commands(call.program), call
        command = subcommand(call.words)
        if call.is_whole:
            rest = list(call.words[1 + len(words) :])
            command.make_context(words[-1], rest)  # raises a usage error
        named = {word.partition("=")[0] for word in call.words if word.startswith("--")}
        assert named <= {*options(command), "--help"}, call


@pytest.mark.parametrize("name", NAMES)
def test_every_option_in_a_sentence_exists(name: str) -> None:
    known = {
        option
        for each in PROGRAMS
        for command in commands(each).values()
        for option in options(command)
    }
    known |= {option for each in PROGRAMS for option in own_options(each)}
    named = {span.partition(" ")[0] for span in code_spans(read(name)) if span.startswith("--")}
    assert named <= known


def test_every_subcommand_stands_in_some_document() -> None:
    calls = [call for name in NAMES for call in invocations(read(name)) if len(call.words) > 1]
    named = {
        (call.words[0], *words_of_command(call.words)) for call in calls if call.program in PROGRAMS
    }
    there = {(each, *words) for each in PROGRAMS for words in commands(each)}
    assert there <= named


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_exists(name: str) -> None:
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
    for call in invocations(read(name)):
        if call.program == "make":
            assert {word for word in call.words[1:] if "=" not in word} <= set(targets), call


@pytest.mark.parametrize("name", NAMES)
def test_every_environment_variable_is_one_that_upt_reads(name: str) -> None:
    sources = [file for folder in ("zoo", "server", "training") for file in folder_files(folder)]
    known = {found for file in sources for found in re.findall(r"UPT_[A-Z_]+", file.read_text())}
    run = subcommand(("upt-server", "run"))
    known |= set(map(variable_of, options_of(run.params)))
    assert set(re.findall(r"UPT_[A-Z_]+", read(name))) <= known


def folder_files(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


@pytest.mark.parametrize("name", NAMES)
def test_what_python_examples_import_is_there(name: str) -> None:
    code = [block.text for block in blocks(name) if block.language == PYTHON]
    for node in ast.walk(ast.parse("\n".join(code))):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, imported.name) for imported in node.names)


@pytest.mark.parametrize("folder", ["upt_server.", "upt_zoo.", "upt_training."])
def test_every_module_and_name_in_a_sentence_is_there(folder: str) -> None:
    for name in NAMES:
        for span in code_spans(read(name)):
            if re.fullmatch(rf"{re.escape(folder)}[\w.]+", span):
                assert is_there(span), f"{name}: {span}"


def is_there(dotted: str) -> bool:
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, last = dotted.rpartition(".")
        return hasattr(importlib.import_module(module), last)
    return True


def test_the_site_has_every_page_once() -> None:
    def pages(entries: list[dict[str, Any]]) -> Iterator[str]:
        for value in (value for entry in entries for value in entry.values()):
            yield from [value] if isinstance(value, str) else pages(value)

    nav = tomllib.loads(read("zensical.toml"))["project"]["nav"]
    assert sorted(pages(nav)) == sorted(build_site.place_of(ROOT / name) for name in NAMES)


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("README.md", "[a](docs/zoo.md#tags)", "[a](zoo.md#tags)"),
        ("docs/howto/secure.md", "[a](../../README.md)", "[a](../index.md)"),
        ("docs/zoo.md", "[tests/parity](../tests/parity)", "`tests/parity`"),
        ("docs/zoo.md", "[a test](../tests/test_docs.py)", "a test (`tests/test_docs.py`)"),
        (
            "docs/zoo.md",
            "[a](#tags) [b](https://example.com)",
            "[a](#tags) [b](https://example.com)",
        ),
        ("docs/zoo.md", "```text\n[a](../x.md)\n```", "```text\n[a](../x.md)\n```"),
    ],
)
def test_links_of_the_site_lead_to_pages_of_it(source: str, text: str, expected: str) -> None:
    places = {name: build_site.place_of(ROOT / name) for name in NAMES}
    assert build_site.relinked(text, source, places) == expected


def test_a_page_that_fetches_from_elsewhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<a href="https://example.com">a link</a>', encoding="utf-8")
    assert build_site.foreign_parts(tmp_path) == []
    page.write_text('<script src="https://example.com/x.js"></script>', encoding="utf-8")
    assert build_site.foreign_parts(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_says_what_it_is(name: str) -> None:
    for block in blocks(name):
        assert block.language in LANGUAGES, block.place
        assert block.is_code or block.reason is None, f"{block.place}: nobody would run it"


def test_what_pages_take_for_granted_is_made_for_pages_that_are_there() -> None:
    made = {file.stem for file in PAGES.glob("*.sh")} - {"prelude"}
    assert made <= {Path(name).stem for name in NAMES}


def test_a_page_is_run_on_ports_of_its_own_and_waits_for_its_server() -> None:
    text = script("docs/quickstart.md")
    assert not re.search(r"\b(8000|8001)\b", text)
    assert not re.search(r"^upt-server run.*&", text, re.MULTILINE)
    assert "pip install" not in text


def test_the_generated_tables_are_what_the_code_says() -> None:
    assert [file.name for file, _ in generate_docs.stale()] == [], "run `make docs`"


def test_every_error_says_its_cause_and_its_cure() -> None:
    for kind in generate_docs.tree(UptError):
        assert kind.__doc__
        assert "cure" in vars(kind), kind


@pytest.mark.parametrize("status", [each for each in StatusCode if each is not StatusCode.OK])
def test_every_status_has_a_cause_and_a_cure(status: StatusCode) -> None:
    rows = [line for line in read("docs/errors.md").splitlines() if f"`{status.name}`" in line]
    tables = [row.strip("| ").split(" | ") for row in rows if row.startswith("|")]
    assert tables
    assert all(cause and cure for *_, cause, cure in tables)


def test_the_commands_of_the_zoo_are_listed_with_all_their_options() -> None:
    rows = table(read("docs/zoo.md"), "## Commands")
    documented = {code(row[0]): set(codes(row[2])) for row in rows}
    assert documented == {
        f"upt-zoo {name}": set(options(subcommand(("upt-zoo", name))))
        for name in program("upt-zoo").commands
    }


def test_the_recipes_keys_are_listed_with_their_defaults() -> None:
    rows = {code(row[0]): row[1] for row in table(read("docs/training.md"), "## Recipes")}
    assert rows.keys() == Recipe.model_fields.keys()
    for name, field in Recipe.model_fields.items():
        if isinstance(field.default, int | float):  # others are given in words
            assert yaml.safe_load(rows[name]) == field.default, name


def test_the_sweeps_keys_are_listed_and_the_shown_one_ships() -> None:
    text = read("docs/training.md")
    rows = [code(row[0]) for row in table(text, "## Sweeps")]
    assert rows == list(Sweep.model_fields)
    shown = [
        yaml.safe_load(each.text) for each in blocks("docs/training.md") if each.language == "yaml"
    ]
    assert yaml.safe_load(read("training/sweeps/glue.yaml")) in shown


def test_the_documented_metrics_are_those_of_the_server() -> None:
    metrics = Metrics()
    metrics.server_built(version="1", backbone_digest="d", precision="exact", runner="r")
    metrics.queue_built(lambda: 0)
    metrics.memory_built(lambda: 0)
    metrics.limits_set(batch_tokens=1, queue_tokens=1, adapter_bytes=1)
    metrics.call_answered(make_prediction("sst2"))
    metrics.batch_computed(BatchFacts(rows=1, tokens=1, distinct_adapters=1, forward_ms=1))
    metrics.adapter_loaded(1, 1)
    metrics.adapter_evicted(0)
    metrics.adapter_unloaded(0)
    metrics.call_failed(["sst2"], StatusCode.UNAVAILABLE)
    registered = {
        f"{family.name}_total" if family.type == "counter" else family.name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
            family.documentation,
        )
        for family in text_string_to_metric_families(metrics.text().decode())
        if not family.name.endswith("_created")
    }
    rows = table(read("docs/serving.md"), "## Metrics")
    documented = {
        code(name): (kind, set(codes(labels)), meaning) for name, kind, labels, meaning in rows
    }
    assert documented == registered


def test_the_documented_limits_are_those_of_a_call() -> None:
    rows = table(read("docs/serving.md"), "### Limits of a call")
    limits = Limits()
    assert {code(name): float(value) for name, value, _ in rows} == {
        field.name: getattr(limits, field.name) for field in fields(limits)
    }


@pytest.mark.parametrize("model", SPEC_MODELS)
def test_every_field_of_the_spec_is_explained(model: type[BaseModel]) -> None:
    rows = table(read("docs/format.md"), f"**{model.__name__}**")
    assert {code(name) for name, _ in rows} == model.model_fields.keys()


def test_the_documented_tensors_are_those_of_the_layout() -> None:
    head = Head(kind="classification", outputs=2, labels=("no", "yes"), layers=2)
    spec = tiny_spec(lora=LORA, prefix=PREFIX, bottleneck=BOTTLENECK, prompt=PROMPT, head=head)
    expected = {
        re.sub(r"^lora\.[a-z_]+\.", "lora.t.", name): len(shape)
        for name, shape in tensor_shapes(spec).items()
    }
    rows = table(read("docs/format.md"), "## The tensors")
    assert {code(name): len(shape.split(",")) for name, shape, _ in rows} == expected


def test_the_documented_media_types_are_those_of_the_manifest() -> None:
    documented = set(re.findall(r"application/vnd\.[\w.+-]+", read("docs/format.md")))
    expected = {
        value
        for module in (upt_zoo.manifest, upt_zoo.signatures)
        for value in vars(module).values()
        if isinstance(value, str) and value.startswith("application/vnd.")
    }
    assert documented == expected
