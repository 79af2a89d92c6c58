from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from upt_server.pace import Reach
from upt_server.scheduling import PRIORITIES, Budget, FairQueue, Priority, parse_weight
from upt_zoo.errors import InvalidReference, InvalidSpec

LONGEST = 40


@dataclass(frozen=True, eq=False)
class Item:
    adapter: str
    tokens: int
    weight: int = 1
    priority: Priority = "normal"
    ends_at_s: float = inf


items = st.builds(
    Item,
    adapter=st.sampled_from("abcde"),
    tokens=st.integers(1, LONGEST),
    priority=st.sampled_from(PRIORITIES),
    ends_at_s=st.integers(1, 30) | st.just(inf),
)
queues = st.lists(items, max_size=60)
budgets = st.builds(Budget, tokens=st.integers(1, 120), rows=st.integers(1, 12))


def queue_of(rows: list[Item], max_tokens: int = 10**9) -> FairQueue[Item]:
    queue = FairQueue[Item](max_tokens)
    queue.add(rows)
    return queue


def drain(rows: list[Item], budget: Budget) -> list[list[Item]]:
    queue, batches = queue_of(rows), []
    while queue:
        batches.append(queue.take(budget))
    return batches


def tokens_by_adapter(rows: list[Item]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.adapter] += row.tokens
    return counts


@given(queues, budgets)
def test_each_row_is_taken_exactly_once(rows: list[Item], budget: Budget) -> None:
    taken = [item for batch in drain(rows, budget) for item in batch]
    assert len(taken) == len(rows)
    assert set(taken) == set(rows)


@given(queues, budgets)
def test_a_batch_keeps_the_budget_unless_one_row_exceeds_it(
    rows: list[Item], budget: Budget
) -> None:
    for batch in drain(rows, budget):
        assert 1 <= len(batch) <= budget.rows
        assert len(batch) == 1 or sum(item.tokens for item in batch) <= budget.tokens


@given(queues, budgets)
def test_rows_of_one_adapter_and_priority_keep_their_order(
    rows: list[Item], budget: Budget
) -> None:
    def of_kind(all_rows: list[Item], adapter: str, priority: Priority) -> list[Item]:
        return [row for row in all_rows if (row.adapter, row.priority) == (adapter, priority)]

    taken = [item for batch in drain(rows, budget) for item in batch]
    for adapter in "abcde":
        for priority in PRIORITIES:
            assert of_kind(taken, adapter, priority) == of_kind(rows, adapter, priority)


@given(queues)
def test_everything_is_taken_where_it_fits(rows: list[Item]) -> None:
    budget = Budget(tokens=sum(item.tokens for item in rows) or 1, rows=len(rows) or 1)
    assert set(queue_of(rows).take(budget)) == set(rows)


@given(queues, budgets)
def test_a_row_that_would_still_fit_is_never_left_out(rows: list[Item], budget: Budget) -> None:
    queue = queue_of(rows)
    batch = queue.take(budget)
    room = budget.tokens - sum(item.tokens for item in batch)
    if len(batch) < budget.rows:
        heads = {
            (item.adapter, item.priority): item for item in reversed(rows) if item not in batch
        }
        assert all(item.tokens > room for item in heads.values())


def reach_by(ends_at_s: float) -> Reach:
    return Reach(sure=8 * ends_at_s, possible=10 * ends_at_s)


@given(queues, budgets)
def test_no_row_is_made_late_by_rows_behind_it_but_those_that_fill_a_quarter(
    rows: list[Item], budget: Budget
) -> None:
    queue = queue_of(rows)
    while batch := queue.take(budget, reach_by):
        taken_by = list(accumulate(item.tokens for item in batch))
        for item, tokens in zip(batch, taken_by, strict=True):
            sure, possible = reach_by(item.ends_at_s)
            if item.priority == "normal" and tokens <= possible:
                assert taken_by[-1] <= max(sure, budget.tokens / 4, tokens)


@pytest.mark.parametrize(
    "first",
    [
        Item("late already", 20, ends_at_s=1.0),
        Item("bulk", 20, priority="bulk", ends_at_s=3.0),
    ],
)
def test_who_is_late_already_and_who_can_wait_do_not_hold_up_the_others(first: Item) -> None:
    rows = [Item("others", 20) for _ in range(9)]
    batch = queue_of([first, *rows]).take(Budget(tokens=200), reach_by)
    assert set(batch) == {first, *rows}


def test_a_deadline_makes_a_batch_no_smaller_than_a_quarter_of_the_budget() -> None:
    first = Item("hasty", 20, ends_at_s=2.0)
    rows = [Item("others", 20) for _ in range(9)]
    batch = queue_of([first, *rows]).take(Budget(tokens=200), reach_by)
    assert batch == [first, rows[0]]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, LONGEST), min_size=2, max_size=6),
    st.lists(st.integers(1, 4), min_size=6, max_size=6),
    st.integers(200, 1000),
)
def test_adapters_that_always_wait_get_tokens_by_their_weights(
    lengths: list[int], weights: list[int], budget: int
) -> None:
    rows = [
        Item(f"adapter {index}", length, weights[index])
        for index, length in enumerate(lengths)
        for _ in range(10_000 // length)
    ]
    queue = queue_of(rows)
    taken: Counter[str] = Counter()
    for batch in range(1, 6):
        taken += tokens_by_adapter(queue.take(Budget(tokens=budget, rows=10**6)))
        shares = [taken[f"adapter {index}"] / weights[index] for index in range(len(lengths))]
        # one turn, what a turn left over, and what was filled in at the end of each batch
        assert max(shares) - min(shares) <= 64 + LONGEST * (batch + 2)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 40), st.integers(1, 30))
