import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from upt_server.batcher import Batcher, Computed, Job
from upt_server.results import BatchFacts
from upt_server.scheduling import Budget
from upt_testing.adapters import random_tensors, tiny_spec
from upt_testing.serving import FakeRunner, expected_logits, until
from upt_zoo.errors import InvalidInput, Overloaded
from upt_zoo.nn.adapter import PreparedAdapter, prepare
from upt_zoo.nn.packing import Row


def make_adapter(seed: int) -> PreparedAdapter:
    spec = tiny_spec()
    tensors = {name: torch.from_numpy(a) for name, a in random_tensors(spec, seed).items()}
    return prepare(spec, tensors, dtype=torch.float32)


ADAPTERS = [make_adapter(seed) for seed in range(5)]


def make_job(adapter: int, *ids: int) -> Job:
    row = Row(ids=ids, type_ids=[0] * len(ids), adapter=ADAPTERS[adapter])
    return Job(row=row, adapter=f"sha256:{adapter}")


def is_right(jobs: list[Job], computed: Computed) -> bool:
    return all(
        np.array_equal(logits, expected_logits(job.row))
        for job, logits in zip(jobs, computed.logits, strict=True)
    )


@asynccontextmanager
async def make_batcher(
    fake: FakeRunner,
    facts: list[BatchFacts] | None = None,
    *,
    tokens: int = 1000,
    queue_tokens: int = 10_000,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        fake,
        budget=Budget(tokens=tokens),
        max_queue_tokens=queue_tokens,
        observe=(facts if facts is not None else []).append,
    )
    yield batcher
    fake.release()
    await batcher.close()


async def test_every_caller_gets_the_logits_of_its_own_rows(fake: FakeRunner) -> None:
    calls = [[make_job(n % 5, 10 * n + k, k) for k in range(1 + n % 4)] for n in range(40)]
    async with make_batcher(fake, tokens=17) as batcher:
        results = await asyncio.gather(*map(batcher.compute, calls))
    assert all(is_right(jobs, result) for jobs, result in zip(calls, results, strict=True))
    assert sum(map(len, fake.batches)) == sum(map(len, calls))


async def test_a_mixed_call_is_one_batch_that_is_observed(fake: FakeRunner) -> None:
    facts: list[BatchFacts] = []
    jobs = [make_job(adapter, 1, 2, 3) for adapter in range(5)]
    async with make_batcher(fake, facts) as batcher:
        computed = await batcher.compute(jobs)
    (batch,) = computed.batches
    assert [batch] == facts
    assert (batch.rows, batch.tokens, batch.distinct_adapters) == (5, 15, 5)


async def test_a_call_larger_than_the_budget_goes_through_in_parts(fake: FakeRunner) -> None:
    jobs = [make_job(0, *range(6)) for _ in range(7)]
    async with make_batcher(fake, tokens=12) as batcher:
        computed = await batcher.compute(jobs)
    assert is_right(jobs, computed)
    assert [facts.rows for facts in computed.batches] == [2, 2, 2, 1]


async def test_the_next_batch_gathers_while_the_runner_works(fake: FakeRunner) -> None:
    fake.hold()
    async with make_batcher(fake) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, 1)]))
        await fake.entered()
        for adapter in range(5):
            group.create_task(batcher.compute([make_job(adapter, 2)]))
        await until(lambda: batcher.queue_rows == 5)
        fake.release()
    assert [len(batch) for batch in fake.batches] == [1, 5]


async def test_a_full_queue_turns_away_and_says_when_to_come_back(fake: FakeRunner) -> None:
    fake.hold()
    async with make_batcher(fake, queue_tokens=10) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, 1)]))
        await fake.entered()
        group.create_task(batcher.compute([make_job(0, *range(8))]))
        await until(lambda: batcher.queue_rows == 1)
        with pytest.raises(Overloaded, match="8 of 10 tokens") as caught:
            await batcher.compute([make_job(1, *range(3))])
        assert caught.value.retry_after_s > 0
        group.create_task(batcher.compute([make_job(1, *range(2))]))
        await until(lambda: batcher.queue_rows == 2)
        fake.release()


async def test_a_call_that_no_queue_could_hold_is_not_told_to_come_back(fake: FakeRunner) -> None:
    async with make_batcher(fake, queue_tokens=10) as batcher:
        with pytest.raises(InvalidInput, match="split"):
            await batcher.compute([make_job(0, *range(11))])


async def test_a_caller_that_leaves_frees_its_place_and_is_never_computed(
    fake: FakeRunner,
) -> None:
    fake.hold()
    async with make_batcher(fake, queue_tokens=10) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, 1)]))
        await fake.entered()
        leaving = group.create_task(batcher.compute([make_job(1, 7, 7), make_job(2, 7)]))
        await until(lambda: batcher.queue_rows == 2)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert batcher.queue_rows == 0
        staying = [make_job(3, *range(10))]  # the whole queue: the tokens are free again
        result = group.create_task(batcher.compute(staying))
        await until(lambda: batcher.queue_rows == 1)
        fake.release()
    assert is_right(staying, result.result())
    assert all(7 not in row.ids or len(row.ids) == 10 for batch in fake.batches for row in batch)


