"""The commands that sign and check: ``sign`` and ``verify``."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.commands.remotes import local_reference, store_of
from upt_zoo.errors import Corrupt
from upt_zoo.options import Adapter, AsJson, Home, Offline, nothing_in, print_json
from upt_zoo.terminal import EXIT_CODES, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from upt_zoo.keys import PublicKey
    from upt_zoo.local.store import Store
    from upt_zoo.references import Reference


def add_signing_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (sign, verify):
        app.command()(command)


def sign(
    ref: Adapter,
    key: Annotated[Path, typer.Option(help="PEM file of a private key on P-256.", dir_okay=False)],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Sign a version of the store; push, pull and bundle take the signature along.

    Every byte is checked first. The adapter and its digest stay as they are.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.keys import PrivateKey
    from upt_zoo.references import Reference

    reference, store = local_reference(Reference.parse(ref)), home_store(home)
    stored = store.resolve(reference)
    store.verify(stored)
    signer = PrivateKey.read(key, _ask_password)
    store.add_signatures(stored, [signer.sign(stored.name, stored.digest)])
    typer.echo(f"signed {stored.reference} with {signer.id}", err=True)
    if as_json:
        print_json({"reference": stored.reference, "digest": stored.digest, "key": signer.id})
    else:
        typer.echo(f"{stored.reference}@{stored.digest}")


def verify(
    context: typer.Context,
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="All, if left out.")] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            help="PEM file of a public key; one of those given must have signed.", dir_okay=False
        ),
    ] = None,
    home: Home = None,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of the adapters, and with a key their signatures.

    Every digest is computed again; the exit code is 65 if an adapter is damaged, or not signed by
    a key that was given.
    """
    from upt_zoo.catalogue import home_store
    from upt_zoo.references import Reference

    if ref is None:
        store = home_store(home)
        references: Sequence[Reference] = store.list()
    else:
        references = [Reference.parse(ref)]
        store = store_of(context, references[0], home, offline=offline)
    store.index.check_layout()
    keys = _read_keys(key or ())
    verdicts = [_judge(store, reference, keys) for reference in references]
    if as_json:
        print_json([verdict.to_json() for verdict in verdicts])
    else:
        rows = [(each.reference, each.damage or "ok", each.signer or "") for each in verdicts]
        header = ("adapter", "bytes", "signed by")
        shown = len(header) if keys else len(header) - 1
        print_table(header[:shown], (row[:shown] for row in rows), empty=nothing_in(store.root))
    if any(verdict.damage for verdict in verdicts):
        raise typer.Exit(EXIT_CODES[Corrupt])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """What is wrong with an adapter, and the key that has signed it, if keys were given."""

    reference: str
    damage: str | None = None
    signer: str | None = None

    def to_json(self) -> "JsonValue":
        return {"reference": self.reference, "damage": self.damage, "signer": self.signer}


def _judge(store: "Store", reference: "Reference", keys: "Sequence[PublicKey]") -> _Verdict:
    name = str(reference).partition("@")[0]
    try:
        stored = store.resolve(reference)
        store.verify(stored)
        store.verify_listing(stored)
        if not keys:
            return _Verdict(reference=name)
        from upt_zoo.keys import signer_of

        signatures = store.read_signatures(stored.name, stored.digest)
        signer = signer_of(stored.reference, stored.digest, signatures, keys)
    except Corrupt as error:
        return _Verdict(reference=name, damage=str(error))
    return _Verdict(reference=name, signer=signer.id)


def _read_keys(paths: "Sequence[Path]") -> "Sequence[PublicKey]":
    if not paths:
        return ()
    from upt_zoo.keys import PublicKey

    return [PublicKey.read(path) for path in paths]


def _ask_password() -> str:
    return str(typer.prompt("Password of the key", hide_input=True, err=True))
