from collections import Counter

import pytest

from upt_server.inputs import Input
from upt_server.routes import Route, Routes
from upt_zoo.errors import InvalidReference, InvalidSpec
from upt_zoo.references import Reference

ROUTE = "sst2:stable=90,canary=10"


def inputs(*names: str) -> list[Input]:
    return [Input(adapter=Reference.parse(name), texts=(name,)) for name in names]


def targets(routes: Routes, key: str | None, *names: str) -> list[str]:
    applied = routes.apply(inputs(*names), key)
    assert [item.texts for item in applied] == [(name,) for name in names]
    return [str(item.adapter) for item in applied]


@pytest.mark.parametrize(
    "text",
    ["sst2", "sst2:", "sst2:stable", "sst2:stable=", "sst2:stable=0", "sst2:stable=-1",
     "sst2:stable=1.5", "sst2:stable=1,", "sst2:stable=1,stable=2", "sst2:stable=9999999999",
     "sst2:stable=²"],
)  # fmt: skip
def test_a_route_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match="route"):
        Route.parse(text)


@pytest.mark.parametrize("text", [":stable=1", "No Such:stable=1", "sst2:=1", "sst2:a b=1"])
def test_a_route_names_adapters_and_tags(text: str) -> None:
    with pytest.raises(InvalidReference):
        Route.parse(text)


def test_a_name_has_one_route() -> None:
    with pytest.raises(InvalidSpec, match="one route for sst2"):
        Routes([Route.parse(ROUTE), Route.parse("sst2:stable=1")])


def test_only_bare_names_are_routed() -> None:
    routes = Routes([Route.parse(ROUTE)], draw=lambda: 0.95)
    digest = "sst2@sha256:" + "0" * 64
    asked = ("sst2", "sst2:stable", "sst2:1.0.0", digest, "cola", "sst2")
    expected = ["sst2:canary", "sst2:stable", "sst2:1.0.0", digest, "cola", "sst2:canary"]
    assert targets(routes, None, *asked) == expected
    assert targets(Routes(), None, *asked) == list(asked)


def test_shares_are_kept_over_many_keys() -> None:
    routes = Routes([Route.parse(ROUTE)])
    counts = Counter(targets(routes, f"user-{n}", "sst2")[0] for n in range(10_000))
    assert counts["sst2:canary"] + counts["sst2:stable"] == 10_000
    assert 900 < counts["sst2:canary"] < 1100  # three standard deviations are 90


def test_equal_keys_get_equal_answers_whatever_else_is_drawn() -> None:
    draws = iter([0.1, 0.95] * 100)
    routes = Routes([Route.parse(ROUTE)], draw=lambda: next(draws))
    assert {targets(routes, None, "sst2")[0] for _ in range(4)} == {"sst2:stable", "sst2:canary"}
    for key in map(str, range(100)):
        assert len({targets(routes, key, "sst2")[0] for _ in range(3)}) == 1


def test_a_share_that_grows_moves_nobody_else() -> None:
    small, large = Routes([Route.parse(ROUTE)]), Routes([Route.parse("sst2:stable=60,canary=40")])
    keys = [str(n) for n in range(1000)]
    before = {key for key in keys if targets(small, key, "sst2") == ["sst2:canary"]}
    after = {key for key in keys if targets(large, key, "sst2") == ["sst2:canary"]}
    assert before < after


def test_keys_fall_differently_for_different_names() -> None:
    routes = Routes([Route.parse("a:x=1,y=1"), Route.parse("b:x=1,y=1")])
    pairs = {tuple(targets(routes, str(n), "a", "b")) for n in range(100)}
    assert len(pairs) == 4


def test_every_place_leads_somewhere() -> None:
    route = Route.parse("a:x=1,y=2")
    places = {place: str(route.choose(place)) for place in (0.0, 0.33, 0.34, 0.9999999, 1.0)}
    assert list(places.values()) == ["a:x", "a:x", "a:y", "a:y", "a:y"]
