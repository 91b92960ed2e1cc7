"""Readers behind the tip: what they are sent, and how they share the loop and the memory."""

from __future__ import annotations

import asyncio
import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.delivery.encodings import CLASSIC, COSTLY, CREATES, V1, message
from tests.unit.delivery.fakes import (
    BATCH_EVENTS,
    LANES,
    LIKE,
    LIMITS,
    SMALL,
    STEP_US,
    THING,
    UNBOUNDED,
    Clock,
    FakeSink,
    event,
    flushed,
    join,
    reading,
    served,
    steps,
    until,
)

from jetstream.delivery.catch_up import LIMIT_REACHED, UNTIL_REACHED
from jetstream.delivery.delivery import Delivery
from jetstream.delivery.subscriber import Bounds, Close, Encoding, SubscriberOptions
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.filter import DIDS_PER_STEP, Filter

NOBODY = SubscriberOptions(Filter(dids=DidSet({b"did:plc:nobody"})))
ONE_REPO = SubscriberOptions(Filter(dids=DidSet({b"did:plc:repo1"})))
RARE = SubscriberOptions(Filter(dids=DidSet({b"did:plc:repo0"}), collections=frozenset({THING})))


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


# Bounds


async def test_a_subscription_ends_before_until() -> None:
    async with served(events=40) as (delivery, _):
        subscriber, sink = join(delivery, 1, bounds=Bounds(205, None))
        await reading(lambda: sink.closing, sink)
        assert delivery.resume_at(subscriber) == 205
    assert sink.times() == steps(1, 21)
    assert sink.close_seen == UNTIL_REACHED


async def test_an_event_at_until_is_not_sent() -> None:
    async with served(events=40) as (delivery, _):
        subscriber, sink = join(delivery, 100, bounds=Bounds(200, None))
        await reading(lambda: sink.closing, sink)
        assert delivery.resume_at(subscriber) == 200
    assert sink.times() == steps(10, 20)


@pytest.mark.parametrize("cursor", [100, 401])
async def test_a_range_may_be_empty(cursor: int) -> None:
    async with served(events=40) as (delivery, _):
        subscriber, sink = join(delivery, cursor, bounds=Bounds(cursor, None))
        await reading(lambda: sink.closing, sink)
        assert delivery.resume_at(subscriber) == cursor
    assert (sink.messages(), sink.close_seen) == ([], UNTIL_REACHED)


@pytest.mark.parametrize("limit", [1, 7, 16, 40])
async def test_a_subscription_ends_at_its_limit(limit: int) -> None:
    async with served(events=40) as (delivery, _):
        subscriber, sink = join(delivery, 1, bounds=Bounds(None, limit))
        await reading(lambda: sink.closing, sink)
        assert delivery.resume_at(subscriber) == limit * STEP_US + 1
    assert sink.times() == steps(1, limit + 1)
    assert sink.close_seen == LIMIT_REACHED


async def test_bounds_hold_for_events_that_come_later() -> None:
    async with served(events=20) as (delivery, log):
        _, limited = join(delivery, bounds=Bounds(None, 5))
        _, timed = join(delivery, bounds=Bounds(235, None))
        for _ in range(20):
            log.grow(1)
            await until(lambda: delivery.position > log.tip)
        await reading(lambda: limited.closing and timed.closing, limited, timed)
    assert limited.times() == steps(21, 26)
    assert timed.times() == steps(21, 24)


@pytest.mark.parametrize("bounds", [(None, 20), (201, None)])
async def test_the_end_comes_when_all_before_it_has_left_the_buffer(
    bounds: tuple[int | None, int | None],
) -> None:
    async with served(events=20) as (delivery, _):
        _, sink = join(delivery, 1, bounds=Bounds(*bounds))
        await until(lambda: len(sink.messages()) == 20)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not sink.closing
        await reading(lambda: sink.closing, sink)


async def test_until_may_pass_without_an_event() -> None:
    async with served(events=20) as (delivery, log):
        subscriber, sink = join(delivery, 1, bounds=Bounds(1_000_000, None))
        behind, full = join(delivery, 1, limit=8, bounds=Bounds(1_000_000, None))
        await until(lambda: len(sink.messages()) == 20 and full.full)
        for watermark in (0, log.tip + 1, 999_999):
            log.watermark = watermark
            await delivery.check(0.0, ping=False)
            assert not sink.closing
        log.watermark = 1_000_000
        await delivery.check(0.0, ping=False)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not sink.closing  # before all has left the buffer
        sink.drain()
        await until(lambda: sink.closing)  # its feeder has waited for that
        assert sink.close_seen == UNTIL_REACHED
        assert delivery.resume_at(subscriber) == log.tip + 1
        assert not full.closing
        await reading(lambda: behind.position > log.tip, full)
        await delivery.check(0.0, ping=False)
        await until(lambda: full.closing)
        assert delivery.resume_at(behind) == log.tip + 1
    assert full.times() == sink.times() == steps(1, 21)


