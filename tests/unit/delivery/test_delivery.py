"""Delivery from a log in memory to sinks without a socket: positions, and what follows from them.

The law: whatever happens, a subscriber is sent what it wants of every event from its position on, once, in
order; and each change of its options has one position, before which the old ones judge and after it the new.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.delivery.encodings import CLASSIC, COSTLY, CREATES, V1, message
from tests.unit.delivery.fakes import (
    LANES,
    LIKE,
    LIMITS,
    SMALL,
    STEP_US,
    THING,
    UNBOUNDED,
    FakeSink,
    MemoryLog,
    event,
    is_judging,
    join,
    reading,
    running,
    served,
    steps,
    until,
)

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.subscriber import Bounds, Close, Encoding, Subscriber, SubscriberOptions
from jetstream.limits import DeliveryLimits
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import CREATE
from jetstream.model.filter import Filter

# The law


@dataclass
class Member:
    """A subscriber, and what the test knows of it."""

    subscriber: Subscriber
    sink: FakeSink
    first: int  # index of the first event at or after its position
    segments: list[tuple[SubscriberOptions, int]] = field(
        default_factory=list
    )  # options, messages sent before them

    def obeys_the_law(self, log: MemoryLog) -> bool:
        """Tell whether what it was sent can be cut at its changes so that each part is exactly right."""
        messages = self.sink.messages()
        encoding = self.subscriber.encoding
        whole = Batch.of([event(time // STEP_US) for time in log.times], log.times)
        ends = [count for _, count in self.segments[1:]] + [len(messages)]
        starts = {self.first}
        for (options, begin), end in zip(self.segments, ends, strict=True):
            part = messages[begin:end]
            starts = {stop for start in starts for stop in _stops(whole, start, encoding, options, part)}
        return bool(starts) if self.sink.closing else len(whole) in starts


def _stops(
    whole: Batch, start: int, encoding: Encoding, options: SubscriberOptions, part: list[bytes]
) -> Iterator[int]:
    """Yield each index up to which `part` is exactly what is wanted from `start` on."""
    sent = 0
    for stop in range(start, len(whole) + 1):
        if sent == len(part):
            yield stop
        if stop == len(whole):
            return
        json = message(encoding, whole, stop)
        if (
            json
            and options.wanted.select(whole, stop, stop + 1)
            and (not options.message_bytes_max or len(json) <= options.message_bytes_max)
        ):
            if sent == len(part) or part[sent] != json:
                return
            sent += 1


class World:
    """Delivery, its log and its subscribers, driven step by step."""

    def __init__(self, limits: DeliveryLimits = SMALL) -> None:
        self.log = MemoryLog()
        self.log.grow(40)
        self.delivery = Delivery(self.log, Metrics(("classic", "v1")), limits)
        self.members: list[Member] = []
        self.left: list[Member] = []

    def join(self, options: SubscriberOptions, encoding: Encoding, cursor: int | None, limit: int) -> None:
        subscriber, sink = join(self.delivery, cursor, limit=limit, encoding=encoding, options=options)
        first = sum(time < subscriber.position for time in self.log.times)
        self.members.append(Member(subscriber, sink, first, [(options, 0)]))

    def change(self, which: int, options: SubscriberOptions) -> None:
        if (member := self._pick(which)) is not None:
            member.segments.append((options, len(member.sink.messages())))
            self.delivery.change(member.subscriber, options)

    def leave(self, which: int) -> None:
        if (member := self._pick(which)) is not None:
            self.members.remove(member)
            self.delivery.remove(member.subscriber)
            member.sink.closing = True
            self.left.append(member)

    def drain(self, which: int) -> None:
        if (member := self._pick(which)) is not None:
            member.sink.drain()

    def relieve(self, excess: int) -> None:
        self.delivery.relieve(excess)

    def grow(self, count: int) -> None:
        self.log.grow(count)

    def trim(self, part: float) -> None:
        self.log.trim(int(self.delivery.position * part))  # never what is not published yet

    async def turn(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Drain everything until everyone is at the tip."""
        async with asyncio.timeout(20):
            while not all(map(self._is_at_the_tip, self.members)):
                for member in self.members:
                    member.sink.drain()
                await asyncio.sleep(0)

    def _pick(self, which: int) -> Member | None:
        return self.members[which % len(self.members)] if self.members else None

    def _is_at_the_tip(self, member: Member) -> bool:
        return member.sink.closing or (
            member.subscriber.group is not None
            and not member.subscriber.group.flushing
            and not is_judging(self.delivery)
            and self.delivery.position > self.log.tip
        )


