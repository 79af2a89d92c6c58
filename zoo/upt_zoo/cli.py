"""The command ``upt-zoo``: data on stdout, messages on stderr, one line for an error.

Exit codes are those of ``upt_zoo.terminal``. Only this module reads the environment
(``UPT_ZOO_HOME``). Everything beyond typer is imported inside the commands, which keeps ``--help``
fast.
"""

import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upt_zoo.commands.finding import add_finding_commands
from upt_zoo.commands.interop import add_interop_commands
from upt_zoo.commands.remotes import add_remote_commands, read_remotes, store_of
from upt_zoo.commands.tags import add_tag_commands
from upt_zoo.commands.upkeep import add_upkeep_commands
from upt_zoo.errors import Corrupt
from upt_zoo.options import Adapter, AsJson, Home, Offline, print_json
from upt_zoo.terminal import EXIT_CODES, format_size, print_table, printable, run_command

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.local.listing import Listed, Listing
    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.references import Reference
    from upt_zoo.spec import AdapterSpec, Head

_GC_THRESHOLD = 200_000  # looking for cycles among 10,000 adapters takes a fifth of `ls`
app = typer.Typer(
    help="Find, fetch, check and explain adapters. An adapter is named [remote/]name[:version].",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would read the brackets of the grammar as markup
)
add_remote_commands(app)
add_tag_commands(app)
add_interop_commands(app)
add_finding_commands(app)
add_upkeep_commands(app)


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(_GC_THRESHOLD)
    run_command(app, "upt-zoo")


@app.command()
def pull(
    ref: Adapter, home: Home = None, offline: Offline = False, as_json: AsJson = False
) -> None:
    """Fetch an adapter into the store.

    It comes from the remote in front of its name (oci://host/prefix, file:///directory), else from
    the first of your remotes that has it; the last one is the embedded catalogue. Every byte is
    checked; pulling again mends what is damaged.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import Reference

    reference, store = Reference.parse(ref), home_store(home)
    stored = read_remotes(offline=offline).pull(reference, store)
    typer.echo(f"pulled {stored.reference} into {store.root}", err=True)
    if as_json:
        print_json(_summary(stored))
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
    listing = store.listing()
    if not listing.versions and not as_json:
        typer.echo(f"no adapters in {store.root}", err=True)
        return
    facts = [_listed_facts(store, listing, listed) for listed in listing.all()]
    if as_json:
        print_json([*facts])
    else:
        header = ("adapter", "method", "metrics", "size", "digest", "tags")
        print_table(header, map(_list_row, facts))
    if any("damage" in each for each in facts):
        raise typer.Exit(EXIT_CODES[Corrupt])


@app.command()
def show(
    context: typer.Context,
    ref: Adapter,
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Explain an adapter.

    Its task, its parts, where it comes from, how good it is, and its card.
    """
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    store = store_of(context, reference, home, offline=offline)
    stored = store.resolve(reference)
    if as_json:
        print_json(_description(stored))
    else:
        _print_description(stored, store.card(stored))


@app.command()
def verify(
    context: typer.Context,
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="All, if left out.")] = None,
    home: Home = None,
    offline: Offline = False,
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
        store = store_of(context, references[0], home, offline=offline)
    damages = {
        str(reference).partition("@")[0]: _damage(store, reference) for reference in references
    }
    if as_json:
        print_json([{"reference": name, "damage": text} for name, text in damages.items()])
    else:
        print_table(("adapter", "bytes"), ((n, text or "ok") for n, text in damages.items()))
    if any(damages.values()):
        raise typer.Exit(EXIT_CODES[Corrupt])


def _listed_facts(store: "Store", listing: "Listing", listed: "Listed") -> "dict[str, JsonValue]":
    """Say what a list shows of a version, without opening its blobs where the index knows.

    Of a damaged version it is what is wrong.
    """
    facts: dict[str, JsonValue] = {"name": listed.name, "version": listed.version}
    try:
        summary = store.summarise(listed)
    except Corrupt as error:
        return facts | {"damage": str(error)}
    return facts | {
        "digest": listed.digest,
        "method": summary.method,
        "metrics": dict(summary.metrics),
        "size_bytes": summary.size_bytes,
        "created": listed.created,
        "yanked": listed.yanked,
        "aliases": list(listing.aliases_of(listed)),
    }


def _list_row(facts: "Mapping[str, Any]") -> tuple[str, ...]:
    reference = f"{facts['name']}:{facts['version']}"
    if "damage" in facts:
        return reference, "damaged", facts["damage"], "", "", ""
    return (
        reference,
        facts["method"],
        _metrics(facts["metrics"]),
        format_size(facts["size_bytes"]),
        facts["digest"].removeprefix("sha256:")[:12],
        ", ".join([*facts["aliases"], *(["yanked"] if facts["yanked"] else [])]),
    )


def _damage(store: "Store", reference: "Reference") -> str | None:
    try:
        stored = store.resolve(reference)
        store.verify(stored)
        store.verify_listing(stored)
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
        ("metrics", _metrics(lineage.metrics)),
        ("data", f"{lineage.data} ({lineage.data_licence})"),
        ("overlap", lineage.backbone_overlap or "none known with the backbone's own data"),
        ("licence", f"{lineage.licence}; commercial use of the data: {lineage.commercial_use}"),
        ("size", format_size(stored.size_bytes)),
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


def _metrics(metrics: "Mapping[str, float]") -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in sorted(metrics.items()))


if __name__ == "__main__":
    main()
