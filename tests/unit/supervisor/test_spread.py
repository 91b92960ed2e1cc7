from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.limits import SupervisorLimits
from jetstream.supervisor.spread import Load, choose

LIMITS = SupervisorLimits(untaken_max=4, stalled_s=0.5, hold_s=1.0)


def ready(opened: int = 0, **more: int) -> Load:
    return Load(ready=True, open=opened, **more)


def chosen(loads: list[Load], *, waiting: int = 1, waited_s: float = 0.0, now: float = 100.0) -> int | None:
    found = choose(loads, waiting, waited_s, now, LIMITS)
    return None if found is None else next(place for place, each in enumerate(loads) if each is found)


def test_the_edge_with_the_fewest_gets_the_next() -> None:
    assert chosen([ready(3), ready(1), ready(2)]) == 1


def test_what_was_passed_and_is_not_counted_yet_counts() -> None:
    assert chosen([ready(3), ready(1, passed=9, taken=5)]) == 0


def test_an_edge_that_has_ended_or_has_not_begun_gets_none() -> None:
    assert chosen([Load()]) is None


def test_an_edge_has_only_so_many_on_their_way() -> None:
    busy = Load(ready=True, open=4, untaken=4, untaken_since=99.9)
    assert chosen([busy, ready(9)]) is None  # it is emptier, and will soon take more
    assert chosen([busy, ready(3)]) == 1
    assert chosen([busy, ready(9)], waited_s=1.0) == 1
    assert chosen([busy, ready(9)], now=200.0) == 1  # it does not take more
    assert chosen([busy, busy]) is None


def test_an_edge_that_takes_nothing_gets_none_unless_none_does() -> None:
    stalled = Load(ready=True, untaken=1, untaken_since=99.0)
    assert chosen([stalled, ready(9)]) == 1
    assert chosen([stalled]) == 0


def test_while_an_edge_is_replaced_what_is_above_the_share_of_the_others_waits_for_it_but_not_for_long() -> (
    None
):
    # 500 had an edge each; one is being replaced, and its clients come back.
    survivor, replaced = ready(500), Load()
    assert chosen([survivor, replaced], waiting=500) is None
    assert chosen([survivor, replaced], waiting=501) == 0  # not yet above its share
    assert chosen([survivor, replaced], waiting=500, waited_s=1.0) == 0
    replaced.ready = True
    assert chosen([survivor, replaced], waiting=500) == 1


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from(["come", "count", "replace"]), st.integers(0, 8)), max_size=300),
)
def test_edges_have_equal_shares_whenever_they_count_and_however_often_one_is_replaced(
    edges: int, steps: list[tuple[str, int]]
) -> None:
    loads = [ready() for _ in range(edges)]
    has = [0] * edges
    for what, number in steps:
        place = number % edges
        if what == "come":
            at = chosen(loads)
            assert at is not None
            loads[at].passed += 1
            has[at] += 1
        elif what == "count":
            loads[place].open, loads[place].taken = has[place], loads[place].passed
        else:
            back, has[place], loads[place] = has[place], 0, ready()
            for _ in range(back):
                at = chosen(loads)
                assert at is not None
                loads[at].passed += 1
                has[at] += 1
    assert [each.total for each in loads] == has
    replaced = any(what == "replace" for what, _ in steps)
    assert replaced or max(has) - min(has) <= 1