REPOS = DidSet({b"did:plc:repo1", b"did:plc:repo3"})
# Few, so that some subscribers are equal; the last ones want little.
options = st.sampled_from(
    [
        SubscriberOptions(),
        SubscriberOptions(message_bytes_max=150),
        SubscriberOptions(Filter(collections=frozenset({LIKE}))),
        SubscriberOptions(Filter(prefixes=frozenset({b"app.bsky.feed."})), 180),
        SubscriberOptions(Filter(dids=DidSet({b"did:plc:repo1"}))),
        SubscriberOptions(Filter(frozenset({THING}), dids=DidSet({b"did:plc:repo1", b"did:plc:repo2"}))),
        SubscriberOptions(Filter(listed=REPOS)),
        SubscriberOptions(Filter(frozenset({THING, LIKE}), dids=DidSet({b"did:plc:repo0"}), listed=REPOS)),
        SubscriberOptions(Filter(kinds=frozenset({CREATE}), sample=6_000)),
        SubscriberOptions(Filter(excluded_dids=REPOS)),
    ]
)
which = st.integers(0, 5)
cursors = st.one_of(st.none(), st.none(), st.integers(0, 1_000))
joins = st.tuples(
    st.just("join"),
    options,
    st.sampled_from([CLASSIC, V1, CREATES, COSTLY]),
    cursors,
    st.sampled_from([200, 2_000, UNBOUNDED]),
)
turns = st.tuples(st.just("turn"), st.integers(1, 3))
actions = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 25)),
    st.tuples(st.just("drain"), which),
    st.tuples(st.just("change"), which, options),
    st.tuples(st.just("relieve"), st.integers(1, 500)),
    st.tuples(st.just("trim"), st.floats(0, 1)),
    st.tuples(st.just("leave"), which),
    joins,
)
programs = st.builds(
    lambda joins, pairs: [*joins, *(action for pair in pairs for action in pair)],
    st.lists(joins, min_size=2, max_size=4),
    st.lists(st.tuples(actions, turns), min_size=5, max_size=30),
)


@settings(max_examples=150)
@given(programs, st.integers(0, 6), st.integers(1, 3), st.sampled_from([0.0, 1e9]))
def test_each_subscriber_gets_exactly_what_it_wants(
    program: list[tuple[Any, ...]], patience: int, lanes: int, work_ratio: float
) -> None:
    """With lanes flushed one by one, or all together."""
    limits = replace(SMALL, lanes_max=lanes, lane_subscribers=1, work_ratio=work_ratio)

    async def play() -> None:
        world = World(limits)
        world.log.patience = patience
        async with running(world.delivery):
            for name, *arguments in program:
                act: Callable[..., Awaitable[None] | None] = getattr(world, name)
                if (waiting := act(*arguments)) is not None:
                    await waiting
            await world.settle()
        trimmed = any(step[0] == "trim" for step in program)
        for member in world.members:
            assert not member.sink.closing or (
                trimmed and member.sink.close_seen is not None and member.sink.close_seen.label == "overtaken"
            )
        for member in world.members + world.left:
            assert all(a < b for a, b in pairwise(member.sink.times()))
            assert member.obeys_the_law(world.log)
        assert len(world.delivery) == len(world.members)

    asyncio.run(play())


