from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upt_server.scheduling import Budget, select_batch


@dataclass(frozen=True, eq=False)
class Item:
    adapter: str
    tokens: int


items = st.builds(Item, adapter=st.sampled_from("abcde"), tokens=st.integers(1, 40))
queues = st.lists(items, max_size=60)
budgets = st.builds(Budget, tokens=st.integers(1, 120), rows=st.integers(1, 12))


def drain(queue: list[Item], budget: Budget) -> list[list[Item]]:
    batches = []
    while queue:
        batch = select_batch(queue, budget)
        queue = [item for item in queue if item not in batch]
        batches.append(batch)
    return batches


@given(queues, budgets)
def test_each_row_is_selected_exactly_once(queue: list[Item], budget: Budget) -> None:
    selected = [item for batch in drain(queue, budget) for item in batch]
    assert len(selected) == len(queue)
    assert set(selected) == set(queue)


@given(queues, budgets)
def test_a_batch_keeps_the_budget_unless_one_row_exceeds_it(
    queue: list[Item], budget: Budget
) -> None:
    for batch in drain(queue, budget):
        assert 1 <= len(batch) <= budget.rows
        assert len(batch) == 1 or sum(item.tokens for item in batch) <= budget.tokens


@given(queues, budgets)
def test_rows_of_one_adapter_keep_their_order(queue: list[Item], budget: Budget) -> None:
    selected = [item for batch in drain(queue, budget) for item in batch]
    for adapter in "abcde":
        assert [item for item in selected if item.adapter == adapter] == [
            item for item in queue if item.adapter == adapter
        ]


@given(queues.filter(bool), budgets)
def test_the_row_that_waited_longest_is_always_in_the_next_batch(
    queue: list[Item], budget: Budget
) -> None:
    assert queue[0] in select_batch(queue, budget)


@given(queues)
def test_everything_is_selected_where_it_fits(queue: list[Item]) -> None:
    budget = Budget(tokens=sum(item.tokens for item in queue) or 1, rows=len(queue) or 1)
    assert set(select_batch(queue, budget)) == set(queue)


@given(st.integers(1, 200), st.integers(1, 10), st.integers(2, 8))
def test_a_hot_adapter_leaves_the_others_their_share(hot: int, tokens: int, others: int) -> None:
    queue = [Item("hot", tokens) for _ in range(hot)]
    queue += [Item(f"cold {index}", tokens) for index in range(others)]
    batch = select_batch(queue, Budget(tokens=tokens * (others + 1), rows=1000))
    assert {item.adapter for item in batch} == {item.adapter for item in queue}


def test_shares_are_counted_in_tokens_not_rows() -> None:
    long = [Item("long", 30) for _ in range(10)]
    short = [Item("short", 10) for _ in range(30)]
    batch = select_batch([*long, *short], Budget(tokens=120))
    tokens = {name: sum(i.tokens for i in batch if i.adapter == name) for name in ("long", "short")}
    assert tokens == {"long": 60, "short": 60}


@pytest.mark.parametrize("budget", [Budget(tokens=1), Budget(tokens=100, rows=1)])
def test_an_empty_queue_gives_an_empty_batch(budget: Budget) -> None:
    assert select_batch([], budget) == []
