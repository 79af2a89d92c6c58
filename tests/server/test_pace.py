import pytest

from upt_server.pace import Pace

CAUTION = 1.25


def paced(*batches: tuple[int, float]) -> Pace:
    pace = Pace()
    for tokens, seconds in batches:
        pace.start(tokens, 7.0)
        pace.finish(7.0 + seconds)
    return pace


def test_time_is_tokens_by_the_measured_rate_and_some_caution() -> None:
    assert paced((1000, 0.5)).seconds(4000, 10.0) == pytest.approx(2.0 * CAUTION)


def test_large_batches_count_more_than_small_ones() -> None:
    pace = paced((10, 0.1), (1000, 0.1))
    assert pace.seconds(5000, 0.0) == pytest.approx(CAUTION, rel=0.1)


def test_what_was_long_ago_is_forgotten() -> None:
    pace = paced((1000, 60.0), *[(1000, 0.1)] * 60)
    assert pace.seconds(1000, 0.0) == pytest.approx(0.1 * CAUTION, rel=0.3)


def test_what_the_batch_at_work_has_done_already_is_subtracted() -> None:
    pace = paced((1000, 1.0))
    pace.start(1000, 20.0)
    assert pace.seconds(3000, 20.4) == pytest.approx(2.6 * CAUTION)


def test_a_batch_that_takes_too_long_counts_as_done_and_no_more() -> None:
    pace = paced((1000, 1.0))
    pace.start(1000, 20.0)
    assert pace.seconds(3000, 500.0) == pytest.approx(2.0 * CAUTION)


def test_before_the_first_batch_there_is_a_guess() -> None:
    assert 0 < Pace().seconds(1000, 0.0) < 10


def test_a_short_text_that_was_held_up_makes_no_server_slow() -> None:
    guess = Pace().seconds(2400, 0.0)
    assert paced((5, 0.3)).seconds(2400, 0.0) == guess
    assert paced((5, 0.001)).seconds(2400, 0.0) < guess
    assert paced((100, 6.0)).seconds(2400, 0.0) > guess


def test_what_a_batch_may_have_is_what_is_estimated_to_take_so_long() -> None:
    pace = paced((1000, 0.5))
    assert pace.seconds(pace.reach(3.0).sure, 0.0) == pytest.approx(3.0)
    assert pace.reach(3.0).possible == pytest.approx(6000)