async def test_a_subscriber_with_bounds_is_live_at_the_tip() -> None:
    async with served(events=20) as (delivery, log):
        subscriber, sink = join(delivery, 1, limit=8_000, bounds=Bounds(None, 1_000), heartbeat_s=5)
        await reading(lambda: subscriber.live, sink)
        for _ in range(3):
            log.grow(1)
            await reading(lambda: subscriber.position > log.tip, sink)
        assert subscriber.live
        log.grow(50)
        await until(lambda: sink.full and not subscriber.live)
        await reading(lambda: subscriber.live, sink)
        assert subscriber.group is None
    assert sink.heartbeats() == [(200, True)]
    assert [time for time in sink.times() if time != 200] == [time for time in steps(1, 74) if time != 200]


@settings(max_examples=150)
@given(
    st.integers(0, 450),
    st.one_of(st.none(), st.integers(0, 400)),
    st.one_of(st.none(), st.integers(1, 60)),
    st.sampled_from(
        [
            SubscriberOptions(),
            SubscriberOptions(message_bytes_max=150),
            SubscriberOptions(Filter(collections=frozenset({LIKE}))),
            ONE_REPO,
        ]
    ),
    st.sampled_from([CLASSIC, V1, CREATES, COSTLY]),
    st.sampled_from([200, 2_000, UNBOUNDED]),
    st.integers(0, 3),
    st.booleans(),
)
def test_what_is_between_the_bounds_comes_once_and_the_rest_from_the_cursor_of_the_end(
    cursor: int,
    length: int | None,
    most: int | None,
    options: SubscriberOptions,
    encoding: Encoding,
    buffer: int,
    patience: int,
    small: bool,
) -> None:
    """With chunks of any size, other readers that share them, and events that come meanwhile."""
    stop = sys.maxsize if length is None else cursor + length

    async def play() -> None:
        async with served(40, SMALL if small else LIMITS) as (delivery, log):
            log.patience = patience
            arguments: dict[str, Any] = {"limit": buffer, "options": options, "encoding": encoding}
            others = [join(delivery, start, **arguments)[1] for start in (0, cursor)]
            subscriber, sink = join(
                delivery, cursor, bounds=Bounds(None if length is None else stop, most), **arguments
            )
            for _ in range(30):
                log.grow(2)
                for _ in range(1 + patience):
                    await asyncio.sleep(0)
            await reading(lambda: sink.closing or subscriber.position > log.tip, sink, *others)
            await reading(lambda: sink.closing or subscriber.live, sink, *others)
            whole = Batch.of([event(time // STEP_US) for time in log.times], log.times)
            wanted = _wanted(whole, options, encoding, min(cursor, 401), stop)
            if sink.closing:
                assert sink.close_seen in (LIMIT_REACHED, UNTIL_REACHED)
                rest = _wanted(whole, options, encoding, delivery.resume_at(subscriber), sys.maxsize)
                everything = _wanted(whole, options, encoding, min(cursor, 401), sys.maxsize)
                assert sink.times() + rest == everything
            else:
                assert len(wanted) < (most or sys.maxsize)
                assert stop > log.tip + 1
            assert sink.times() == wanted[:most]

    asyncio.run(play())


def _wanted(whole: Batch, options: SubscriberOptions, encoding: Encoding, start: int, stop: int) -> list[int]:
    chosen = options.wanted.select(whole, whole.index(start), whole.index(stop))
    sizes = {i: len(message(encoding, whole, i)) for i in chosen}
    most = options.message_bytes_max or sys.maxsize
    return [whole.times[i] for i in chosen if 0 < sizes[i] <= most]


# Large filters


def large(repo: bytes) -> SubscriberOptions:
    """Return options that want one repo of those there are, and thousands of others."""
    others = {b"did:plc:other%d" % n for n in range(5 * DIDS_PER_STEP)}
    return SubscriberOptions(Filter(dids=DidSet({repo} | others)))


def indexed(delivery: Delivery) -> int:
    """Return how many groups are in the index, wholly or in part."""
    groups = delivery._lanes.lowest.groups
    named = {group for shard in groups._by_did.shards for each in shard.values() for group in each}
    return len(named) + len(groups._parts.everything)


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


async def test_a_large_filter_that_many_return_with_is_indexed_once() -> None:
    options = large(b"did:plc:repo1")
    async with served(events=20) as (delivery, log):
        together = [join(delivery, options=options) for _ in range(5)]
        most = 0

        def at_tip() -> bool:
            nonlocal most
            most = max(most, indexed(delivery))
            return all(subscriber.group for subscriber, _ in together)

        await until(at_tip)
        assert most == 1
        log.grow(10)
        await until(lambda: all(len(sink.messages()) == 2 for _, sink in together))


def lists(delivery: Delivery) -> int:
    """Return how many lists are in the index, wholly or in part."""
    shards = delivery._lanes._lists.by_did.shards
    return len({listed for shard in shards for each in shard.values() for listed in each})


def beside(listed: DidSet, n: int) -> SubscriberOptions:
    """Return options with a list, and others than any other subscriber's."""
    return SubscriberOptions(Filter(listed=listed), 100_000 + n)


async def test_a_list_that_many_return_with_is_indexed_once_whatever_else_they_ask_for() -> None:
    listed = large(b"did:plc:repo1").wanted.dids
    async with served(events=20, limits=LANES) as (delivery, log):
        together = [join(delivery, options=beside(listed, n)) for n in range(5)]
        most = 0

        def at_tip() -> bool:
            nonlocal most
            most = max(most, lists(delivery))
            return all(subscriber.group for subscriber, _ in together)

        await until(lambda: lists(delivery))
        log.grow(10)
        await until(at_tip)
        assert most == 1
        log.grow(10)
        await flushed(delivery, log, *(subscriber for subscriber, _ in together))
        assert [sink.times() for _, sink in together] == [steps(21, 41)[::5]] * 5
        for subscriber, _ in together:
            delivery.remove(subscriber)
        await until(lambda: not lists(delivery))


async def test_others_index_a_list_whose_first_reader_leaves() -> None:
    listed = large(b"did:plc:repo1").wanted.dids
    async with served(events=20) as (delivery, log):
        first, *others = [join(delivery, options=beside(listed, n)) for n in range(3)]
        await until(lambda: lists(delivery))
        log.grow(10)
        delivery.remove(first[0])
        await until(lambda: all(subscriber.group for subscriber, _ in others))
        assert [sink.times() for _, sink in others] == [steps(21, 31)[::5]] * 2


async def test_others_index_a_large_filter_whose_first_reader_leaves() -> None:
    options = large(b"did:plc:repo1")
    async with served(events=20) as (delivery, log):
        first, *others = [join(delivery, options=options) for _ in range(3)]
        await until(lambda: indexed(delivery))
        log.grow(10)
        delivery.remove(first[0])
        await until(lambda: all(subscriber.group for subscriber, _ in others))
        assert all(sink.times() == [STEP_US * number for number in (21, 26)] for _, sink in others)


# Replays that are limited


class Budget:
    """A replay that may send nothing for some seconds after each run of chunks."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        self.charged: list[int] = []
        self.ends = 0

    def charge(self, size: int) -> float:
        self.charged.append(size)
        return self.pause_s

    def end(self) -> None:
        self.ends += 1


async def test_a_replay_pauses_as_its_budget_says_until_it_is_at_the_tip() -> None:
    clock, budget = Clock(), Budget(5.0)
    async with served(events=50, limits=SMALL, clock=clock, sleep=clock.sleep) as (delivery, log):
        reader, sink = join(delivery, 0, replay=budget)
        await until(lambda: reader.group is not None)
        assert clock.slept.count(5.0) == len(budget.charged) > 5
        assert sum(budget.charged) == sink.written
        assert (budget.ends, reader.replay) == (1, None)
        charged = len(budget.charged)
        log.grow(50)
        await flushed(delivery, log, reader)
        assert sink.times() == steps(1, 101)
        assert len(budget.charged) == charged


async def test_a_replay_that_needs_no_pause_has_none() -> None:
    clock, budget = Clock(), Budget(0.0)
    async with served(events=50, limits=SMALL, clock=clock, sleep=clock.sleep) as (delivery, _):
        reader, _ = join(delivery, 0, replay=budget)
        await until(lambda: reader.group is not None)
        assert not any(clock.slept)


async def test_a_replay_with_bounds_ends_at_the_tip_as_well() -> None:
    budget = Budget(0.0)
    async with served(events=50) as (delivery, _):
        reader, _ = join(delivery, 0, replay=budget, bounds=Bounds(None, 1_000))
        await until(lambda: reader.live)
        assert (budget.ends, reader.replay) == (1, None)


async def test_a_replay_ends_with_its_subscriber() -> None:
    budget = Budget(5.0)
    clock = Clock()
    clock.alarm = asyncio.Event()
    async with served(events=50, clock=clock, sleep=clock.sleep, limits=SMALL) as (delivery, _):
        reader, _ = join(delivery, 0, replay=budget)
        await clock.asleep.wait()
        delivery.remove(reader)
        assert budget.ends == 1