async def test_a_caller_that_leaves_a_running_batch_harms_nobody(fake: FakeRunner) -> None:
    fake.hold()
    staying = [make_job(1, 5)]
    async with make_batcher(fake) as batcher, asyncio.TaskGroup() as group:
        leaving = group.create_task(batcher.compute([make_job(0, 1)]))
        result = group.create_task(batcher.compute(staying))
        await fake.entered()
        leaving.cancel()
        await asyncio.wait([leaving])
        fake.release()
    assert is_right(staying, result.result())


async def test_a_failing_runner_fails_its_callers_and_goes_on(fake: FakeRunner) -> None:
    fake.error = RuntimeError("no memory")
    async with make_batcher(fake) as batcher:
        calls = (batcher.compute([make_job(n, 1), make_job(n, 2)]) for n in range(3))
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert failures == [fake.error] * 3
        fake.error = None
        jobs = [make_job(0, 1)]
        assert is_right(jobs, await batcher.compute(jobs))


async def test_a_row_that_fails_fails_its_own_call_and_no_other(fake: FakeRunner) -> None:
    fake.unlucky_id = 13
    calls = [[make_job(n % 5, n, k) for k in range(1, 4)] for n in range(9, 17)]
    async with make_batcher(fake) as batcher:
        results = await asyncio.gather(*map(batcher.compute, calls), return_exceptions=True)
    for jobs, result in zip(calls, results, strict=True):
        if 13 in jobs[0].row.ids:
            assert isinstance(result, RuntimeError)
        else:
            assert isinstance(result, Computed)
            assert is_right(jobs, result)


async def test_what_is_left_of_a_call_that_failed_is_not_computed(fake: FakeRunner) -> None:
    fake.unlucky_id = 13
    async with make_batcher(fake, tokens=1) as batcher:
        with pytest.raises(RuntimeError):
            await batcher.compute([make_job(0, 13), make_job(1, 1), make_job(2, 2)])
        assert batcher.queue_rows == 0
    assert len(fake.batches) <= 2


async def test_a_call_that_cannot_be_answered_in_time_is_refused_at_once(fake: FakeRunner) -> None:
    fake.hold()
    async with make_batcher(fake) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, *range(900))], time_left_s=1e-6))
        await fake.entered()  # nobody was before it: it is tried, however little time it has
        with pytest.raises(Overloaded, match=r"wanted in 0\.000 s") as caught:
            await batcher.compute([make_job(1, *range(300))], time_left_s=1e-6)
        assert caught.value.retry_after_s > 0
        jobs = [make_job(1, 1)]
        patient = group.create_task(batcher.compute(jobs, time_left_s=3600))
        await until(lambda: batcher.queue_rows == 1)
        fake.release()
    assert is_right(jobs, patient.result())


async def test_who_comes_later_does_not_lengthen_a_batch_beyond_a_deadline(
    fake: FakeRunner,
) -> None:
    fake.hold()
    async with make_batcher(fake) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, *range(100))]))
        await fake.entered()
        group.create_task(batcher.compute([make_job(1, 1, 2)], time_left_s=1.5))
        await until(lambda: batcher.queue_rows == 1)
        group.create_task(batcher.compute([make_job(2, *range(900))]))
        await until(lambda: batcher.queue_rows == 2)
        await asyncio.sleep(0.2)  # at most 500 tokens a second
        fake.release()
    assert [len(rows) for rows in fake.batches] == [1, 1, 1]


async def test_a_call_of_a_quiet_adapter_need_not_wait_for_the_backlog_of_a_hot_one(
    fake: FakeRunner,
) -> None:
    fake.hold()
    async with make_batcher(fake) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, 1)]))
        await fake.entered()
        group.create_task(batcher.compute([make_job(0, *range(50)) for _ in range(100)]))
        await until(lambda: batcher.queue_rows == 100)
        with pytest.raises(Overloaded):  # 5,000 tokens at 2,000 a second, as long as none is known
            await batcher.compute([make_job(0, 1)], time_left_s=1.0)
        quiet = group.create_task(batcher.compute([make_job(1, 1)], time_left_s=1.0))
        await until(lambda: batcher.queue_rows == 101)
        fake.release()
    assert is_right([make_job(1, 1)], quiet.result())


async def test_a_hot_adapter_is_turned_away_before_the_queue_is_full(fake: FakeRunner) -> None:
    fake.hold()
    async with make_batcher(fake, queue_tokens=100) as batcher, asyncio.TaskGroup() as group:
        group.create_task(batcher.compute([make_job(0, 1)]))
        await fake.entered()
        group.create_task(batcher.compute([make_job(0, *range(80))]))
        await until(lambda: batcher.queue_rows == 1)
        with pytest.raises(Overloaded, match="no more room for this adapter"):
            await batcher.compute([make_job(0, 1)])
        group.create_task(batcher.compute([make_job(1, *range(20))]))
        await until(lambda: batcher.queue_rows == 2)
        fake.release()


async def test_times_add_up(fake: FakeRunner) -> None:
    async with make_batcher(fake, tokens=1) as batcher:
        computed = await batcher.compute([make_job(0, 1), make_job(0, 2)])
    assert computed.forward_s == pytest.approx(sum(b.forward_ms for b in computed.batches) / 1000)
    assert computed.queue_s >= 0


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere threads have no priority of their own"
)
async def test_computing_gives_way_to_the_event_loop() -> None:
    niceness: list[int] = []

    class Telling(FakeRunner):
        def run(self, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
            niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().run(rows)

    async with make_batcher(Telling()) as batcher:
        await batcher.compute([make_job(0, 1)])
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert niceness == [min(own + 5, 19)]
