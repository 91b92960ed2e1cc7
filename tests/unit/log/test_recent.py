from __future__ import annotations

from collections.abc import Callable

import pytest

from jetstream.events import Batch, Event
from jetstream.log import recent as recent_module
from jetstream.log.recent import Recent

BatchOf = Callable[[range], Batch]


def test_a_reader_at_the_tip_is_given_the_batch_that_grows(batch_of: BatchOf) -> None:
    recent = Recent(1)
    recent.append(batch_of(range(1, 4)))
    growing = recent.at(1, 4)
    recent.append(batch_of(range(4, 6)))
    assert growing is not None
    assert growing is recent.at(5, 6)
    assert growing.times == [1, 2, 3, 4, 5]


def test_the_appended_batch_itself_is_left_alone(batch_of: BatchOf) -> None:
    recent, first = Recent(1), batch_of(range(1, 4))
    recent.append(first)
    recent.append(batch_of(range(4, 6)))
    assert first.times == [1, 2, 3]


def test_a_full_batch_is_followed_by_a_new_one(batch_of: BatchOf) -> None:
    recent = Recent(0)
    recent.append(batch_of(range(1000)))
    recent.append(batch_of(range(1000, 1001)))
    first, second = recent.at(999, 2000), recent.at(1000, 2000)
    assert first is not None
    assert second is not None
    assert (first.last, second.first) == (999, 1000)


def test_nothing_at_or_after_stop_is_given(batch_of: BatchOf) -> None:
    recent = Recent(0)
    recent.append(batch_of(range(0, 100, 10)))
    assert recent.at(11, 20) is None
    assert recent.at(11, 21) is not None
    assert recent.at(91, 1000) is None


def test_the_oldest_make_room_by_count(batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "EVENTS_MAX", 2500)
    recent = Recent(0)
    for start in range(0, 4000, 500):
        recent.append(batch_of(range(start, start + 500)))
    assert recent.start == 2000
    oldest = recent.at(recent.start, 4000)
    assert oldest is not None
    assert oldest.first == 2000


def test_the_oldest_make_room_by_bytes_but_the_newest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "BYTES_MAX", 10_000)
    recent = Recent(0)
    large = Event(b"c", b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * 20)
    for start in range(0, 3000, 1000):
        recent.append(Batch.of([large] * 1000, range(start, start + 1000)))
    assert recent.start == 2000
    assert recent.at(2000, 3000) is not None


def test_batches_below_a_position_are_dropped_whole(batch_of: BatchOf) -> None:
    recent = Recent(0)
    recent.append(batch_of(range(1000)))
    recent.append(batch_of(range(1000, 2000)))
    recent.drop_before(1000)
    assert recent.start == 1000
    recent.drop_before(1500)
    assert recent.start == 1000
