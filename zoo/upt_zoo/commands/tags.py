"""The commands that move tags: ``tag``, ``rollback``, ``history``, ``yank`` and ``rm``."""

from typing import TYPE_CHECKING, Annotated

import typer

from upt_zoo.options import Adapter, AsJson, Home, print_json
from upt_zoo.terminal import print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from upt_zoo.local.history import Event
    from upt_zoo.local.listing import Listed


def add_tag_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (tag, rollback, history, yank):
        app.command()(command)
    app.command(name="rm")(remove)


def tag(
    ref: Adapter,
    alias: Annotated[str, typer.Argument(help="A tag that may move, such as stable.")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version; it moves in one step, and every reader sees one or the other."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.tags import move_alias
    from upt_zoo.references import Reference

    reference, store = Reference.parse(ref), home_store(home)
    event = move_alias(store, reference, alias)
    if event is None:
        typer.echo(f"{reference.name}:{alias} points there already", err=True)
    _print_events(reference.name, [event] if event else [], as_json=as_json)


def rollback(ref: Adapter, home: Home = None, as_json: AsJson = False) -> None:
    """Point an alias (name:alias) back to where it pointed before; again goes further back."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local.tags import roll_back
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    _print_events(reference.name, [roll_back(home_store(home), reference)], as_json=as_json)


def history(ref: Adapter, home: Home = None, as_json: AsJson = False) -> None:
    """Say what happened to an adapter, or to one alias (name:alias), and when."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local import tags
    from upt_zoo.references import Reference

    reference, store = Reference.parse(ref), home_store(home)
    events = tags.history(store, reference.name, reference.tag)
    known = store.listing().versions.get(reference.name, {}) if reference.tag is None else {}
    versions = [known[version] for version in store.versions(reference.name) if version in known]
    if as_json:
        print_json(
            {
                "versions": [_version_facts(listed) for listed in versions],
                "events": [event.model_dump(mode="json") for event in events],
            }
        )
        return
    rows = [(each.created or "", "publish", each.name, "", each.version, "") for each in versions]
    rows += [_row(reference.name, event) for event in events]
    print_table(
        ("when", "what", "tag", "from", "to", "why"),
        sorted(rows, key=lambda row: row[0]),
        empty=f"nothing has happened to {reference}",
    )


def yank(
    ref: Adapter,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Never choose a version for a bare name; it can still be named, by its aliases too."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local import tags
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    event = tags.yank(home_store(home), reference, undo=undo)
    if event is None:
        typer.echo(f"{reference} is {'not ' if undo else ''}yanked already", err=True)
    _print_events(reference.name, [event] if event else [], as_json=as_json)


def remove(
    ref: Adapter,
    force_with: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Remove aliases that point there too, and say why."),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Remove a version, or an alias (name:alias); gc frees the disk."""
    from upt_zoo.catalogue import home_store
    from upt_zoo.local import tags
    from upt_zoo.references import Reference

    reference = Reference.parse(ref)
    events = tags.remove(home_store(home), reference, reason=force_with)
    _print_events(reference.name, events, as_json=as_json)


def _print_events(name: str, events: "Sequence[Event]", *, as_json: bool) -> None:
    if as_json:
        print_json([{"name": name, **event.model_dump(mode="json")} for event in events])
        return
    for event in events:
        _, what, tag, before, after, _ = _row(name, event)
        move = f"{before or 'nothing'} -> {after}" if after else before
        typer.echo(f"{what} {tag} {move}")


def _row(name: str, event: "Event") -> tuple[str, str, str, str, str, str]:
    tag = f"{name}:{event.alias}" if event.alias else name
    return (
        event.time,
        event.action,
        tag,
        event.before or "",
        event.after or "",
        event.reason or "",
    )


def _version_facts(listed: "Listed") -> "JsonValue":
    return {
        "version": listed.version,
        "digest": listed.digest,
        "created": listed.created,
        "yanked": listed.yanked,
    }
