from __future__ import annotations

import pytest

from jetstream.client.message import Mark, Message
from jetstream.client.progress import Progress


class Store:
    """A store in memory."""

    def __init__(self) -> None:
        self.saved: list[int] = []
        self.fails = False

    def load(self) -> int | None:
        return self.saved[-1] if self.saved else None

    def save(self, cursor: int) -> None:
        if self.fails:
            raise OSError("full")
        self.saved.append(cursor)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def event(time_us: int) -> Message:
    return Message.parse(b'{"time_us":%d}' % time_us)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(store: Store, clock: Clock) -> Progress:
    return Progress(store, save_every_s=1.0, clock=clock)


def test_an_event_is_done_when_the_reader_says_so_and_not_before(progress: Progress, store: Store) -> None:
    progress.take(event(10))
    assert (progress.position, store.saved) == (None, [])
    progress.done()
    assert (progress.position, store.saved) == (11, [11])


def test_saves_are_a_second_apart(progress: Progress, store: Store, clock: Clock) -> None:
    for step in range(30):
        progress.take(event(step))
        progress.done()
        clock.now += 0.125
    assert store.saved == [1, 9, 17, 25]
    progress.save()
    assert store.saved == [1, 9, 17, 25, 30]


def test_the_same_position_is_saved_once(progress: Progress, store: Store, clock: Clock) -> None:
    progress.take(event(1))
    for _ in range(3):
        progress.done()
        progress.save()
        clock.now += 5
    assert store.saved == [2]


def test_a_mark_moves_the_position_and_says_whether_it_is_live(progress: Progress, store: Store) -> None:
    assert progress.take(Mark(50, live=True)) is None
    assert (progress.position, progress.live) == (50, True)
    progress.take(Mark(40, live=False))  # another server
    assert (progress.position, progress.live) == (40, False)
    progress.save_if_due()
    assert store.saved == [40]


def test_it_says_when_the_position_must_be_saved(progress: Progress, clock: Clock) -> None:
    assert progress.unsaved_s is None
    for time_us in (1, 2):
        progress.take(event(time_us))
        progress.done()
    clock.now += 0.25
    assert progress.unsaved_s == 0.75
    clock.now += 5
    assert progress.unsaved_s == 0.0
    progress.save()
    assert progress.unsaved_s is None


def test_a_save_that_fails_is_tried_again_at_once(progress: Progress, store: Store) -> None:
    store.fails = True
    progress.take(event(1))
    with pytest.raises(OSError, match="full"):
        progress.done()
    store.fails = False
    progress.done()
    assert store.saved == [2]


def test_a_position_that_a_restart_would_reach_by_its_rewind_is_not_saved(store: Store, clock: Clock) -> None:
    progress = Progress(store, 100, stored=100, rewind_us=30, clock=clock)
    for time_us in (69, 99, 100, 80, 110, 70):
        progress.take(event(time_us))
        progress.done()
        progress.save()
    assert store.saved == [101, 111, 71]


def test_without_a_store_it_has_a_position_only() -> None:
    progress = Progress(position=5)
    assert (progress.position, progress.saves, progress.unsaved_s) == (5, False, None)
    progress.take(event(9))
    progress.done()
    progress.save()
    assert progress.position == 10
