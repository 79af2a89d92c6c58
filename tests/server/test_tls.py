"""Transport security over real sockets, with certificates made for the test."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
import trustme

from upt_protos.v1.admin_pb2 import STATE_OPEN
from upt_server.access.tokens import Token, add_token
from upt_server.admin_client import AdminClient
from upt_server.app import Server, build_engine
from upt_server.client import AsyncClient
from upt_server.metrics import Metrics
from upt_server.runner import TorchRunner
from upt_server.settings import AdminAddress
from upt_server.tls import ClientTls, ServerTls, check_exposure
from upt_testing.serving import FakeRunner, Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput, Unavailable
from upt_zoo.local.store import Store

TIMEOUT_S = 20
GRPC_PORTS = ("target", "admin")
PORTS = (*GRPC_PORTS, "http")
READY = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass(frozen=True)
class Certificates:
    server: ServerTls
    ca: Path
    client: ClientTls


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    files = {}
    for name in ("127.0.0.1", "caller"):
        issued = authority.issue_cert(name)
        files[name] = (folder / f"{name}.pem", folder / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(files[name][0])
        issued.private_key_pem.write_to_path(files[name][1])
    (cert, key), (client_cert, client_key) = files["127.0.0.1"], files["caller"]
    return Certificates(
        server=ServerTls(certificate=cert, key=key),
        ca=ca,
        client=ClientTls(ca=ca, certificate=client_cert, key=client_key),
    )


@pytest.fixture
def secret(tmp_path: Path) -> str:
    token, secret = Token.create(name="ops", scopes=("predict", "admin"))
    add_token(tmp_path / "tokens.json", token)
    return secret


@pytest.fixture(params=["tls", "mtls"])
async def served(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    store: Store,
    backbone: Backbone,
    runner: TorchRunner,
    secret: str,
    tmp_path: Path,
) -> AsyncIterator[Served]:
    tls = certificates.server
    if request.param == "mtls":
        tls = ServerTls(certificate=tls.certificate, key=tls.key, client_ca=certificates.ca)
    settings = make_settings(
        store.root,
        tls=tls,
        tokens=tmp_path / "tokens.json",
        admin=AdminAddress(host="127.0.0.1", port=0),
    )
    async with serving(settings, backbone, runner) as started:
        yield started


async def is_answered(served: Served, port: str, secret: str, tls: ClientTls | None = None) -> bool:
    if port == "admin":
        return await asyncio.to_thread(is_operator_answered, served.admin, secret, tls)
    async with AsyncClient(served.target, timeout_s=TIMEOUT_S, token=secret, tls=tls) as client:
        return (await client.predict("sst2", "a film")).adapter.name == "sst2"


def is_operator_answered(target: str, secret: str, tls: ClientTls | None) -> bool:
    with AdminClient(target, timeout_s=TIMEOUT_S, token=secret, tls=tls) as client:
        return client.status().state == STATE_OPEN


def context_of(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    assert certificates.client.certificate is not None
    context.load_cert_chain(certificates.client.certificate, certificates.client.key)
    return context


async def test_a_caller_with_a_certificate_is_answered_on_every_port(
    served: Served, certificates: Certificates, secret: str
) -> None:
    for port in GRPC_PORTS:
        assert await is_answered(served, port, secret, certificates.client)
    context = context_of(certificates)

    def ask() -> int:
        url = f"https://{served.http}/readyz"
        with urlopen(url, context=context, timeout=TIMEOUT_S) as response:
            return int(response.status)

    assert await asyncio.to_thread(ask) == 200


@pytest.mark.parametrize("port", GRPC_PORTS)
async def test_a_caller_in_the_clear_gets_no_answer(served: Served, port: str, secret: str) -> None:
    with pytest.raises((Unavailable, TimeoutError)):
        await is_answered(served, port, secret)


@pytest.mark.parametrize("port", GRPC_PORTS)
async def test_a_caller_who_trusts_another_authority_does_not_ask(
    served: Served, port: str, secret: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises((Unavailable, TimeoutError)):
        await is_answered(served, port, secret, ClientTls(ca=other))


@pytest.mark.parametrize("port", GRPC_PORTS)
async def test_without_its_own_certificate_a_caller_reaches_tls_only(
    served: Served,
    certificates: Certificates,
    port: str,
    secret: str,
    request: pytest.FixtureRequest,
) -> None:
    tls = ClientTls(ca=certificates.ca)
    if "mtls" in request.node.name:
        with pytest.raises((Unavailable, TimeoutError)):
            await is_answered(served, port, secret, tls)
    else:
        assert await is_answered(served, port, secret, tls)


def first_byte(target: str, context: ssl.SSLContext) -> bytes:
    """Return how a port begins to speak to a caller whom it lets in."""
    context.set_alpn_protocols(["h2"])  # else gRPC hangs up
    host, _, number = target.rpartition(":")
    with (
        socket.create_connection((host, int(number)), timeout=TIMEOUT_S) as connection,
        context.wrap_socket(connection, server_hostname=host) as encrypted,
    ):
        encrypted.sendall(READY)
        return encrypted.recv(1)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_nobody_is_talked_down_to_an_older_tls(
    served: Served, certificates: Certificates, port: str, version: ssl.TLSVersion
) -> None:
    context = context_of(certificates)
    context.set_ciphers("ALL:@SECLEVEL=0")  # else OpenSSL itself would not offer it
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version = context.maximum_version = version
    # what a server does, not what OpenSSL says of its own settings here
    with pytest.raises((ssl.SSLError, ConnectionError), match=r"EOF|alert|reset|pipe"):
        await asyncio.to_thread(first_byte, getattr(served, port), context)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_tls_of_today_is_spoken_on_every_port(
    served: Served, certificates: Certificates, port: str, version: ssl.TLSVersion
) -> None:
    context = context_of(certificates)
    context.minimum_version = context.maximum_version = version
    assert await asyncio.to_thread(first_byte, getattr(served, port), context)


async def test_the_port_of_http_answers_nothing_in_the_clear(served: Served) -> None:
    def ask() -> bytes:
        host, _, port = served.http.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(READY)
            try:
                return connection.recv(1000)
            except ConnectionError:
                return b""

    assert b"HTTP" not in await asyncio.to_thread(ask)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_nothing_but_loopback_is_reached_without_tls(host: str, certificates: Certificates) -> None:
    with pytest.raises(InvalidInput, match="--insecure"):
        check_exposure(host, None, is_insecure=False)
    check_exposure(host, None, is_insecure=True)
    check_exposure(host, certificates.server, is_insecure=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    check_exposure(host, None, is_insecure=False)


@pytest.mark.parametrize("fault", ["missing", "no PEM", "another key", "no authority"])
async def test_files_that_are_not_what_they_should_be_end_the_start(
    fault: str,
    certificates: Certificates,
    store: Store,
    backbone: Backbone,
    fake: FakeRunner,
    tmp_path: Path,
) -> None:
    good, other = certificates.server, certificates.client
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("nothing")
    assert other.key is not None
    tls = {
        "missing": ServerTls(certificate=tmp_path / "lost.pem", key=good.key),
        "no PEM": ServerTls(certificate=no_pem, key=good.key),
        "another key": ServerTls(certificate=good.certificate, key=other.key),
        "no authority": ServerTls(certificate=good.certificate, key=good.key, client_ca=no_pem),
    }[fault]
    settings, metrics = make_settings(store.root, tls=tls), Metrics()
    engine = build_engine(settings, backbone, fake, metrics)
    with pytest.raises(InvalidInput, match=r"TLS|lost\.pem"):
        Server(engine, metrics, settings)
    await engine.close()


def test_files_that_are_missing_are_named(tmp_path: Path, certificates: Certificates) -> None:
    lost = tmp_path / "lost.pem"
    with pytest.raises(InvalidInput, match=r"lost\.pem"):
        ServerTls(certificate=lost, key=certificates.server.key).grpc_credentials()
    with pytest.raises(InvalidInput, match="needs its key"):
        ClientTls(certificate=certificates.ca).channel_credentials()