# Where a subscription starts


@pytest.mark.parametrize(
    ("cursor", "first"),
    [(None, 41), (0, 17), (1, 17), (170, 17), (171, 18), (400, 40), (401, 41), (10**9, 41)],
)
async def test_a_subscription_starts_at_its_cursor_within_what_is_kept(
    cursor: int | None, first: int
) -> None:
    async with served(events=40) as (delivery, log):
        log.trim(170)
        _, sink = join(delivery, cursor)
        log.grow(2)
        await until(lambda: STEP_US * 42 in sink.times())
    assert sink.times() == steps(first, 43)


@pytest.mark.parametrize("beyond", [1, 10**9])
async def test_a_cursor_beyond_the_tip_repeats_nothing_that_its_lane_is_yet_to_be_sent(beyond: int) -> None:
    """The client may have read the newest event: in another lane, which was first."""
    async with served(events=20, limits=replace(LANES, lanes_max=2)) as (delivery, log):
        members = [join(delivery) for _ in range(4)]
        log.grow(1)
        await log.followers.wait()
        assert [len(sink.times()) for _, sink in members] == [1, 0, 1, 0]
        delivery.remove(members[1][0])  # so that the newcomer is in the lane that is behind
        subscriber, sink = join(delivery, log.tip + beyond)
        await until(lambda: subscriber.group)
        log.grow(1)
        await until(sink.times)
        await until(lambda: delivery.position > log.tip)
    assert sink.times() == steps(22, 23)
    assert members[3][1].times() == steps(21, 23)


async def test_a_cursor_that_another_process_gave_out_waits_for_its_event() -> None:
    async with served(events=10) as (delivery, log):
        log.appended_by_others = 15 * STEP_US  # another edge has read up to there
        assert delivery.must_look(13 * STEP_US)
        assert not delivery.must_look(10 * STEP_US + 1)
        assert not delivery.must_look(None)
        await delivery.look()
        assert not delivery.must_look(13 * STEP_US)
        assert delivery.positions(13 * STEP_US).cursor == 13 * STEP_US
        subscriber, sink = join(delivery, 13 * STEP_US)
        _, live = join(delivery)
        _, future = join(delivery, 99 * STEP_US)
        assert delivery.resume_at(subscriber) == 13 * STEP_US
        log.grow(2)
        await reading(lambda: live.times() == steps(11, 13), sink, live, future)
        assert sink.times() == future.times() == []
        log.grow(3)
        await reading(lambda: live.times() == steps(11, 16), sink, live, future)
        await reading(lambda: sink.times() == steps(13, 16), sink)
        assert future.times() == []
        log.grow(2)
        await reading(lambda: future.times() == steps(16, 18), sink, live, future)
        assert sink.times() == steps(13, 18)
        assert live.times() == steps(11, 18)


async def test_a_cursor_that_the_log_may_have_given_out_waits() -> None:
    """As with a replica, which does not know how far the primary is."""
    async with served(events=5) as (delivery, log):
        log.possible = 9 * STEP_US
        assert not delivery.must_look(9 * STEP_US + 1)
        assert delivery.must_look(9 * STEP_US + 2)
        _, sink = join(delivery, 8 * STEP_US)
        _, live = join(delivery)
        log.grow(5)
        await reading(lambda: live.times() == steps(6, 11), sink, live)
        await reading(lambda: sink.times() == steps(8, 11), sink)


async def test_a_subscription_ends_when_the_writer_says_that_nothing_comes_before_its_end() -> None:
    async with served(events=5) as (delivery, log):
        _, sink = join(delivery, 0, bounds=Bounds(20 * STEP_US, None))
        await reading(lambda: sink.times() == steps(1, 6), sink)

        async def ends() -> bool:
            sink.drain()
            await delivery.check(delivery._clock(), ping=False)
            for _ in range(5):
                await asyncio.sleep(0)
            return sink.closing

        for log.watermark in (0, 5 * STEP_US + 1, 20 * STEP_US - 1):
            assert not await ends()
        log.grow(3)
        await reading(lambda: sink.times() == steps(1, 9), sink)
        log.watermark, log.appended_by_others = 20 * STEP_US, 9 * STEP_US
        await delivery.look()  # there is an event that was not read yet
        assert not await ends()
        log.grow(1)
        await reading(lambda: sink.times() == steps(1, 10), sink)
        assert await ends()
        assert sink.close_seen is not None
        assert sink.close_seen.label == "done"


