from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.bench.delays import LARGEST_US, PENDING_MAX, Delays


def delays_of(values: list[int], pending_max: int = PENDING_MAX) -> Delays:
    delays = Delays(pending_max)
    for value in values:
        delays.add(value)
    return delays


@given(st.lists(st.integers(0, 10**9), min_size=1), st.sampled_from([1, 50, 90, 99, 100]))
def test_a_percentile_is_that_of_the_sorted_list_to_within_a_64th(values: list[int], percent: int) -> None:
    exact = sorted(values)[max(ceil(len(values) * percent / 100), 1) - 1]
    assert exact <= delays_of(values).percentile_us(percent) <= exact + exact / 64


@given(st.lists(st.integers(-10, 10**13), max_size=40), st.integers(1, 5))
def test_how_many_are_counted_at_once_makes_no_difference(values: list[int], at_once: int) -> None:
    some = delays_of(values, pending_max=at_once)
    assert (some.count, some.max_us) == (len(values), max([0, *values]))
    for percent in (0, 1, 50, 99, 100):
        assert some.percentile_us(percent) == delays_of(values).percentile_us(percent)


def test_the_longest_delay_is_exact() -> None:
    delays = delays_of([3, 1_000_003, 7])
    assert (delays.max_us, delays.percentile_us(100), delays.count) == (1_000_003, 1_000_003, 3)


def test_nothing_counted_has_no_delay() -> None:
    assert Delays().percentile_us(99) == 0


@pytest.mark.parametrize("delay_us", [-5, LARGEST_US + 10**15])
def test_delays_out_of_range_are_counted_at_its_ends(delay_us: int) -> None:
    delays = delays_of([delay_us])
    assert delays.count == 1
    assert delays.percentile_us(50) == (0 if delay_us < 0 else LARGEST_US)
