from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from jetstream.eventlog.hot_tail import HotTail
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch, memory_bytes
from jetstream.model.event import Event

BatchOf = Callable[[range], Batch]


def test_a_reader_at_the_tip_is_given_the_batch_that_grows(batch_of: BatchOf) -> None:
    hot_tail = HotTail(1)
    hot_tail.append(batch_of(range(1, 4)))
    growing = hot_tail.at(1, 4)
    hot_tail.append(batch_of(range(4, 6)))
    assert growing is not None
    assert growing is hot_tail.at(5, 6)
    assert growing.times == [1, 2, 3, 4, 5]


def test_the_appended_batch_itself_is_left_alone(batch_of: BatchOf) -> None:
    hot_tail, first = HotTail(1), batch_of(range(1, 4))
    hot_tail.append(first)
    hot_tail.append(batch_of(range(4, 6)))
    assert first.times == [1, 2, 3]


def test_a_full_batch_is_followed_by_a_new_one(batch_of: BatchOf) -> None:
    hot_tail = HotTail(0)
    hot_tail.append(batch_of(range(1000)))
    hot_tail.append(batch_of(range(1000, 1001)))
    first, second = hot_tail.at(999, 2000), hot_tail.at(1000, 2000)
    assert first is not None
    assert second is not None
    assert (first.last, second.first) == (999, 1000)


def test_nothing_at_or_after_stop_is_given(batch_of: BatchOf) -> None:
    hot_tail = HotTail(0)
    hot_tail.append(batch_of(range(0, 100, 10)))
    assert hot_tail.at(11, 20) is None
    assert hot_tail.at(11, 21) is not None
    assert hot_tail.at(91, 1000) is None


def test_the_oldest_make_room_by_count(batch_of: BatchOf) -> None:
    hot_tail = HotTail(0, LogLimits(hot_tail_events=2_500))
    for start in range(0, 4000, 500):
        hot_tail.append(batch_of(range(start, start + 500)))
    assert hot_tail.start == 2000
    oldest = hot_tail.at(hot_tail.start, 4000)
    assert oldest is not None
    assert oldest.first == 2000


def test_the_oldest_make_room_by_bytes_but_the_newest_stays() -> None:
    hot_tail = HotTail(0, LogLimits(hot_tail_bytes=10_000))
    large = Event(b"c", b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * 20)
    for start in range(0, 3000, 1000):
        hot_tail.append(Batch.of([large] * 1000, range(start, start + 1000)))
    assert hot_tail.start == 2000
    assert hot_tail.at(2000, 3000) is not None


def test_batches_below_a_position_are_dropped_whole(batch_of: BatchOf) -> None:
    hot_tail = HotTail(0)
    hot_tail.append(batch_of(range(1000)))
    hot_tail.append(batch_of(range(1000, 2000)))
    hot_tail.drop_before(1000)
    assert hot_tail.start == 1000
    hot_tail.drop_before(1500)
    assert hot_tail.start == 1000


def large(size: int) -> Event:
    """Return an event whose text takes `size` bytes, all of them in one of three values."""
    did, rkey, body = [(b"d" * size, b"", b""), (b"", b"k" * size, b""), (b"", b"", b"x" * size)][size % 3]
    return Event(b"c", did, b"a.b.c", rkey, b"r", b"", body)


def batches_of(hot_tail: HotTail, stop: int) -> list[Batch]:
    """Read all that there is."""
    batches, position = [], hot_tail.start
    while (batch := hot_tail.at(position, stop)) is not None:
        batches.append(batch)
        position = batch.last + 1
    return batches


@given(st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=20), min_size=1, max_size=20))
def test_memory_and_batches_are_bounded_whatever_the_sizes(appended: list[list[int]]) -> None:
    stop = 0
    hot_tail = HotTail(0, LogLimits(hot_tail_bytes=40_000, batch_bytes=2_000))
    for sizes in appended:
        hot_tail.append(Batch.of(list(map(large, sizes)), range(stop, stop + len(sizes))))
        stop += len(sizes)
    batches = batches_of(hot_tail, stop)
    assert [time for batch in batches for time in batch.times] == list(range(hot_tail.start, stop))
    text_bytes = sum(batch.text_bytes() for batch in batches)
    assert hot_tail.memory_bytes == memory_bytes(sum(map(len, batches)), text_bytes)
    assert len(batches) == 1 or hot_tail.memory_bytes <= 40_000
    assert all(len(batch) == 1 or batch.text_bytes() <= 2_000 for batch in batches)


def test_what_is_erased_takes_no_room() -> None:
    hot_tail = HotTail(0)
    for time in range(3):
        made = Event(b"c", b"did:plc:%d" % time, b"a.b.c", b"k", b"r", b"", b"x" * 600_000)
        hot_tail.append(Batch.of([made], [time]))
    before = hot_tail.memory_bytes
    hot_tail.erase({b"did:plc:1": 10})
    assert hot_tail.memory_bytes < before * 0.7
    assert [batch.times for batch in batches_of(hot_tail, 3)] == [[0], [2]]
