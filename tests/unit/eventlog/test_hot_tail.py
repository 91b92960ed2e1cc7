from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.eventlog import hot_tail as recent_module
from jetstream.eventlog.hot_tail import Recent
from jetstream.model.batch import Batch, memory_bytes
from jetstream.model.event import Event

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


def large(size: int) -> Event:
    """Return an event whose text takes `size` bytes, all of them in one of three values."""
    did, rkey, body = [(b"d" * size, b"", b""), (b"", b"k" * size, b""), (b"", b"", b"x" * size)][size % 3]
    return Event(b"c", did, b"a.b.c", rkey, b"r", b"", body)


def batches_of(recent: Recent, stop: int) -> list[Batch]:
    """Read all that there is."""
    batches, position = [], recent.start
    while (batch := recent.at(position, stop)) is not None:
        batches.append(batch)
        position = batch.last + 1
    return batches


@given(st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=20), min_size=1, max_size=20))
def test_memory_and_batches_are_bounded_whatever_the_sizes(appended: list[list[int]]) -> None:
    stop = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_module, "BYTES_MAX", 40_000)
        patch.setattr(recent_module, "BATCH_BYTES", 2_000)
        recent = Recent(0)
        for sizes in appended:
            recent.append(Batch.of(list(map(large, sizes)), range(stop, stop + len(sizes))))
            stop += len(sizes)
        batches = batches_of(recent, stop)
    assert [time for batch in batches for time in batch.times] == list(range(recent.start, stop))
    text_bytes = sum(batch.text_bytes() for batch in batches)
    assert recent.memory_bytes == memory_bytes(sum(map(len, batches)), text_bytes)
    assert len(batches) == 1 or recent.memory_bytes <= 40_000
    assert all(len(batch) == 1 or batch.text_bytes() <= 2_000 for batch in batches)


def test_what_is_forgotten_takes_no_room() -> None:
    recent = Recent(0)
    for time in range(3):
        made = Event(b"c", b"did:plc:%d" % time, b"a.b.c", b"k", b"r", b"", b"x" * 600_000)
        recent.append(Batch.of([made], [time]))
    before = recent.memory_bytes
    recent.forget({b"did:plc:1": 10})
    assert recent.memory_bytes < before * 0.7
    assert [batch.times for batch in batches_of(recent, 3)] == [[0], [2]]
