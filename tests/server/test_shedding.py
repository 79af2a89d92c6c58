import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from upt_server import shedding
from upt_server.client import AsyncClient
from upt_server.shedding import Shedding
from upt_testing.serving import FakeRunner, Served, make_settings, serving
from upt_zoo.backbone import Backbone
from upt_zoo.errors import Overloaded
from upt_zoo.local.store import Store

LOOK_S = 0.05
BURST = 5  # looks at a busy loop that are no overload yet


def look(shedding: Shedding, *, ran: float, waited: float = 0.0, took_s: float = LOOK_S) -> None:
    """Let a loop have run, and been kept from running, for so much of the time."""
    shedding.observe(ran * took_s, waited * took_s, took_s)


def saturated(looks: int) -> Shedding:
    found = Shedding(chance=lambda: 0.0)
    for _ in range(looks):
        look(found, ran=0.7, waited=0.3)
    return found


def test_a_burst_is_let_in_and_an_overload_is_not() -> None:
    assert saturated(BURST).share == 0.0
    assert saturated(BURST + 1).share == pytest.approx(0.1)
    assert saturated(BURST + 100).share == pytest.approx(0.98)  # somebody has to find out its end


def test_full_batches_are_no_overload() -> None:
    found = Shedding()
    for ran in [1.0] * BURST + [0.6] + [1.0] * BURST:
        look(found, ran=ran)
    assert found.share == 0.0


def test_a_loop_with_little_to_do_on_a_busy_machine_is_no_overload() -> None:
    found = Shedding()
    for _ in range(100):
        look(found, ran=0.1, waited=0.9)
    assert found.share == 0.0


def test_a_loop_that_waits_for_the_interpreter_is_found_out_by_its_lateness() -> None:
    found = Shedding()
    for _ in range(10):
        look(found, ran=0.5, waited=0.1, took_s=0.15)
    assert found.share > 0.5


def test_what_is_turned_away_grows_and_shrinks_with_the_load() -> None:
    """A loop that judges a call in 0.7 ms and turns one away in 0.3 ms, and is asked too much."""
    found, per_s = Shedding(), 2500.0
    shares = []
    for _ in range(400):
        cost_s = found.share * 0.0003 + (1 - found.share) * 0.0007
        look(found, ran=min(1.0, per_s * cost_s))
        shares.append(found.share)
    least = (per_s * 0.0007 - 1) / (per_s * 0.0004)  # what has to be turned away
    settled = shares[100:]
    assert least - 0.1 < min(settled)
    assert max(settled) < least + 0.2
    for _ in range(20):
        look(found, ran=0.3)
    assert found.share == 0.0


def test_only_calls_with_little_time_are_turned_away() -> None:
    found = saturated(BURST + 1)
    assert not any(found.turns_away(patient) for patient in (None, 10.0, 60.0))
    assert found.turns_away(9.9)


def test_by_chance_as_many_are_turned_away_as_the_share_says() -> None:
    found = Shedding(chance=Random(0).random)
    found.share = 0.4
    turned_away = sum(found.turns_away(1.0) for _ in range(2000))
    assert turned_away / 2000 == pytest.approx(0.4, abs=0.03)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
async def test_a_loop_that_has_work_all_the_time_is_found_out() -> None:
    found = Shedding()
    watching = asyncio.create_task(found.watch())
    await asyncio.sleep(0.3)
    assert found.share == 0.0
    until_s = time.monotonic() + 20.0
    while not found.share and time.monotonic() < until_s:  # noqa: ASYNC110 - what keeps it busy
        await asyncio.sleep(0)
    assert found.share
    async with asyncio.timeout(20.0):
        while found.share:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)
    found.share = 0.5
    watching.cancel()
    await asyncio.wait([watching])
    assert found.share == 0.0  # nobody looks any more


async def test_where_the_system_does_not_tell_nobody_is_turned_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shedding, "_SCHEDSTAT", tmp_path / "none")
    await Shedding().watch()


# In a server


@pytest.fixture
async def served(store: Store, backbone: Backbone, fake: FakeRunner) -> AsyncIterator[Served]:
    async with serving(make_settings(store.root), backbone, fake) as served:
        yield served
        fake.release()


async def test_an_overloaded_server_says_so_and_goes_on_with_the_patient(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.server._shedding, "observe", lambda *_: None)
    served.server._shedding.share = 1.0
    async with (
        AsyncClient(served.target, timeout_s=2.0) as hasty,
        AsyncClient(served.target, timeout_s=30.0) as patient,
    ):
        with pytest.raises(Overloaded, match="more calls than the server can take up") as caught:
            await hasty.predict("sst2", "a film")
        assert caught.value.retry_after_s == 1.0
        await hasty.adapters()
        await patient.predict("sst2", "a film")
    text = served.metrics.text().decode()
    assert "upt_shed_share 1.0" in text
    assert 'upt_rejected_total{reason="overloaded"} 1.0' in text