@pytest.mark.parametrize("cursor", [None, 0, 170, 175, 200, 201, 10**9])
async def test_a_client_can_be_told_where_it_will_begin(cursor: int | None) -> None:
    async with served(events=20, limits=replace(LANES, lanes_max=2)) as (delivery, log):
        log.trim(170)
        members = [join(delivery) for _ in range(4)]
        log.grow(1)
        await log.followers.wait()  # one of two lanes has been flushed
        for gone in (None, members[1], members[0]):
            if gone is not None:
                delivery.remove(gone[0])
            told = delivery.positions(cursor)
            subscriber, _ = join(delivery, cursor)
            assert (told.oldest, told.latest) == (170, log.tip)
            assert told.cursor == max(subscriber.position, 170)
            delivery.remove(subscriber)


async def test_an_empty_log_has_neither_an_oldest_nor_a_latest_event() -> None:
    async with served() as (delivery, _):
        assert delivery.positions() == (1, None, None)
        assert delivery.positions(0) == (0, None, None)


async def test_who_is_at_the_tip_resumes_at_what_was_not_written_to_it() -> None:
    async with served(events=20, limits=replace(SMALL, flush_events=1_000)) as (delivery, log):
        (first, one), (second, _) = (join(delivery) for _ in range(2))
        log.grow(3)
        await until(one.messages)
        assert (delivery.resume_at(first), delivery.resume_at(second)) == (231, 201)
        await until(lambda: delivery.resume_at(second) == 231)
        delivery.remove(second)
        assert delivery.resume_at(second) >= 201


async def test_who_was_overtaken_resumes_at_the_oldest() -> None:
    async with served(events=40) as (delivery, log):
        subscriber, sink = join(delivery, 1, limit=8)
        await until(lambda: sink.full)
        log.trim(330)
        assert delivery.resume_at(subscriber) == log.floor > subscriber.position


# Slow readers


def stalled(delivery: Delivery) -> tuple[Subscriber, FakeSink]:
    """Add a subscriber whose socket takes nothing of what it is sent."""
    subscriber, sink = join(delivery)
    subscriber.write(b"\x81\x02{}")
    return subscriber, sink


async def test_a_reader_is_cut_once_it_took_nothing_for_the_timeout() -> None:
    async with served(events=1, slow_timeout_s=60, clock=lambda: 0.0) as (delivery, _):
        _, sink = stalled(delivery)
        for now in (0.0, 30.0, 59.9):
            await delivery.check(now, ping=True)
            assert not sink.closing
        await delivery.check(60.0, ping=True)
    assert sink.close_seen == Close(1008, "slow", "read nothing for 60 s: read faster")
    assert sink.sent == b"\x81\x02{}"


async def test_any_progress_restarts_the_timeout() -> None:
    async with served(events=1, slow_timeout_s=60, clock=lambda: 0.0) as (delivery, _):
        _, sink = stalled(delivery)
        await delivery.check(50.0, ping=False)
        del sink.waiting[:1]
        await delivery.check(55.0, ping=False)
        await delivery.check(114.0, ping=False)
        assert not sink.closing
        await delivery.check(115.0, ping=False)
    assert sink.closing


async def test_an_idle_reader_is_pinged_and_never_cut() -> None:
    async with served(events=1, slow_timeout_s=60, clock=lambda: 0.0) as (delivery, _):
        _, sink = join(delivery)
        for minute in range(100):
            await delivery.check(60.0 * minute, ping=minute % 2 == 0)
            sink.drain()
    assert sink.sent == CLASSIC.framing.keep_alive * 50
    assert not sink.closing


