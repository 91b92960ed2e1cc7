"""How subscribers are spread over lanes. What is done with them is in `test_delivery`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.lanes import Lane, Lanes
from jetstream.limits import DeliveryLimits
from jetstream.steps import finish

LANES_MAX, LANE_SUBSCRIBERS = DeliveryLimits().lanes_max, DeliveryLimits().lane_subscribers


def fill(lanes: Lanes, count: int) -> list[Lane]:
    """Let so many subscribers in; return their lanes."""
    return [lanes.enter() for _ in range(count)]


@given(st.integers(0, 2 * LANES_MAX * LANE_SUBSCRIBERS))
def test_lanes_are_as_many_as_there_are_subscribers_for_and_alike(count: int) -> None:
    lanes = Lanes(1, finish, FeatureCache(1 << 20))
    entered = fill(lanes, count)
    assert len(lanes) == min(max(-(-count // LANE_SUBSCRIBERS), 1), LANES_MAX)
    sizes = [lane.subscribers for lane in dict.fromkeys(entered)]
    assert sum(sizes) == count
    if count >= LANES_MAX * LANE_SUBSCRIBERS:
        assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 3), max_size=30))
def test_the_next_position_is_that_of_the_lane_that_is_entered(moves: list[int]) -> None:
    lanes, position = Lanes(1, finish, FeatureCache(1 << 20), DeliveryLimits(lane_subscribers=1)), 1
    for move in moves:
        if move:
            position += move
            lanes.lowest.move(position)
        next_position = lanes.next_position
        assert lanes.enter().position == next_position


def test_a_lane_ends_with_its_last_subscriber_but_one_is_always_there() -> None:
    lanes = Lanes(1, finish, FeatureCache(1 << 20))
    entered = fill(lanes, 2 * LANE_SUBSCRIBERS)
    first, second = dict.fromkeys(entered)
    for lane in entered:
        if lane is second:
            lanes.leave(lane)
    assert len(lanes) == 1
    for _ in range(first.subscribers):
        lanes.leave(first)
    assert len(lanes) == 1
    assert lanes.enter() is first


def test_a_new_lane_begins_where_the_foremost_is() -> None:
    lanes = Lanes(1, finish, FeatureCache(1 << 20))
    first = fill(lanes, LANE_SUBSCRIBERS)[0]
    first.move(10)
    second = fill(lanes, LANE_SUBSCRIBERS)[0]
    second.move(20)
    assert lanes.lowest is first
    assert lanes.enter().position == 20
    assert (second.flushed_from, second.position) == (10, 20)
