import asyncio
from collections.abc import AsyncIterator

import pytest

from upt_server.client import AsyncClient, Client
from upt_server.retries import Retries
from upt_testing.serving import FakeRunner, Served, make_settings, serving, until
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Overloaded, Unavailable
from upt_zoo.local.store import Store

SOON = Unavailable("gone", retry_after_s=0.01)


def retries(for_s: float, *, now_s: list[float] | None = None, draw: float = 0.0) -> Retries:
    at = now_s or [0.0]
    return Retries(for_s, clock=lambda: at[0], draw=lambda: draw)


def test_pauses_double_up_to_five_seconds() -> None:
    planned = retries(1000)
    assert [planned.pause_s(SOON) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_pause_is_never_shorter_than_what_the_server_asks_for() -> None:
    planned = retries(1000, draw=0.5)
    assert planned.pause_s(Overloaded("full", retry_after_s=2.0)) == 2.5
    assert planned.pause_s(SOON) == 0.25


def test_who_has_no_time_left_for_a_pause_gets_the_error_itself() -> None:
    now_s = [0.0]
    planned = retries(1.0, now_s=now_s)
    assert planned.pause_s(SOON) == 0.1
    with pytest.raises(Overloaded, match="full"):
        planned.pause_s(Overloaded("full", retry_after_s=1.1))
    now_s[0] = 0.99
    with pytest.raises(Unavailable, match="gone"):
        planned.pause_s(SOON)


@pytest.fixture
async def faked(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    async with serving(
        make_settings(store.root, max_queue_tokens=20), backbone, fake, is_open=False
    ) as served:
        yield served
        fake.release()


async def test_a_client_with_retries_outlasts_a_server_that_starts(faked: Served) -> None:
    async with AsyncClient(faked.target, retry_for_s=30) as awaited:
        call = asyncio.create_task(awaited.predict("sst2", "a film"))
        with Client(faked.target, retry_for_s=30) as blocking:
            other = asyncio.create_task(asyncio.to_thread(blocking.predict, "sst2", "a film"))
            await until(lambda: b'reason="unavailable"} 2' in faked.metrics.text())
            await faked.server.open()
            assert await call == await other


async def test_a_client_without_retries_asks_once(faked: Served) -> None:
    async with AsyncClient(faked.target) as client:
        with pytest.raises(Unavailable):
            await client.predict("sst2", "a film")
    with Client(faked.target) as blocking, pytest.raises(Unavailable):
        await asyncio.to_thread(blocking.predict, "sst2", "a film")
    assert b'reason="unavailable"} 2' in faked.metrics.text()
