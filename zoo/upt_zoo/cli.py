"""The command ``upt-zoo``: data on stdout, messages on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``. Only this module reads the environment
(``UPT_ZOO_HOME``). Everything beyond typer is imported inside the commands, which keeps ``--help``
fast.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.errors import Corrupt
from upt_zoo.terminal import EXIT_CODES, print_table, printable, run_command

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.references import Reference
    from upt_zoo.spec import AdapterSpec, Head
    from upt_zoo.store import Store, StoredAdapter

app = typer.Typer(
    help="Find, fetch, check and explain adapters. An adapter is named [remote/]name[:version].",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would read the brackets of the grammar as markup
)
Home = Annotated[
    Path | None,
    typer.Option(
        envvar="UPT_ZOO_HOME",
        help="Directory of the store.",
        show_default="the user's data directory",
        file_okay=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Adapter = Annotated[str, typer.Argument(metavar="REF", help="[remote/]name[:version][@digest]")]


def main() -> None:
    """Run the command line and exit with its code."""
    run_command(app, "upt-zoo")


@app.command()
def pull(ref: Adapter, home: Home = None, as_json: AsJson = False) -> None:
    """Fetch an adapter into the store.

    It comes from the remote in front of its name (file:///directory), else from the embedded
    catalogue. Every byte is checked; pulling again mends what is damaged.
    """
    from upt_zoo.catalogue import EMBEDDED, home_store, remote_store
    from upt_zoo.references import Reference

    reference, store = Reference.parse(ref), home_store(home)
    stored = store.copy_from(remote_store(reference.remote or EMBEDDED), reference)
    typer.echo(f"pulled {stored.reference} into {store.root}", err=True)
    if as_json:
        _print_json(_summary(stored))
    else:
        typer.echo(f"{stored.reference}@{stored.digest}")


@app.command(name="ls")
def list_adapters(
    home: Home = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="List the embedded catalogue instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the adapters in the store; the exit code is 65 if one is damaged."""
    from upt_zoo.catalogue import embedded_catalogue, home_store

    store = embedded_catalogue() if catalogue else home_store(home)
    references = store.list()
    if not references and not as_json:
        typer.echo(f"no adapters in {store.root}", err=True)
        return
    listed = [_resolve_or_damage(store, reference) for reference in references]
    if as_json:
        _print_json([each if isinstance(each, dict) else _summary(each) for each in listed])
    else:
        print_table(("adapter", "method", "metrics", "size", "digest"), map(_list_row, listed))
    if any(isinstance(each, dict) for each in listed):
        raise typer.Exit(EXIT_CODES[Corrupt])


@app.command()
def show(ref: Adapter, home: Home = None, as_json: AsJson = False) -> None:
    """Explain an adapter.

    Its task, its parts, where it comes from, how good it is, and its card.
    """
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    store = _store_of(reference, home)
    stored = store.resolve(reference)
    if as_json:
        _print_json(_description(stored))
    else:
        _print_description(stored, store.card(stored))


@app.command()
def verify(
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="All, if left out.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of the adapters.

    Every digest is computed again; the exit code is 65 if an adapter is damaged.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import Reference

    if ref is None:
        store = home_store(home)
        references: Sequence[Reference] = store.list()
    else:
        references = [Reference.parse(ref)]
        store = _store_of(references[0], home)
    damages = {
        str(reference).partition("@")[0]: _damage(store, reference) for reference in references
    }
    if as_json:
        _print_json([{"reference": name, "damage": text} for name, text in damages.items()])
    else:
        print_table(("adapter", "bytes"), ((n, text or "ok") for n, text in damages.items()))
    if any(damages.values()):
        raise typer.Exit(EXIT_CODES[Corrupt])


def _store_of(reference: "Reference", home: Path | None) -> "Store":
    from upt_zoo.catalogue import home_store, remote_store

    return remote_store(reference.remote) if reference.remote else home_store(home)


def _resolve_or_damage(
    store: "Store", reference: "Reference"
) -> "StoredAdapter | dict[str, JsonValue]":
    """Find an adapter of the list; of a damaged one, say what is wrong."""
    try:
        return store.resolve(reference)
    except Corrupt as error:
        return {"name": reference.name, "version": reference.tag, "damage": str(error)}


def _list_row(listed: "StoredAdapter | dict[str, JsonValue]") -> tuple[str, ...]:
    if isinstance(listed, dict):
        return f"{listed['name']}:{listed['version']}", "damaged", str(listed["damage"]), "", ""
    return (
        listed.reference,
        listed.spec.method,
        _metrics(listed.spec),
        _size(listed.size_bytes),
        listed.digest.removeprefix("sha256:")[:12],
    )


def _damage(store: "Store", reference: "Reference") -> str | None:
    try:
        store.verify(store.resolve(reference))
    except Corrupt as error:
        return str(error)
    return None


def _summary(stored: "StoredAdapter") -> "dict[str, JsonValue]":
    spec = stored.spec
    return {
        "name": stored.name,
        "version": stored.version,
        "digest": stored.digest,
        "method": spec.method,
        "metrics": dict(spec.lineage.metrics),
        "size_bytes": stored.size_bytes,
    }


def _description(stored: "StoredAdapter") -> "dict[str, JsonValue]":
    values: dict[str, JsonValue] = stored.spec.model_dump(mode="json")
    lineage = stored.spec.lineage
    return {
        **_summary(stored),
        "backbone": values["backbone"],
        "task": values["task"],
        "head": values["head"],
        "components": {name: values[name] for name in ("lora", "prefix", "bottleneck", "prompt")},
        "parameters": {
            "trained": lineage.trained_parameters,
            "served": lineage.served_parameters,
            "head": lineage.head_parameters,
        },
        "licence": lineage.licence,
        "lineage": values["lineage"],
    }


def _print_json(value: "JsonValue") -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_description(stored: "StoredAdapter", card: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.rule import Rule

    print_table((stored.reference, ""), _facts(stored))
    Console().print(Rule(), Markdown(printable(card)))


def _facts(stored: "StoredAdapter") -> list[tuple[str, str]]:
    spec, lineage = stored.spec, stored.spec.lineage
    return [
        ("task", f"{spec.task.name}: {spec.task.description or _answer(spec.head)}"),
        ("reads", f"{' + '.join(spec.task.fields)}, at most {spec.task.max_tokens} tokens"),
        ("answers", _answer(spec.head)),
        ("backbone", f"{spec.backbone.hub_id}, {spec.backbone.layers} layers"),
        ("", spec.backbone.digest),
        ("method", spec.method),
        *_components(spec),
        (
            "parameters",
            f"{lineage.trained_parameters:,} trained, {lineage.served_parameters:,} served, "
            f"and {lineage.head_parameters:,} in the head",
        ),
        ("metrics", _metrics(spec)),
        ("data", f"{lineage.data} ({lineage.data_licence})"),
        ("overlap", lineage.backbone_overlap or "none known with the backbone's own data"),
        ("licence", f"{lineage.licence}; commercial use of the data: {lineage.commercial_use}"),
        ("size", _size(stored.size_bytes)),
        ("digest", stored.digest),
    ]


def _components(spec: "AdapterSpec") -> list[tuple[str, str]]:
    facts = []
    if lora := spec.lora:
        targets = ", ".join(lora.targets)
        facts.append(("  LoRA", f"rank {lora.rank} on {targets}{_gated(is_gated=lora.gated)}"))
    if prefix := spec.prefix:
        text = f"{prefix.length} keys and values a layer{_gated(is_gated=prefix.gated)}"
        facts.append(("  prefix", text))
    if bottleneck := spec.bottleneck:
        text = f"{spec.backbone.hidden} to {bottleneck.size} and back, {bottleneck.activation}"
        facts.append(("  bottleneck", text + _gated(is_gated=bottleneck.gated)))
    if prompt := spec.prompt:
        place = prompt.position.replace("_cls", " [CLS]")
        facts.append(("  prompt", f"{prompt.length} vectors {place}"))
    return facts


def _gated(*, is_gated: bool) -> str:
    return ", gated" if is_gated else ""


def _answer(head: "Head") -> str:
    if head.kind == "span":
        return "a span of the second field"
    if head.kind == "regression":
        return "a number"
    some = "one of" if head.kind == "classification" else "any of"
    return f"{some} {', '.join(head.labels or ())}"


def _metrics(spec: "AdapterSpec") -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in sorted(spec.lineage.metrics.items()))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


if __name__ == "__main__":
    main()