async def test_checking_thousands_leaves_the_loop_turns() -> None:
    """A check takes half a microsecond, but a ping to each takes 4."""
    async with served(events=1) as (delivery, _):
        for _ in range(1_200):
            join(delivery)
        checking = asyncio.create_task(delivery.check(0.0, ping=True))
        turns = 0
        while not checking.done():
            turns += 1
            await asyncio.sleep(0)
        assert 3 <= turns <= 4


async def test_when_too_much_waits_the_fullest_are_put_behind_and_come_back() -> None:
    async with served(events=20, buffer_total=10_000) as (delivery, log):
        members = [join(delivery) for _ in range(6)]
        for size, (subscriber, _) in zip((0, 100, 6_000, 9_000, 0, 3_000), members, strict=True):
            subscriber.write(b"x" * size)
        await delivery.check(0.0, ping=False)
        behind = [subscriber.group is None for subscriber, _ in members]
        assert behind == [False, False, False, True, False, False]
        (_, fullest) = members[3]
        assert fullest.lowered
        fullest.sent.clear()
        fullest.drain()
        log.grow(3)
        await until(lambda: members[3][0].group and len(fullest.messages()) == 3)
        assert not fullest.lowered


async def test_a_reader_for_whom_nothing_waits_is_never_put_behind() -> None:
    async with served(events=20, buffer_total=100) as (delivery, _):
        behind, sink = join(delivery, 1, limit=10)
        await until(lambda: sink.full)
        at_the_tip, _ = join(delivery)
        await delivery.check(0.0, ping=False)
        assert at_the_tip.group is not None
        assert behind.group is None


# Memory


@pytest.mark.parametrize(
    "limit", [200, UNBOUNDED]
)  # a feeder that waits for its socket, one that has arrived
@pytest.mark.parametrize("turns", [0, 1, 3, 30])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("cursor", [None, 0, 10**9])
async def test_nothing_stays_of_a_subscriber_that_left(
    cursor: int | None, lost: bool, turns: int, limit: int
) -> None:
    gc.disable()  # what stays until the collector comes stays for hours: it hardly ever looks at what is old
    try:
        world = World(LIMITS)
        async with running(world.delivery):
            world.join(SubscriberOptions(Filter(dids=DidSet({b"did:plc:repo1"}))), CLASSIC, cursor, limit)
            await world.turn(turns)
            member = world.members.pop()
            member.sink.lost = lost
            if lost:
                member.sink.drain()
                await world.turn(turns)
            world.delivery.remove(member.subscriber)
            sink = weakref.ref(member.sink)  # which the subscriber holds, and whatever holds that
            del member
            await world.turn(5)
            assert sink() is None
            assert not len(world.delivery)
    finally:
        gc.enable()


# How far subscribers are behind


async def test_subscribers_are_counted_by_how_far_they_are_behind() -> None:
    now = 0.0
    async with served(5, SMALL, clock=lambda: now) as (delivery, log):
        assert delivery.readers().lags == (0,) * 8
        _, at_tip = join(delivery)
        slow, full = join(delivery, limit=1)
        log.grow(1)
        await until(lambda: slow.group is None)
        behind, blocked = join(delivery, STEP_US, limit=1)
        blocked.write(b"more than it takes")
        await until(at_tip.messages)
        now = 1.0
        readers = delivery.readers()
        assert (readers.catching_up, readers.lagging) == (1, 1)
        assert sum(readers.lags) == 3
        full.drain()
        blocked.drain()
        await reading(lambda: slow.group and behind.group, full, blocked)
        assert delivery.readers() is readers  # for a second
        now = 2.0
        readers = delivery.readers()
        assert (readers.catching_up, readers.lagging, readers.lags[0]) == (0, 0, 3)
