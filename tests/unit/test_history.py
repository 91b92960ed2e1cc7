"""Rates, quantiles, and the history of an hour."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.history import Sample, Statistics, events_of, quantile

INF = float("inf")


def sample(at: float, **fields: Any) -> Sample:
    given: dict[str, Any] = {
        "events": {"create": 100 * at, "identity": at},
        "messages": 7 * at,
        "bytes": 70 * at,
        "frames": {"relay": int(50 * at)},
        "cpu_s": at / 4,
        "written_bytes": None,
        "delivery": [],
        "loop_delay": [],
    }
    return Sample(at=at, **given | fields)


def fed(*times: float, **limits: int) -> Statistics:
    statistics = Statistics(**limits)
    for at in times:
        statistics.add(sample(at), int(at * 1e6))
    return statistics


def test_there_are_no_rates_before_the_second_sample() -> None:
    assert fed().over(10) is None
    assert fed(5.0).over(10) is None
    assert fed().history() == {
        "step_s": 10,
        "end_us": None,
        "events_per_s": [],
        "messages_per_s": [],
        "subscribers": [],
        "lag_s": [],
        "loop_delay_p99_ms": [],
    }


@pytest.mark.parametrize(("times", "seconds"), [((0, 1, 2), 2), (range(30), 10), ((0, 25, 26), 26)])
def test_rates_are_of_the_last_seconds(times: Any, seconds: float) -> None:
    interval = fed(*map(float, times)).over(10)
    assert interval is not None
    assert interval.seconds == seconds
    assert interval.per_s(events_of) == pytest.approx(101)
    assert interval.per_s(lambda each: each.messages) == pytest.approx(7)
    assert interval.per_s(lambda each: each.frames.get("another")) is None


def test_samples_at_one_moment_make_no_interval() -> None:
    assert fed(5.0, 5.0).over(10) is None
    interval = fed(5.0, 5.1).over(0.1)
    assert interval is not None
    assert interval.seconds == pytest.approx(0.1)


def test_a_rate_over_a_minute_has_its_samples() -> None:
    interval = fed(*map(float, range(200))).over(60)
    assert interval is not None
    assert interval.seconds == 60


def test_the_history_has_a_value_for_each_step() -> None:
    history = fed(*(1000 + 1.04 * number for number in range(200))).history()
    assert history["end_us"] == 1_200_000_000
    assert history["events_per_s"] == pytest.approx([101.0] * 20)
    assert history["messages_per_s"] == pytest.approx([7.0] * 20)


def test_the_history_is_bounded() -> None:
    history = fed(*map(float, range(100)), step_s=1, steps_max=5).history()
    assert history["subscribers"] == [0] * 5


def test_steps_in_which_the_process_stood_still_are_not_known() -> None:
    history = fed(0.0, 5.0, 47.0, 50.0).history()
    assert history["events_per_s"] == [None, None, None, 101.0, 101.0]
    assert fed(0.0, 1e9).history()["lag_s"] == [None] * 360


def test_a_quantile_is_estimated_between_bounds() -> None:
    counts = [(0.001, 50.0), (0.01, 90.0), (0.1, 100.0), (INF, 100.0)]
    assert quantile(counts, 0.25) == pytest.approx(0.0005)
    assert quantile(counts, 0.5) == pytest.approx(0.001)
    assert quantile(counts, 0.7) == pytest.approx(0.0055)
    assert quantile(counts, 0.99) == pytest.approx(0.091)
    assert quantile([(0.1, 0.0), (INF, 3.0)], 0.99) == 0.1
    assert quantile([(0.1, 0.0), (INF, 0.0)], 0.99) is None
    assert quantile([], 0.5) is None


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_quantiles_rise_and_stay_within_the_bounds(counts: list[int], one: float, other: float) -> None:
    total, distribution = 0.0, []
    for bound, count in zip((0.1, 1.0, INF), counts, strict=True):
        total += count
        distribution.append((bound, total))
    low, high = sorted((one, other))
    first, second = quantile(distribution, low), quantile(distribution, high)
    if not total:
        assert first is second is None
    else:
        assert first is not None
        assert second is not None
        assert 0 <= first <= second + 1e-9 <= 1.0 + 1e-8


def test_quantiles_of_an_interval_are_of_what_came_in_it() -> None:
    statistics = Statistics()
    statistics.add(sample(0.0, loop_delay=[(0.001, 1000.0), (0.1, 1000.0), (INF, 1000.0)]), 0)
    statistics.add(sample(10.0, loop_delay=[(0.001, 1000.0), (0.1, 1010.0), (INF, 1010.0)]), 0)
    interval = statistics.over(10)
    assert interval is not None
    assert interval.quantile(lambda each: each.loop_delay, 0.5) == pytest.approx(0.0505)
    assert statistics.history()["loop_delay_p99_ms"] == [pytest.approx(99.01)]


def test_steps_are_numbered_by_the_monotonic_clock() -> None:
    assert fed(5.0).newest_step is None
    statistics = fed(1001.0, 1009.0, 1010.5)
    assert statistics.newest_step == 100
    statistics.add(sample(1045.0), now_us=0)  # the time of day was set back
    assert statistics.newest_step == 103
