import pytest
import torch

from upt_zoo.nn.dropout import drop


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_so_many_numbers_are_dropped_and_the_mean_stays(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dropped = drop(torch.ones(500, 401, dtype=dtype), share)
    assert dropped.dtype == dtype
    assert (dropped == 0).double().mean().item() == pytest.approx(share, abs=0.005)
    assert dropped.double().mean().item() == pytest.approx(1, abs=0.02)
    assert len(set(dropped.flatten().tolist())) == 2


def test_every_place_of_a_draw_is_dropped_as_often() -> None:
    """The top bit of a draw is drawn too: none of its four numbers is special."""
    torch.manual_seed(0)
    places = (drop(torch.ones(100_000, 4), 0.3) == 0).float().mean(0)
    assert places.tolist() == pytest.approx([0.3] * 4, abs=0.01)


def test_the_gradient_passes_where_the_number_did() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 3, requires_grad=True)
    kept = drop(x, 0.5)
    kept.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert x.grad is not None
    assert torch.equal(x.grad, kept.detach())


def test_the_seed_decides_and_nothing_is_drawn_without_a_share() -> None:
    x = torch.ones(7, 5)
    first, second = (drop(x, 0.5) for _ in range(2) if torch.manual_seed(3))
    assert torch.equal(first, second)
    state = torch.get_rng_state()
    assert drop(x, 0.0) is x
    assert torch.equal(state, torch.get_rng_state())
