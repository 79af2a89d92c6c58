"""What clients say of a server that they do not reach."""

import asyncio

import grpc
import pytest

from upt_server.admin_client import AdminClient
from upt_server.channels import our_errors
from upt_server.client import Client
from upt_server.metrics_client import MetricsClient
from upt_testing.serving import FakeRunner, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.errors import InvalidInput, Unavailable
from upt_zoo.local.store import Store

LAST = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:8001: "


class Lost(grpc.RpcError):
    """What gRPC raises where nobody answered."""

    def __init__(self, details: str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("details", "told"),
    [
        (f"{LAST}Connection refused", "Connection refused"),
        (f"{LAST}Socket closed", "Socket closed, as by a server with TLS (--ca, ClientTls)"),
        ("Socket closed", "Socket closed"),
        ("reset before headers. reset reason: overflow", "reset before headers. reset reason: "),
    ],
)
def test_the_cause_is_told_without_the_chain_that_led_to_it(details: str, told: str) -> None:
    with pytest.raises(Unavailable) as raised, our_errors("127.0.0.1:8001"):
        raise Lost(details)
    assert str(raised.value).startswith(f"cannot reach 127.0.0.1:8001: {told}")
    assert str(raised.value).endswith("is `upt-server run` running there?")


def test_an_operator_is_told_that_the_port_is_opened_by_an_option() -> None:
    with AdminClient("127.0.0.1:1", token=None) as client, pytest.raises(Unavailable) as raised:
        client.status()
    assert "`upt-server run --admin-port`" in str(raised.value)


async def test_who_asks_at_another_port_is_told_which_one_answers(
    store: Store, backbone: Backbone, fake: FakeRunner
) -> None:
    async with serving(make_settings(store.root), backbone, fake) as served:
        with (
            AdminClient(served.target, token=None) as client,
            pytest.raises(InvalidInput, match=f"{served.target} has no .* `upt-server run --admin"),
        ):
            await asyncio.to_thread(client.status)
        with (
            Client(served.http) as client,
            pytest.raises(Unavailable, match=f"{served.http} .*not by gRPC; .* --grpc-port`"),
        ):
            await asyncio.to_thread(client.adapters)
        with (
            MetricsClient(served.target, token=None, tls=None) as client,
            pytest.raises(Unavailable, match=f"{served.target} .* HTTP .* --http-port`"),
        ):
            await asyncio.to_thread(client.read)
