"""When the process that writes a log in a database counts as gone."""

from __future__ import annotations

import pytest

from jetstream.eventlog.postgresql.leader_watch import LeaderWatch
from jetstream.eventlog.watermark import beat_after

GONE_S = 5.0


class World:
    """A leader that is watched, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = LeaderWatch(GONE_S, lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def world() -> World:
    """Return a leader that lives."""
    world = World()
    for beat in 1, 2:
        world.watch.look(beat, 0)
    return world


def test_a_leader_is_gone_when_neither_its_heartbeat_nor_the_log_changes(world: World) -> None:
    watch = world.watch
    world.wait(GONE_S)
    assert (watch.is_alive, watch.silent_s, watch.reason) == (True, GONE_S, None)
    world.wait(1.0)
    watch.look(2, 0)
    assert not watch.is_alive
    assert "has written nothing for 6 s" in str(watch.reason)
    watch.look(3, 0)
    assert (watch.is_alive, watch.silent_s) == (True, 0.0)
    for newest in 7, 8:
        world.wait(GONE_S)
        watch.note(newest)
    assert (watch.is_alive, watch.silent_s) == (True, 0.0)


@pytest.mark.parametrize("seen", [1, 2, 3, 4])
def test_a_leader_lives_whose_watermark_stands_still_however_often_one_looks(seen: int) -> None:
    """As that of a mirror does whose upstream is silent. Edges see every second heartbeat, or so."""
    world, beat = World(), 0
    for number in range(40):
        beat = beat_after(beat, 1_700_000_000_000_000)
        world.wait(0.5)
        if number % seen == 0:
            world.watch.look(beat, 0)
            assert world.watch.reason is None
    assert world.watch.is_alive


def test_a_heartbeat_that_was_never_seen_to_change_says_nothing_until_that_has_lasted() -> None:
    world = World()
    world.watch.look(7, 0)  # of a process that may be gone
    assert (world.watch.is_alive, world.watch.silent_s, world.watch.reason) == (False, None, None)
    world.wait(GONE_S + 1.0)
    world.watch.look(7, 0)
    assert world.watch.reason is not None


def test_the_watermark_is_known_to_a_reader_that_has_read_all_that_there_was_with_it(world: World) -> None:
    assert LeaderWatch(GONE_S, lambda: world.now).watermark(100) == 0
    world.watch.look(1_025, 50)
    assert [world.watch.watermark(tip) for tip in (0, 49, 50, 2_000)] == [0, 0, 1_024, 1_024]
    world.watch.look(770, 50)  # of a mirror that writes now
    assert world.watch.watermark(50) == 768


def test_an_outage_of_the_database_is_no_silence_of_the_leader(world: World) -> None:
    world.wait(1.0)
    world.wait(3_600.0)
    world.watch.excuse(3_600.0)
    assert (world.watch.is_alive, world.watch.silent_s, world.watch.reason) == (True, 1.0, None)
    world.wait(GONE_S)  # it has not come back with the database
    assert not world.watch.is_alive
    assert world.watch.reason is not None


def test_one_that_was_gone_before_an_outage_is_gone_after_it(world: World) -> None:
    world.wait(GONE_S + 1.0)
    world.wait(60.0)
    world.watch.excuse(60.0)
    assert (world.watch.is_alive, world.watch.silent_s) == (False, GONE_S + 1.0)


@pytest.mark.parametrize("lives", [True, False])
def test_no_more_is_excused_than_there_was(world: World, lives: bool) -> None:
    watch = world.watch if lives else LeaderWatch(GONE_S, lambda: world.now)
    world.wait(2.0)
    for _ in range(3):
        watch.excuse(50.0)
    assert watch.silent_s == (0.0 if lives else None)
    world.wait(GONE_S + 1.0)
    assert watch.reason == "the process that writes the log has written nothing for 6 s"