def test_who_comes_in_behind_a_hot_adapter_is_in_the_next_batch(
    hot: int, tokens: int, others: int
) -> None:
    queue = queue_of([Item("hot", tokens) for _ in range(hot)])
    budget = Budget(tokens=2048)
    queue.take(budget)
    coming = [Item(f"cold {index}", tokens) for index in range(others)]
    queue.add(coming)
    assert set(coming) <= set(queue.take(budget))


def test_a_row_larger_than_its_adapters_turn_comes_within_as_many_rounds_as_it_is_larger() -> None:
    long = Item("long", 512)
    queue = queue_of([Item("hot", 64) for _ in range(1000)])
    queue.add([long])
    before: list[Item] = []
    while long not in (batch := queue.take(Budget(tokens=512))):
        before += batch
    assert sum(item.tokens for item in before) <= 512 + 64


def test_shares_are_counted_in_tokens_not_rows() -> None:
    long = [Item("long", 32) for _ in range(10)]
    short = [Item("short", 8) for _ in range(40)]
    batch = queue_of([*long, *short]).take(Budget(tokens=256))
    assert tokens_by_adapter(batch) == {"long": 128, "short": 128}


def test_bulk_rows_get_an_eighth_of_the_others_share_and_are_never_starved() -> None:
    rows = [Item("a", 16) for _ in range(1000)]
    bulk = [Item("a", 16, priority="bulk") for _ in range(1000)]
    queue = queue_of([*bulk, *rows])
    taken = [item for _ in range(9) for item in queue.take(Budget(tokens=1024))]
    tokens = Counter[str]()
    for item in taken:
        tokens[item.priority] += item.tokens
    assert tokens["normal"] / tokens["bulk"] == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("budget", [Budget(tokens=1), Budget(tokens=100, rows=1)])
def test_an_empty_queue_gives_an_empty_batch(budget: Budget) -> None:
    assert FairQueue[Item](10).take(budget) == []


def test_a_hot_adapter_leaves_room_in_the_queue_for_all_others() -> None:
    queue = FairQueue[Item](1000)
    while queue.has_room(more := [Item("hot", 10)]):
        queue.add(more)
    assert queue.tokens == 800
    assert queue.has_room([Item("cold", 200)])
    assert not queue.has_room([Item("cold", 201)])
    assert not queue.has_room([Item("cold", 10), Item("hot", 10)])


@given(queues)
def test_a_queue_that_has_room_never_exceeds_its_bound(rows: list[Item]) -> None:
    queue = FairQueue[Item](200)
    for row in rows:
        if queue.has_room([row]):
            queue.add([row])
    assert queue.tokens <= 200


@given(queues, items, st.integers(50, 200))
def test_no_more_comes_before_than_is_estimated_but_for_a_round_and_a_batch(
    rows: list[Item], last: Item, budget: int
) -> None:
    queue = queue_of(rows)
    estimate = queue.tokens_before([last])
    queue.add([last])
    taken = 0
    while True:
        batch = queue.take(Budget(tokens=budget))
        taken += sum(item.tokens for item in batch)
        if last in batch:
            break
    kinds = len({(item.adapter, item.priority) for item in rows}) + 1
    assert taken <= estimate + kinds * (64 + 2 * LONGEST) + 2 * budget
    assert estimate <= 2 * sum(item.tokens for item in [*rows, last])


def test_a_quiet_adapter_is_not_told_to_wait_for_all_of_a_hot_ones_backlog() -> None:
    queue = queue_of([Item("hot", 32) for _ in range(1000)])
    assert queue.tokens_before([Item("quiet", 32)]) == 64
    assert queue.tokens_before([Item("hot", 32)]) == 32_032


def test_others_may_get_more_rows_before_it_is_the_last_ones_turn() -> None:
    queue = queue_of([Item(name, 32) for name in "abcdefgh" for _ in range(3)])
    two_turns_of_eight = 2 * 8 * 64
    assert queue.tokens_before([Item("a", 32)]) == two_turns_of_eight > queue.tokens


class Traffic(RuleBasedStateMachine):
    """Rows come, leave and are taken in any order; a model counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FairQueue[Item](10**6)
        self.waiting: dict[Item, None] = {}
        self.gone: list[Item] = []

    @rule(rows=st.lists(items, max_size=8))
    def come(self, rows: list[Item]) -> None:
        self.queue.add(rows)
        self.waiting |= dict.fromkeys(rows)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(list(self.waiting)))
        self.queue.discard([row])
        del self.waiting[row]
        self.gone.append(row)

    @rule(budget=budgets)
    def take(self, budget: Budget) -> None:
        for row in self.queue.take(budget):
            del self.waiting[row]
            self.gone.append(row)

    @rule()
    def leave_after_all(self) -> None:
        self.queue.discard(self.gone)

    @invariant()
    def what_waits_is_counted(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.tokens == sum(row.tokens for row in self.waiting)


TestTraffic = Traffic.TestCase


def test_a_weight_is_a_name_and_a_whole_number() -> None:
    assert parse_weight("sst2=12") == ("sst2", 12)


@pytest.mark.parametrize(
    "text", ["", "sst2", "sst2=", "sst2=0", "sst2=-1", "sst2=1.5", "sst2=²", "sst2=1000", "=1"]
)
def test_other_weights_are_refused(text: str) -> None:
    with pytest.raises((InvalidSpec, InvalidReference), match="expected"):
        parse_weight(text)


def test_a_weight_is_of_a_name_and_not_of_a_version() -> None:
    with pytest.raises(InvalidReference, match="bare name"):
        parse_weight("sst2:1.0.0=2")
