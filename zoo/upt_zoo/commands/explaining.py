"""The command ``show``: what is known of an adapter, for people and for programs."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from upt_zoo.commands.remotes import read_remotes, store_of
from upt_zoo.description import describe
from upt_zoo.options import Adapter, AsJson, Home, Offline, print_json
from upt_zoo.terminal import format_metrics, format_size, print_table, printable

if TYPE_CHECKING:
    from pydantic import JsonValue

    from upt_zoo.local.store import Store, StoredAdapter
    from upt_zoo.remote.remotes import Remotes
    from upt_zoo.spec import AdapterSpec, Head


def add_explaining_commands(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(show)


def show(
    context: typer.Context,
    ref: Adapter,
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Explain an adapter.

    Its task, its parts, where it comes from, how good it is, its tags, who signed it, and its card.
    """
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    store = store_of(context, reference, home, offline=offline)
    stored = store.resolve(reference)
    standing = _standing(store, stored, read_remotes(offline=offline))
    if as_json:
        print_json(_description(stored, standing))
    else:
        _print_description(stored, standing, store.card(stored))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signer:
    """Who has signed: a key that remotes.toml names, by its file, or what the signature says."""

    key: str | None
    trusted_as: str | None = None

    def __str__(self) -> str:
        if self.trusted_as is not None:
            return f"by {self.key} ({self.trusted_as})"
        return f"not checked: it says by {self.key or 'nobody'}, which remotes.toml does not name"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """What a store says of a version beside what the version says itself."""

    aliases: tuple[str, ...]
    yanked: str | None
    signers: tuple[_Signer, ...]


def _standing(store: "Store", stored: "StoredAdapter", remotes: "Remotes") -> _Standing:
    from upt_zoo.signatures import of_digest

    listing = store.listing()
    listed = listing.versions[stored.name][stored.version]
    signatures = of_digest(listed.signatures, stored.digest)
    signers: list[_Signer] = []
    if signatures:
        keys = remotes.public_keys()
        for signature in signatures:
            key = next((each for each in keys if each.has_signed(signature)), None)
            signers.append(
                _Signer(key=key.id, trusted_as=key.label) if key else _Signer(key=signature.key_id)
            )
    return _Standing(
        aliases=listing.aliases_of(listed), yanked=listed.yanked, signers=tuple(signers)
    )


def _description(stored: "StoredAdapter", standing: _Standing) -> "dict[str, JsonValue]":
    return {
        **describe(stored),
        "aliases": list(standing.aliases),
        "yanked": standing.yanked,
        "signers": [asdict(each) for each in standing.signers],
    }


def _print_description(stored: "StoredAdapter", standing: _Standing, card: str) -> None:
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.rule import Rule

    print_table((stored.reference, ""), _facts(stored, standing))
    Console().print(Rule(), Markdown(printable(card)))


def _facts(stored: "StoredAdapter", standing: _Standing) -> list[tuple[str, str]]:
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
        ("metrics", format_metrics(lineage.metrics)),
        ("data", f"{lineage.data} ({lineage.data_licence})"),
        ("overlap", lineage.backbone_overlap or "none known with the backbone's own data"),
        ("licence", f"{lineage.licence}; commercial use of the data: {lineage.commercial_use}"),
        ("size", format_size(stored.size_bytes)),
        ("digest", stored.digest),
        ("aliases", ", ".join(standing.aliases) or "none"),
        *(
            [("yanked", f"{standing.yanked}; a bare name never means it")]
            if standing.yanked
            else []
        ),
        *(("signed", str(signer)) for signer in standing.signers or ("by nobody",)),
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
    if head.kind == "embedding":
        length = "of length 1" if head.normalised else "of any length"
        return f"an embedding: {head.outputs} numbers {length}, {head.pooling} pooling"
    if head.kind == "token_classification":
        from upt_zoo.entities import entity_labels

        return f"entities: {', '.join(entity_labels(head.labels or ()))}"
    some = "one of" if head.kind == "classification" else "any of"
    return f"{some} {', '.join(head.labels or ())}"
