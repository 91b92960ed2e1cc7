from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from tests.builders import event

from jetstream.clock import unix_us
from jetstream.conditions import Conditions
from jetstream.errors import NotStored
from jetstream.eventlog import UPSTREAM_GAP, Changes, Cursors, Gap, SourceCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.ingest import Ingest, Stamper
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING
from jetstream.upstream.pipeline import DecodedBatch
from jetstream.upstream.source import Store


def stamps(last: int, readings: list[int], sizes: list[int]) -> Iterator[list[int]]:
    clock = iter(readings)
    stamper = Stamper(last, lambda: next(clock))
    for size in sizes:
        yield stamper.stamp([event()] * size).times


def test_events_get_the_time_of_the_clock_one_microsecond_apart() -> None:
    assert list(stamps(0, [1_000, 2_000], [3, 2])) == [[1_000, 1_001, 1_002], [2_000, 2_001]]


def test_a_clock_that_steps_back_is_waited_for() -> None:
    assert list(stamps(0, [1_000, 400, 400, 5_000], [2, 1, 2, 1])) == [
        [1_000, 1_001],
        [1_002],
        [1_003, 1_004],
        [5_000],
    ]


def test_a_clock_that_stands_still_is_passed() -> None:
    assert list(stamps(0, [7, 7, 7], [1, 1, 1])) == [[7], [8], [9]]


def test_times_go_on_above_those_of_a_former_process() -> None:
    assert list(stamps(9_000, [1_000, 10_000], [1, 1])) == [[9_001], [10_000]]


def test_no_events_use_no_time() -> None:
    assert list(stamps(9_000, [1_000, 1_000], [0, 1])) == [[], [9_001]]


def test_events_keep_their_order() -> None:
    events = [event(rkey=str(number)) for number in range(5)]
    batch = Stamper(0, lambda: 1).stamp(events)

    assert [batch.event(index) for index in range(5)] == events


@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 5)), max_size=20))
def test_times_rise_strictly_and_run_ahead_only_as_far_as_they_must(
    last: int, steps: list[tuple[int, int]]
) -> None:
    expected: list[list[int]] = []
    newest = last
    for reading, size in steps:
        expected.append([])
        for _ in range(size):
            newest = max(newest + 1, reading)
            expected[-1].append(newest)

    assert list(stamps(last, [reading for reading, _ in steps], [size for _, size in steps])) == expected


def test_no_time_below_a_promised_one_is_given_though_the_clock_is_set_back() -> None:
    clock = iter([1_000, 400, 400, 2_000, 2_000])
    stamper = Stamper(0, lambda: next(clock))
    assert stamper.promise() == 1_000
    assert stamper.promise() == 1_000
    assert stamper.stamp([event()] * 2).times == [1_000, 1_001]
    assert stamper.promise() == 2_000
    assert stamper.stamp([event()]).times == [2_000]


# What is stored


async def store(log: SqliteLog, taken: DecodedBatch, received_at: float = 0.0) -> None:
    ingest = Ingest(log, Stamper(log.tip, unix_us), Metrics(), Conditions())
    await ingest.join("relay.example:443")(taken, received_at)


async def test_events_and_cursors_are_stored_and_followers_are_waited_for(log: SqliteLog) -> None:
    follower = log.followers.join(log.tip + 1)
    storing = asyncio.create_task(store(log, DecodedBatch([event()], 1), 10.0))
    await log.wait(1)
    assert not storing.done()
    follower.advance(log.tip + 1)
    await storing
    for taken in (DecodedBatch(seq=2), DecodedBatch(seq=2), DecodedBatch()):
        await store(log, taken)  # nothing to deliver: nothing to wait for
    assert log.cursors == {"relay.example:443": SourceCursor(2)}
    assert list(follower.appended) == [(log.tip, 10.0)]


async def test_storing_gives_the_loop_a_turn_though_there_is_nothing_to_store(log: SqliteLog) -> None:
    """Upstream, with frames waiting that give no events, would have the loop to itself."""
    for seq in (1, 1, None):
        task = asyncio.create_task(store(log, DecodedBatch(seq=seq)))
        await asyncio.sleep(0)
        assert not task.done()
        await task


async def test_the_time_of_each_commit_is_observed(log: SqliteLog) -> None:
    metrics = Metrics()
    ingest = Ingest(
        log, Stamper(log.tip, unix_us), metrics, Conditions(), iter([1.0, 1.25, 5.0, 5.5]).__next__
    )
    store = ingest.join("relay.example:443")
    for seq in 1, 2:
        await store(DecodedBatch([event()], seq), 0.0)
    samples = {each.name: each.value for metric in metrics.commit.collect() for each in metric.samples}
    assert samples["jetstream_commit_seconds_count"] == 2
    assert samples["jetstream_commit_seconds_sum"] == 0.75


async def test_an_unknown_error_of_the_log_is_one_that_ends_the_server() -> None:
    """What the log has of the batch is not known: to go on could lose events, or store some twice."""

    class Broken:
        tip = 0
        cursors: ClassVar[Cursors] = {}

        async def append(self, *_: object) -> None:
            raise KeyError("a bug")

    ingest = Ingest(cast(SqliteLog, Broken()), Stamper(0, unix_us), Metrics(), Conditions())
    with capture_logs() as lines:
        for store in (ingest.join("a")(DecodedBatch([event()], 1), 0.0), ingest.report_gap(1, 2)):
            with pytest.raises(NotStored, match="a batch was not stored: KeyError"):
                await store
    assert [line["exc_info"] for line in lines] == [True, True]


# Several sources


def joined(log: SqliteLog, *sources: str) -> tuple[Ingest, list[Store]]:
    ingest = Ingest(log, Stamper(log.tip, unix_us), Metrics(), Conditions())
    return ingest, [ingest.join(source) for source in sources]


