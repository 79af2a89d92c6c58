"""What the commands of ``upt-server`` share: how a server starts, how to reach it, who asks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from upt_server.configuration import use_file
from upt_server.precision import Precision, RunnerChoice
from upt_zoo.errors import InvalidInput, Unavailable
from upt_zoo.options import complete_adapter

if TYPE_CHECKING:
    from upt_server.tls import ClientTls, ServerTls

Connection = TypeVar("Connection")
Adapter = Annotated[
    str,
    typer.Argument(metavar="REF", help="name[:version][@digest]", autocompletion=complete_adapter),
]
Host = Annotated[str, typer.Option(help="Address to listen on, for both ports.")]
GrpcPort = Annotated[int, typer.Option(min=0, max=65535, help="For callers; 0 takes a free one.")]
HttpPort = Annotated[
    int,
    typer.Option(
        min=0,
        max=65535,
        help="For callers in JSON and for operators' tools; 0 takes a free one.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        is_eager=True,
        callback=use_file,
        help="File of options, TOML; the command line and variables override it.",
    ),
]
WantedBackbone = Annotated[
    str | None,
    typer.Option(
        help="Hub id, or directory with config.json, model.safetensors and tokenizer.json.",
        show_default="the embedded one",
    ),
]
WantedPrecision = Annotated[
    Precision, typer.Option(help="exact: fp32. fast: int8 or bf16, whichever is faster.")
]
WantedRunner = Annotated[
    RunnerChoice, typer.Option(help="What computes; auto measures and takes the fastest.")
]
Device = Annotated[str, typer.Option(help="cpu, or cuda with the torch runners.")]
TlsCert = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Certificate of both ports, PEM.")
]
TlsKey = Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Callers must show a certificate of this authority (mTLS)."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen beyond this machine without TLS.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads that compute.", show_default="torch's own choice"),
]
Target = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="The server to ask.")]
AdminTarget = Annotated[
    str, typer.Option("--server", metavar="HOST:PORT", help="The server's port for operators.")
]
TrustedCa = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", dir_okay=False, help="Speak TLS and trust this authority."
    ),
]
OwnCertificate = Annotated[
    Path | None, typer.Option("--cert", metavar="FILE", dir_okay=False, help="Who you are (mTLS).")
]
OwnKey = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", dir_okay=False, help="The key of --cert.")
]
# a token on the command line could be read by every user of the machine
OwnToken = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="UPT_TOKEN_FILE",
        dir_okay=False,
        help="The file that holds your token.",
    ),
]


def client_tls(ca: Path | None, cert: Path | None, key: Path | None) -> "ClientTls | None":
    """Speak TLS if any file says so."""
    from upt_server.tls import ClientTls

    return ClientTls(ca=ca, certificate=cert, key=key) if ca or cert or key else None


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> "ServerTls | None":
    """Speak TLS if any file says so.

    Raises:
        InvalidInput: of certificate and key one is missing.
    """
    from upt_server.tls import ServerTls

    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise InvalidInput("TLS needs both --tls-cert and --tls-key")
    return ServerTls(certificate=cert, key=key, client_ca=client_ca)


def read_token(file: Path | None) -> str | None:
    """Read who calls; None where no file is named.

    Raises:
        InvalidInput: the file cannot be read or holds no token.
    """
    if file is None:
        return None
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read a token from {file}") from error
    if not token.isprintable() or not token or " " in token:
        raise InvalidInput(f"{file}: expected one token, as `upt-server token create` prints it")
    return token


@contextmanager
def connected(
    client: Callable[..., AbstractContextManager[Connection]],
    server: str,
    token_file: Path | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> Iterator[Connection]:
    """Connect a client, by TLS if any file says so; no answer in time counts as unavailable."""
    token, tls = read_token(token_file), client_tls(ca, cert, key)
    try:
        with client(server, token=token, tls=tls) as connection:
            yield connection
    except TimeoutError as error:
        raise Unavailable(f"{server}: {error}") from error
