"""``upt-server token``: who may call a server that runs with ``--tokens``."""

from pathlib import Path
from typing import Annotated

import typer

from upt_zoo.options import AsJson, print_json
from upt_zoo.terminal import print_table

app = typer.Typer(help="Say who may call.", no_args_is_help=True, rich_markup_mode=None)
Tokens = Annotated[
    Path, typer.Option("--tokens", metavar="FILE", dir_okay=False, help="The file of the tokens.")
]


@app.command()
def create(
    tokens: Tokens,
    name: Annotated[str, typer.Option(help="Whose it is; logs and errors show it.")],
    scope: Annotated[
        list[str], typer.Option(metavar="SCOPE", help="predict, metadata or admin; repeatable.")
    ],
    adapters: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="What it may ask; * stands for any letters.")
    ] = "*",
    requests_per_second: Annotated[
        float | None, typer.Option(help="Calls a second.", show_default="any number")
    ] = None,
    queued_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of text that may wait at once.", show_default="any number"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token, print it this once, and add its hash to the file."""
    from upt_server.access.tokens import Token, add_token

    token, secret = Token.create(
        name=name,
        scopes=tuple(dict.fromkeys(scope)),
        adapters=tuple(adapters.split(",")),
        requests_per_second=requests_per_second,
        queued_tokens=queued_tokens,
    )
    add_token(tokens, token)
    if as_json:
        print_json({"name": token.name, "token": secret})
    else:
        typer.echo(secret)


@app.command(name="ls")
def list_tokens(tokens: Tokens, as_json: AsJson = False) -> None:
    """List the tokens of the file, without what nobody can show: the tokens."""
    from upt_server.access.tokens import TokenFile

    known = TokenFile(tokens).tokens()
    if as_json:
        print_json([token.model_dump(mode="json", exclude={"sha256"}) for token in known])
        return
    print_table(
        ("name", "scopes", "adapters", "calls a second", "queued tokens"),
        (
            (
                token.name,
                ", ".join(token.scopes),
                ", ".join(token.adapters),
                str(token.requests_per_second or "any"),
                str(token.queued_tokens or "any"),
            )
            for token in known
        ),
        empty=f"no tokens in {tokens}; `upt-server token create` makes one",
    )


@app.command()
def revoke(tokens: Tokens, name: Annotated[str, typer.Option(help="The token's name.")]) -> None:
    """Remove a token; a running server refuses it from its next call on."""
    from upt_server.access.tokens import revoke_token

    revoke_token(tokens, name)