async def test_each_append_has_the_cursors_of_all_sources(log: SqliteLog) -> None:
    cursors = {"a": SourceCursor(1), "old": SourceCursor(2), "c": SourceCursor(3)}
    await log.append(Batch.of((), ()), Changes(cursors))
    _, (a, b, _c) = joined(log, "a", "b", "c")
    await b(DecodedBatch([event()], 20), 0.0)
    assert log.cursors == {"a": SourceCursor(1), "b": SourceCursor(20), "c": SourceCursor(3)}
    await a(DecodedBatch(seq=10), 0.0)
    assert log.cursors == {"a": SourceCursor(10), "b": SourceCursor(20), "c": SourceCursor(3)}


async def test_batches_of_several_sources_at_once_are_stored_one_after_another(log: SqliteLog) -> None:
    sources = [f"s{number}" for number in range(20)]
    _, stores = joined(log, *sources)
    for seq in 1, 2, 3:
        await asyncio.gather(*(store(DecodedBatch([event()] * 5, seq), 0.0) for store in stores))
    assert log.cursors == dict.fromkeys(sources, SourceCursor(3))
    assert log.statistics().events == 300


class Slow:
    """A log whose appends wait until the test lets them begin."""

    def __init__(self, log: SqliteLog) -> None:
        self.log = log
        self.waiting = 0
        self.go = asyncio.Event()
        self.followers = log.followers
        self.tip = log.tip

    @property
    def cursors(self) -> Cursors:
        return self.log.cursors

    async def append(self, batch: Batch, changes: Changes, received_at: float | None = None) -> None:
        self.waiting += 1
        await self.go.wait()
        await self.log.append(batch, changes, received_at)


async def test_a_cursor_is_not_stored_before_its_events(log: SqliteLog) -> None:
    slow = Slow(log)
    _, (a, b) = joined(cast(SqliteLog, slow), "a", "b")
    first = asyncio.ensure_future(a(DecodedBatch([event()], 10), 0.0))
    second = asyncio.ensure_future(b(DecodedBatch([event()], 20), 0.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert slow.waiting == 1
    first.cancel()  # the source is removed, or replaced, and its batch is not stored
    slow.go.set()
    await second
    assert log.cursors == {"b": SourceCursor(20)}
    assert log.statistics().events == 1


async def test_nothing_is_stored_below_what_was_the_next_position(log: SqliteLog) -> None:
    now_us, slow = 1_000, Slow(log)
    ingest = Ingest(cast(SqliteLog, slow), Stamper(0, lambda: now_us), Metrics(), Conditions())
    a, b = ingest.join("a"), ingest.join("b")
    assert ingest.next_position() == 1_000
    first = asyncio.ensure_future(a(DecodedBatch([event()] * 2, 10), 0.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    now_us = 5_000
    assert ingest.next_position() == 1_000  # it is being stored
    first.cancel()
    await asyncio.wait([first])
    assert ingest.next_position() == 1_000  # an append that was cancelled may be stored all the same
    slow.go.set()
    await b(DecodedBatch([event()], 20), 0.0)
    assert log.tip == 5_000
    now_us = 400
    assert ingest.next_position() == 5_001
    await a(DecodedBatch([event()], 11), 0.0)
    assert log.tip == 5_001
    now_us = 9_000
    await a(DecodedBatch(seq=12), 0.0)  # a cursor, and no event
    assert ingest.next_position() == 9_000


async def test_the_cursors_of_sources_that_are_removed_are_forgotten_at_once(log: SqliteLog) -> None:
    ingest, (a, b, _c) = joined(log, "a", "b", "c")
    await a(DecodedBatch([event()], 10), 0.0)
    await b(DecodedBatch([event()], 20), 0.0)
    await ingest.forget(["a", "c"])
    assert log.cursors == {"b": SourceCursor(20)}
    await ingest.forget(["c"])
    assert (log.cursors, log.statistics().events) == ({"b": SourceCursor(20)}, 2)
    again = ingest.join("a")
    await b(DecodedBatch(seq=21), 0.0)
    await again(DecodedBatch(seq=1), 0.0)
    assert log.cursors == {"b": SourceCursor(21), "a": SourceCursor(1)}


async def test_the_cursor_of_a_source_that_is_not_in_use_goes(log: SqliteLog) -> None:
    await log.append(Batch.of((), ()), Changes({"old:443": SourceCursor(9), "older:443": SourceCursor(7)}))
    await store(log, DecodedBatch([event()], 1))
    assert log.cursors == {"relay.example:443": SourceCursor(1)}


# What has positions already


async def test_events_that_have_positions_keep_them_and_the_last_one_is_the_cursor(log: SqliteLog) -> None:
    ingest = Ingest(log, Stamper(log.tip, unix_us), Metrics(), Conditions())
    store_stamped = ingest.mirror("a")
    await store_stamped(Batch.of([event(), event()], [5, 9]), 0.0)
    await store_stamped(Batch.of([], []), 0.0)
    assert (log.tip, log.cursors) == (9, {"a": SourceCursor(9)})
    batch = await log.read(0, 10, EVERYTHING)
    assert batch is not None
    assert batch.times == [5, 9]


async def test_a_gap_of_upstream_is_stored_beside_the_cursors(log: SqliteLog) -> None:
    ingest = Ingest(log, Stamper(log.tip, unix_us), Metrics(), Conditions())
    await ingest.mirror("a")(Batch.of([event()], [5]), 0.0)
    await ingest.report_gap(5, 12)
    await ingest.report_gap(5, 12)
    assert await log.gaps(0, 10) == [Gap(12, "", "5", "12", UPSTREAM_GAP)]
    assert (log.tip, log.cursors) == (5, {"a": SourceCursor(5)})
