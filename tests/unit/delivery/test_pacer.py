"""The pacer by itself: durations in, decisions out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.delivery.pacer import Pacer
from jetstream.limits import DeliveryLimits

LIMITS = DeliveryLimits()
EXACT = replace(LIMITS, timer_s=0.0)  # every pause is slept, however short
LIGHT = 0.00001


def pause_s(
    events: int, worked_s: float, written: int, behind: int = 0, lanes: int = 1, storing_s: float = 0.0
) -> float:
    """Return the pause after one flush."""
    pacer = Pacer(EXACT)
    pacer.paused(0.0, storing_s)
    pacer.flushed(events, worked_s, written, behind, lanes)
    return pacer.due_s


@given(
    st.integers(1, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(1, LIMITS.lanes_max),
)
def test_pauses_are_fair_and_bounded(
    events: int, worked_s: float, storing_s: float, written: int, behind: int, lanes: int
) -> None:
    """What one flush pauses, in a round of one of each lane, all of them alike."""
    alone = pause_s(events, worked_s, written, 0, lanes, storing_s)
    assert alone == 0 if events >= 200 else alone * lanes >= 0.001
    assert alone <= 0.02
    together = pause_s(events, worked_s, written, behind, lanes, storing_s)
    assert alone <= together <= max(alone, 0.02 / lanes)
    if together * lanes < 0.02:  # each reader gets at least twice what was taken from it
        assert together * lanes * max(written, 1) >= 2 * (worked_s + storing_s) * behind * 0.999


def test_a_pause_is_a_third_of_the_flush_so_that_flushing_takes_three_quarters_of_the_time() -> None:
    for worked_s in (0.004, 0.01, 0.05):
        assert worked_s / (worked_s + pause_s(1, worked_s, 1_000)) == pytest.approx(0.735, abs=0.005)


def test_storing_counts_as_taken_from_readers_once() -> None:
    pacer = Pacer(EXACT)
    pacer.paused(0.0, 0.001)
    pacer.flushed(1_000, 0.0, 100, 100, 1)
    assert pacer.due_s == pytest.approx(0.002)
    pacer.flushed(1_000, 0.0, 100, 100, 1)
    assert pacer.due_s == pytest.approx(0.002)


def test_lanes_are_flushed_until_they_took_half_of_the_last_pause() -> None:
    pacer = Pacer()
    assert not pacer.flush_more
    pacer.paused(0.008, 0.002)
    for worked_s, more in ((0.0, True), (0.0049, True), (0.0002, False)):
        pacer.flushed(1, worked_s, 1, 0, 4)
        assert pacer.flush_more is more
    pacer.paused(0.0, 0.0)
    assert not pacer.flush_more


def test_the_loop_gets_a_turn_before_another_lane_once_lanes_took_a_millisecond() -> None:
    """A flush may hold the loop for four: five in all is the most."""
    pacer = Pacer()
    pacer.flushed(1, 0.001, 1, 0, 4)
    assert not pacer.turn_over
    pacer.flushed(1, LIGHT, 1, 0, 4)
    assert pacer.turn_over
    pacer.paused(0.0, 0.0)
    assert not pacer.turn_over


def test_short_pauses_add_up_until_a_timer_can_sleep_them() -> None:
    """Also when each sleep takes half a millisecond longer than it should."""
    pacer, slept, now = Pacer(), list[float](), 0.0
    for _ in range(1_000):
        pacer.flushed(1, LIGHT, 1, 0, 1)  # the least pause: a millisecond
        pacer.flushed(1, LIGHT, 1, 0, 10)  # and a tenth
        slept.append(pacer.due_s)
        took_s = pacer.due_s + 0.0005 if pacer.due_s else 0.0
        now += took_s
        pacer.paused(took_s, 0.0)
    assert all(seconds == 0 or seconds >= 0.001 for seconds in slept)
    assert now == pytest.approx(1.1, abs=0.002)


def test_a_sleep_that_was_far_too_long_is_not_made_up_for() -> None:
    pacer, slept = Pacer(), list[float]()
    for _ in range(3):
        pacer.flushed(1, 0.002 / 0.36, 1, 0, 1)
        slept.append(pacer.due_s)
        pacer.paused(10.0, 0.0)
    assert slept == pytest.approx([0.002, 0.001, 0.001])
