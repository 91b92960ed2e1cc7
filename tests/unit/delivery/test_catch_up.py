"""Readers behind the tip: what they are sent, and how they share the loop and the memory."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace

import pytest
from tests.unit.delivery.fakes import (
    BATCH_EVENTS,
    LIMITS,
    STEP_US,
    THING,
    FakeSink,
    flushed,
    join,
    served,
    steps,
    until,
)

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.subscriber import Close, SubscriberOptions
from jetstream.model.batch import Batch
from jetstream.model.filter import DIDS_PER_STEP, Filter

NOBODY = SubscriberOptions(Filter(dids=frozenset({b"did:plc:nobody"})))
ONE_REPO = SubscriberOptions(Filter(dids=frozenset({b"did:plc:repo1"})))
RARE = SubscriberOptions(Filter(dids=frozenset({b"did:plc:repo0"}), collections=frozenset({THING})))


async def test_one_reader_that_is_behind_has_chunks_in_a_turn() -> None:
    """However many there are: those at the tip wait for a few chunks, not for a few of each."""
    turn, writers = 0, dict[int, list[FakeSink]]()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def note_turn(sink: FakeSink) -> None:
        writers.setdefault(turn, []).append(sink)

    async with served(events=100) as (delivery, _):
        counting = asyncio.create_task(count_turns())
        readers = [join(delivery, 1, on_write=note_turn) for _ in range(20)]
        leaving = [join(delivery, 1, on_write=note_turn) for _ in range(20)]
        await asyncio.sleep(0)
        for subscriber, _ in leaving:
            delivery.remove(subscriber)
        await until(lambda: all(subscriber.group for subscriber, _ in readers))
        counting.cancel()
    assert len(writers) >= 20
    assert all(len(set(sinks)) == 1 for sinks in writers.values())
    assert all(sink.times() == steps(1, 101) for _, sink in readers)


async def test_a_reader_has_five_chunks_in_its_turn() -> None:
    """Of a batch that has more: a millisecond of rendering, when nobody else has read it."""
    async with served(limits=replace(LIMITS, chunk_events=2)) as (delivery, log):
        log.grow(BATCH_EVENTS)
        await until(lambda: delivery.position > log.tip)
        subscriber, sink = join(delivery, 1)
        await until(lambda: sink.writes)
        assert len(sink.writes) == 5
        await until(lambda: subscriber.group)
        assert sink.times() == steps(1, BATCH_EVENTS + 1)
    assert LIMITS.chunks_per_turn * LIMITS.chunk_events == 1_000


async def test_a_reader_behind_has_no_more_chunks_once_its_socket_is_full() -> None:
    async with served(events=100) as (delivery, _):
        _, sink = join(delivery, 1, limit=8)  # an eighth of it while behind: full with any chunk
        await until(lambda: sink.writes)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sink.full
        assert len(sink.writes) == 1


async def test_only_those_who_do_not_wait_for_their_socket_count_as_catching_up() -> None:
    async with served(events=100) as (delivery, log):
        log.patience = 3
        catch_up = delivery._catch_up
        _, sink = join(delivery, 1, limit=8)
        await until(lambda: log.reads)
        assert (catch_up.active, len(sink.messages())) == (1, 0)
        await until(lambda: sink.full)
        await asyncio.sleep(0)
        assert catch_up.active == 0
        gone, _ = join(delivery, 1)
        await until(lambda: catch_up.active)
        delivery.remove(gone)
        await until(lambda: not catch_up.active)


async def test_a_cursor_among_events_not_published_yet_waits_for_them() -> None:
    async with served(events=20) as (delivery, log):
        log.grow(5)
        cursor = 23 * STEP_US
        assert delivery.position < cursor
        subscriber, sink = join(delivery, cursor)
        await until(lambda: subscriber.group)
        log.grow(1)
        await until(lambda: len(sink.messages()) == 4)
    assert sink.times() == steps(23, 27)


async def test_options_that_change_during_a_read_judge_what_it_passed_over() -> None:
    async with served(events=20) as (delivery, log):
        log.patience = 5
        subscriber, sink = join(delivery, 1, options=NOBODY)
        await until(lambda: log.reads)
        delivery.change(subscriber, SubscriberOptions())
        await until(lambda: subscriber.group)
    assert sink.times() == steps(1, 21)


async def test_options_that_change_while_a_chunk_is_due_judge_what_it_passed_over() -> None:
    async with served(events=5 * BATCH_EVENTS) as (delivery, log):
        # Only the last batch has what the old options want: so that is the one which was read.
        log.batches[:-1] = map(_without_rare, log.batches[:-1])
        subscriber, sink = join(delivery, 1, options=RARE)
        await until(lambda: delivery._catch_up._turns)
        delivery.change(subscriber, SubscriberOptions())
        await until(lambda: subscriber.group)
    assert sink.times() == [time for batch in log.batches for time in batch.times]


def _without_rare(batch: Batch) -> Batch:
    kept = [i for i in range(len(batch)) if not RARE.wanted.select(batch, i, i + 1)]
    return Batch.of([batch.event(i) for i in kept], [batch.times[i] for i in kept])


async def test_a_log_that_cannot_be_read_ends_that_reader_alone() -> None:
    async with served(events=20) as (delivery, log):
        log.failure = OSError("the disk is on fire")
        _, sink = join(delivery, 1, options=ONE_REPO)
        _, healthy = join(delivery)
        await until(lambda: sink.closing)
        assert sink.close_seen == Close(1011, "error", "the server failed to read its log: connect again")
        log.grow(1)
        await until(healthy.messages)
    assert healthy.times() == steps(21, 22)


async def test_a_connection_that_is_gone_is_no_fault_of_the_log() -> None:
    async with served(events=20) as (delivery, _):
        subscriber, sink = join(delivery, 1)
        sink.lost = True
        feeder = delivery._catch_up._feeders[subscriber]
        await until(feeder.done)
        assert (sink.closing, feeder.exception()) == (False, None)


class Counted(Batch):
    """A batch that can be counted for as long as it is there."""


async def test_many_readers_at_as_many_places_hold_few_batches() -> None:
    held, most = set[int](), 0

    def copy(batch: Batch) -> Batch:
        """Return another batch for each read, as from a disk."""
        nonlocal most
        made = Counted.of([batch.event(i) for i in range(len(batch))], batch.times)
        held.add(id(made))
        weakref.finalize(made, held.discard, id(made))
        most = max(most, len(held))
        return made

    async with served(60 * BATCH_EVENTS, replace(LIMITS, held_batches=3)) as (delivery, log):
        log.patience, log.copy = 2, copy
        readers = [join(delivery, number * BATCH_EVENTS * STEP_US + 1) for number in range(50)]
        await until(lambda: all(subscriber.group for subscriber, _ in readers))
    for number, (_, sink) in enumerate(readers):
        assert sink.times() == steps(number * BATCH_EVENTS + 1, 60 * BATCH_EVENTS + 1)
    assert most <= 3 + 2  # one that was just read, and one that was just let go of


@pytest.mark.parametrize("places", [1, 10])
async def test_readers_of_one_batch_hold_it_once(places: int) -> None:
    """Else there would be less room after them, and in the end none."""
    async with served(10 * BATCH_EVENTS, replace(LIMITS, held_batches=2)) as (delivery, log):
        log.patience = 2
        starts = [number % places * BATCH_EVENTS + 1 for number in range(60)]
        readers = [join(delivery, start * STEP_US) for start in starts]
        await until(lambda: all(subscriber.group for subscriber, _ in readers))
        assert not delivery._catch_up._held
        assert delivery._catch_up._free._value == 2
    for start, (_, sink) in zip(starts, readers, strict=True):
        assert sink.times() == steps(start, 10 * BATCH_EVENTS + 1)


# Large filters


def large(repo: bytes) -> SubscriberOptions:
    """Return options that want one repo of those there are, and thousands of others."""
    others = {b"did:plc:other%d" % n for n in range(5 * DIDS_PER_STEP)}
    return SubscriberOptions(Filter(dids=frozenset({repo} | others)))


def indexed(delivery: Delivery) -> int:
    """Return how many groups are in the index, wholly or in part."""
    groups = delivery._lanes.lowest.groups
    named = {group for shard in groups._by_did for each in shard.values() for group in each}
    return len(named) + len(groups._everything)


async def test_a_large_filter_is_indexed_in_turns_and_misses_nothing() -> None:
    async with served(events=20) as (delivery, log):
        subscriber, sink = join(delivery, options=large(b"did:plc:repo1"))
        await until(lambda: indexed(delivery))
        log.grow(10)
        assert not subscriber.group
        await until(lambda: subscriber.group)
        log.grow(10)
        await until(lambda: len(sink.messages()) == 4)
        assert indexed(delivery) == 1
    assert sink.times() == [STEP_US * number for number in (21, 26, 31, 36)]


@pytest.mark.parametrize("other", [SubscriberOptions(), large(b"did:plc:repo2")])
async def test_a_filter_that_changes_while_it_is_indexed_leaves_nothing_behind(
    other: SubscriberOptions,
) -> None:
    async with served(events=20) as (delivery, log):
        subscriber, sink = join(delivery, options=large(b"did:plc:repo1"))
        await until(lambda: indexed(delivery))
        delivery.change(subscriber, other)
        await until(lambda: subscriber.group)
        log.grow(10)
        await flushed(delivery, log, subscriber)
        await until(lambda: indexed(delivery) == 1)
    assert sink.times() == (steps(21, 31) if other == SubscriberOptions() else steps(22, 31)[::5])


async def test_a_subscriber_that_leaves_while_its_filter_is_indexed_leaves_nothing_behind() -> None:
    async with served(events=20) as (delivery, _):
        subscriber, _ = join(delivery, options=large(b"did:plc:repo1"))
        await until(lambda: indexed(delivery))
        delivery.remove(subscriber)
        await until(lambda: not indexed(delivery))
