"""Publishing at the tip: lanes, turns, pauses, and when the log may grow."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.delivery.encodings import CLASSIC, CREATES
from tests.unit.delivery.fakes import (
    ALL,
    BATCH_EVENTS,
    LANES,
    LIKE,
    LIMITS,
    SMALL,
    STEP_US,
    Clock,
    FakeSink,
    event,
    flushed,
    is_judging,
    join,
    served,
    steps,
    until,
)

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.model.event import CREATE
from jetstream.model.filter import Filter


def deliveries(delivery: Delivery) -> tuple[Any, Any]:
    """Return how many deliveries were observed, and how many seconds they took together."""
    sample = delivery._metrics.registry.get_sample_value
    return sample("jetstream_delivery_seconds_count"), sample("jetstream_delivery_seconds_sum")


# Lanes and pauses


async def test_more_may_be_stored_once_a_lane_has_all() -> None:
    """Then what is stored next is in the flush of the next lane, and delivery ends with the last one."""
    clock = Clock()
    async with served(limits=LANES, clock=clock, sleep=clock.sleep) as (delivery, log):
        sinks = [sink for _, sink in (join(delivery) for _ in range(3))]
        seen = []
        for _ in range(3):
            log.grow(1, received_at=clock.now - 10)
            await log.followers.wait()
            seen.append([len(sink.times()) for sink in sinks])
        assert seen == [[1, 0, 0], [1, 2, 0], [1, 2, 3]]
        assert deliveries(delivery)[0] == 1
        await until(lambda: deliveries(delivery)[0] == 3)
        assert deliveries(delivery)[1] == pytest.approx(30, abs=0.1)
        assert [sink.times() for sink in sinks] == [steps(1, 4)] * 3


async def test_more_may_be_stored_only_after_the_pause() -> None:
    """The pause is for readers and for events to gather: storing would use it up."""
    clock = Clock()
    clock.alarm = asyncio.Event()

    def take_long(_: FakeSink) -> None:
        clock.now += 0.01

    async with served(clock=clock, sleep=clock.sleep) as (delivery, log):
        _, sink = join(delivery, on_write=take_long)
        log.grow(1)
        storing = asyncio.create_task(log.followers.wait())
        await clock.asleep.wait()
        assert clock.slept[-1] == pytest.approx(0.0036)
        assert sink.times() == steps(1, 2)
        await asyncio.sleep(0)
        assert not storing.done()
        clock.alarm.set()
        await storing


async def test_no_more_may_be_stored_while_more_is_stored_than_a_flush_takes() -> None:
    async with served(limits=replace(LIMITS, flush_events=7)) as (delivery, log):
        _, sink = join(delivery)
        log.grow(20)
        await log.followers.wait()
        assert sink.times() == steps(1, 21)


async def test_delivery_ends_when_those_who_waited_for_it_leave() -> None:
    """And not with the next event, which may be long in coming."""
    async with served(limits=LANES) as (delivery, log):
        (_, first), (second, _) = (join(delivery) for _ in range(2))
        log.grow(1)
        await log.followers.wait()
        assert (len(first.times()), deliveries(delivery)[0]) == (1, 0)
        delivery.remove(second)
        assert deliveries(delivery)[0] == 1


class Rounds:
    """Three lanes whose flushes take some time, after a pause that took `paused_s`."""

    def __init__(self, flush_s: float, paused_s: float) -> None:
        self.clock = Clock()
        self.flush_s = flush_s
        self.paused_s = paused_s
        self.turn = 0
        self.flushed_in: list[int] = []  # the turn of the loop in which each flush wrote

    async def run(self) -> list[list[int]]:
        """Flush one event to all, pause, store another, and return what each has when ingest may go on."""
        limits = replace(LIMITS, lane_subscribers=1)
        async with served(limits=limits, clock=self.clock, sleep=self.clock.sleep) as (delivery, log):
            pairs = [join(delivery, on_write=self._write) for _ in range(3)]
            self.clock.oversleep_s = self.paused_s
            counting = asyncio.create_task(self._count_turns())
            log.grow(1)
            await flushed(delivery, log, *(subscriber for subscriber, _ in pairs))
            await until(lambda: len(self.clock.slept) >= 1)
            self.flushed_in.clear()
            log.grow(1)
            await log.followers.wait()
            counting.cancel()
            return [sink.times() for _, sink in pairs]

    def _write(self, _: FakeSink) -> None:
        self.clock.now += self.flush_s
        self.flushed_in.append(self.turn)

    async def _count_turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)


async def test_lanes_are_flushed_together_while_a_pause_takes_longer_than_a_lane() -> None:
    rounds = Rounds(flush_s=0.0001, paused_s=1.0)
    assert await rounds.run() == [steps(1, 3)] * 3
    assert len(set(rounds.flushed_in)) == 1  # so light that all are one turn


async def test_lanes_that_are_flushed_together_leave_the_loop_a_turn_when_they_took_long() -> None:
    rounds = Rounds(flush_s=0.0011, paused_s=1.0)
    assert await rounds.run() == [steps(1, 3)] * 3
    assert len(set(rounds.flushed_in)) == 3


# What is written


async def test_a_flush_leaves_the_loop_a_turn_when_it_takes_long() -> None:
    clock, turns = Clock(), list[float]()

    def take_long(_: FakeSink) -> None:
        clock.now += LIMITS.turn_s / LIMITS.writes_per_look

    async with served(clock=clock, sleep=clock.sleep) as (delivery, log):
        sinks = [join(delivery, on_write=take_long)[1] for _ in range(3 * LIMITS.writes_per_look)]
        log.grow(1)
        await until(lambda: sinks[0].writes)
        for _ in range(3):
            turns.append(sum(bool(sink.writes) for sink in sinks))
            await asyncio.sleep(0)
    assert turns == [LIMITS.writes_per_look * n for n in (1, 2, 3)]


async def test_a_flush_leaves_the_loop_turns_while_it_is_judged_and_loses_nothing() -> None:
    """A subscriber that joins, leaves or changes its options meanwhile is sent each event once."""
    limits = replace(SMALL, flush_events=1_000, judged_per_step=4)
    likes = [SubscriberOptions(Filter(collections=frozenset({LIKE})), 100_000 + n) for n in range(4)]
    async with served(events=20, limits=limits) as (delivery, log):
        members = [join(delivery, options=options) for options in likes]
        log.grow(10)
        await until(lambda: is_judging(delivery))
        members.append(join(delivery, 201, options=likes[0]))
        for _ in range(4):
            await asyncio.sleep(0)
            assert is_judging(delivery)
            assert [delivery.resume_at(subscriber) for subscriber, _ in members[:4]] == [201] * 4
        (gone, left), (changed, sink), *rest = members
        delivery.remove(gone)
        delivery.change(changed, ALL)
        await until(lambda: not is_judging(delivery))
        await flushed(delivery, log, *(subscriber for subscriber, _ in members[1:]))
    assert left.times() == []
    assert sink.times() == steps(21, 31)
    expected = [STEP_US * n for n in range(21, 31) if event(n).collection in (LIKE, b"")]
    assert [each.times() for _, each in rest] == [expected] * 3


async def test_what_is_written_at_once_is_bounded_by_bytes() -> None:
    counts = []
    for flush_bytes in (LIMITS.flush_bytes, 100):
        async with served(limits=replace(LIMITS, flush_bytes=flush_bytes)) as (delivery, log):
            subscriber, sink = join(delivery)
            log.grow(BATCH_EVENTS)
            await flushed(delivery, log, subscriber)
        assert sink.times() == steps(1, BATCH_EVENTS + 1)
        counts.append(len(sink.writes))
    assert counts[0] < counts[1] <= BATCH_EVENTS


async def test_what_was_trimmed_before_it_was_published_is_skipped() -> None:
    async with served(events=20) as (delivery, log):
        _, sink = join(delivery)
        log.grow(12)
        log.trim(log.tip + 1)
        await until(lambda: delivery.position > log.tip)
        log.grow(1)
        await until(lambda: sink.writes)
    assert sink.times() == steps(33, 34)


async def test_kinds_that_a_wire_declines_are_left_out_for_its_readers_alone() -> None:
    async with served(events=30) as (delivery, log):
        behind, live, other = (
            join(delivery, cursor, encoding=encoding)
            for encoding, cursor in ((CREATES, 1), (CREATES, None), (CLASSIC, None))
        )
        await until(lambda: behind[0].group)
        log.grow(30)
        await flushed(delivery, log, behind[0], live[0], other[0])
        creates = [STEP_US * number for number in range(1, 61) if event(number).kind == CREATE]
        after = [time for time in creates if time > 30 * STEP_US]
        assert behind[1].times() == creates
        assert live[1].times() == after
        assert other[1].times() == steps(31, 61)
        assert delivery._metrics.messages["v1"]._value.get() == len(creates) + len(after)


async def test_a_member_put_behind_in_the_middle_of_a_flush_is_sent_it_once() -> None:
    async with served(events=20, limits=SMALL) as (delivery, log):
        members = [join(delivery) for _ in range(3)]
        for subscriber, sink in members:
            subscriber.write(b"x")
            sink.sent.clear()
        log.grow(1)
        await until(lambda: members[0][1].sent)
        assert not members[1][1].sent
        delivery.relieve(1_000_000)
        assert not any(subscriber.group for subscriber, _ in members)
        for _, sink in members:
            sink.drain()
        await until(lambda: all(subscriber.group for subscriber, _ in members))
    assert [sink.times() for _, sink in members] == [steps(21, 22)] * 3


async def test_messages_and_bytes_are_counted_for_readers_live_and_behind() -> None:
    async with served(events=20) as (delivery, log):
        behind, behind_sink = join(delivery, 1)
        live, live_sink = join(delivery)
        await until(lambda: behind.group)
        log.grow(10)
        await flushed(delivery, log, live, behind)
        metrics = delivery._metrics
        assert metrics.messages["classic"]._value.get() == 30 + 10
        sent = len(behind_sink.sent) + len(live_sink.sent)
        assert metrics.bytes["classic"]._value.get() == sent
        assert metrics.subscribers["classic"]._value.get() == len(delivery) == 2
        delivery.remove(behind)
        delivery.remove(behind)
        assert metrics.subscribers["classic"]._value.get() == len(delivery) == 1
