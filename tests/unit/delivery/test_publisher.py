"""The hub against a log in memory and sinks without a socket: positions, and what follows from them.

The law: whatever happens, a subscriber is sent what it wants of every event from its position on, once, in
order; and each change of its options has one position, before which the old ones judge and after it the new.
"""

from __future__ import annotations

import asyncio
import gc
import struct
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.delivery.encodings import CLASSIC, CREATES, V1, message

from jetstream.delivery import lanes as lanes_module
from jetstream.delivery import publisher as hub_module
from jetstream.delivery.encoding import Encoding
from jetstream.delivery.publisher import FLUSH_EVENTS_MAX, Hub, flush_end, rest_s
from jetstream.delivery.subscriber import Close, Subscriber, SubscriberOptions
from jetstream.eventlog import LogStatistics
from jetstream.eventlog.backpressure import Followers
from jetstream.limits import DeliveryLimits
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, Event
from jetstream.model.filter import EVERYTHING, Filter

STEP_US = 10
SMALL = DeliveryLimits(chunk_events=5, chunk_bytes=600, render_cache_bytes=10_000)
BATCH_EVENTS = 16
LIKE, POST, THING = b"app.bsky.feed.like", b"app.bsky.feed.post", b"com.example.thing"


def event(number: int) -> Event:
    """Return one of a few repos' events, of all kinds, told by its number."""
    did, rkey = b"did:plc:repo%d" % (number % 5), b"%d" % number
    if number % 13 == 0:
        return Event(IDENTITY, did, b"", b"", b"", b"", b'{"seq":%d}' % number)
    if number % 11 == 0:
        return Event(ACCOUNT, did, b"", b"", b"", b"", b'{"seq":%d}' % number)
    collection = (LIKE, POST, THING)[number % 3]
    if number % 7 == 0:
        return Event(DELETE, did, collection, rkey, b"rev", b"", b"")
    body = b'{"text":"%b"}' % (b"x" * (number % 4 * 40))
    return Event(CREATE, did, collection, rkey, b"rev", b"cid", body)


class MemoryLog:
    """A log in a list. Each read takes `patience` turns of the loop, as a disk does."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.batches: list[Batch] = []
        self.floor = 0
        self.tip = 0
        self.followers = Followers()
        self.patience = 0
        self.reads = 0
        self.failure: Exception | None = None
        self._grown = asyncio.Event()

    def grow(self, count: int, received_at: float = 0.0) -> None:
        """Append events."""
        for _ in range(count):
            number = len(self.times) + 1
            one = Batch.of([event(number)], [number * STEP_US])
            if not self.batches or len(self.batches[-1]) >= BATCH_EVENTS:
                self.batches.append(one)
            else:
                self.batches[-1].extend(one)
            self.times.append(number * STEP_US)
        self.tip = self.times[-1]
        self.followers.append(self.tip, received_at)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        self.reads += 1
        for _ in range(self.patience):
            await asyncio.sleep(0)
        if self.failure is not None and wanted != EVERYTHING:
            raise self.failure
        for batch in self.batches:
            first = batch.index(max(position, self.floor))
            if wanted.select(batch, first, batch.index(stop)):
                return batch
        return None

    async def wait(self, position: int) -> None:
        while self.tip < position:
            await self._grown.wait()

    async def trim(self, before_us: int) -> int:
        while self.batches and self.batches[0].last < before_us:
            self.floor = self.batches.pop(0).last + 1
        return 0

    def statistics(self) -> LogStatistics:
        raise NotImplementedError


class FakeSink:
    """A buffer that drains when it is told to."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.written = 0
        self.full = False
        self.closing = False
        self.lowered = False
        self.waiting = bytearray()
        self.sent = bytearray()
        self.close_seen: Close | None = None
        self.lost = False
        self._drained = asyncio.Event()

    @property
    def buffered(self) -> int:
        return len(self.waiting)

    def write(self, data: bytes) -> None:
        if self.closing:
            return
        self.waiting += data
        self.sent += data
        self.full = len(self.waiting) > (self.limit // 8 if self.lowered else self.limit)

    async def writable(self) -> None:
        while self.full:
            await self._drained.wait()
        if self.lost:
            raise ConnectionResetError("gone")

    def drain(self) -> None:
        self.waiting.clear()
        self.full = False
        drained, self._drained = self._drained, asyncio.Event()
        drained.set()

    def lower_limit(self, lowered: bool) -> None:
        self.lowered = lowered

    def close(self, close: Close) -> None:
        if not self.closing:
            self.closing = True
            self.close_seen = close

    def messages(self) -> list[bytes]:
        """Return what was written, message by message. Pings are left out."""
        return [payload for opcode, payload in _frames(bytes(self.sent)) if opcode == 1]


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        assert data[at] & 0x80
        opcode, size = data[at] & 15, data[at + 1]
        at += 2
        if size == 126:
            (size,) = struct.unpack_from(">H", data, at)
            at += 2
        yield opcode, data[at : at + size]
        at += size


def times(sink: FakeSink) -> list[int]:
    return [orjson.loads(message)["time_us"] for message in sink.messages()]


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
    """A hub, its log and its subscribers, driven step by step."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.log.grow(40)
        self.hub = Hub(self.log, Metrics(), limits=SMALL)
        self.members: list[Member] = []
        self.left: list[Member] = []

    def join(self, options: SubscriberOptions, encoding: Encoding, cursor: int | None, limit: int) -> None:
        lane, sink = self.hub.lane(), FakeSink(limit)
        position = lane.position if cursor is None else max(min(cursor, self.log.tip + 1), self.log.floor)
        subscriber = Subscriber(sink, encoding, options, lane, position, 0.0)
        first = sum(time < position for time in self.log.times)
        self.members.append(Member(subscriber, sink, first, [(options, 0)]))
        self.hub.add(subscriber)

    def change(self, which: int, options: SubscriberOptions) -> None:
        if (member := self._pick(which)) is not None:
            member.segments.append((options, len(member.sink.messages())))
            self.hub.change(member.subscriber, options)

    def leave(self, which: int) -> None:
        if (member := self._pick(which)) is not None:
            self.members.remove(member)
            self.hub.remove(member.subscriber)
            member.sink.closing = True
            self.left.append(member)

    def drain(self, which: int) -> None:
        if (member := self._pick(which)) is not None:
            member.sink.drain()

    def relieve(self, excess: int) -> None:
        self.hub._relieve(excess)

    async def trim(self, part: float) -> None:
        await self.log.trim(int(self.hub.position * part))  # never what is not published yet

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
            and not member.subscriber.group.delivering
            and self.hub.position > self.log.tip
        )


@asynccontextmanager
async def running(hub: Hub) -> AsyncIterator[None]:
    """Run a hub."""
    task = asyncio.create_task(hub.run())
    await asyncio.sleep(0)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


# Few, so that some subscribers are equal; the last ones want little.
options = st.sampled_from(
    [
        SubscriberOptions(),
        SubscriberOptions(message_bytes_max=150),
        SubscriberOptions(Filter(collections=frozenset({LIKE}))),
        SubscriberOptions(Filter(prefixes=frozenset({b"app.bsky.feed."})), 180),
        SubscriberOptions(Filter(dids=frozenset({b"did:plc:repo1"}))),
        SubscriberOptions(Filter(frozenset({THING}), dids=frozenset({b"did:plc:repo1", b"did:plc:repo2"}))),
    ]
)
which = st.integers(0, 5)
cursors = st.one_of(st.none(), st.none(), st.integers(0, 1_000))
joins = st.tuples(
    st.just("join"),
    options,
    st.sampled_from([CLASSIC, V1, CREATES]),
    cursors,
    st.sampled_from([200, 2_000, 1 << 40]),
)
turns = st.tuples(st.just("turn"), st.integers(1, 3))
steps = st.one_of(
    st.tuples(st.just("grow"), st.integers(1, 25)),
    st.tuples(st.just("drain"), which),
    st.tuples(st.just("change"), which, options),
    st.tuples(st.just("relieve"), st.integers(1, 500)),
    st.tuples(st.just("trim"), st.floats(0, 1)),
    st.tuples(st.just("leave"), which),
    joins,
)
programs = st.builds(
    lambda joins, steps: [*joins, *(step for pair in steps for step in pair)],
    st.lists(joins, min_size=2, max_size=4),
    st.lists(st.tuples(steps, turns), min_size=5, max_size=30),
)


@contextmanager
def small_turns() -> Iterator[pytest.MonkeyPatch]:
    """Make each step of the hub small, so that a test's steps fall between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "FLUSH_EVENTS_MAX", 7)

        patch.setattr(hub_module, "TURN_S", 0.0)
        patch.setattr(hub_module, "WRITES_PER_LOOK", 1)
        yield patch


@settings(max_examples=300)
@given(programs, st.integers(0, 6), st.integers(1, 3), st.sampled_from([0.0, 1e9]))
def test_each_subscriber_gets_exactly_what_it_wants(
    program: list[tuple[Any, ...]], patience: int, lanes: int, work_ratio: float
) -> None:
    async def play() -> None:
        world = World()
        world.log.patience = patience
        async with running(world.hub):
            for name, *arguments in program:
                act: Callable[..., Awaitable[None] | None] = (
                    world.log.grow if name == "grow" else getattr(world, name)
                )
                if (waiting := act(*arguments)) is not None:
                    await waiting
            await world.settle()
        trimmed = any(step[0] == "trim" for step in program)
        for member in world.members:
            assert not member.sink.closing or (
                trimmed and member.sink.close_seen is not None and member.sink.close_seen.label == "overtaken"
            )
        for member in world.members + world.left:
            assert all(a < b for a, b in pairwise(times(member.sink)))
            assert member.obeys_the_law(world.log)
        assert len(world.hub) == len(world.members)

    with small_turns() as patch:
        patch.setattr(lanes_module, "LANES_MAX", lanes)
        patch.setattr(lanes_module, "LANE_SUBSCRIBERS", 1)
        patch.setattr(hub_module, "WORK_RATIO", work_ratio)  # lanes one by one, or all together
        asyncio.run(play())


# What follows from it, one by one


@asynccontextmanager
async def served(events: int = 0, **settings: Any) -> AsyncIterator[tuple[Hub, MemoryLog]]:
    """Run a hub over a log that has so many events."""
    log = MemoryLog()
    if events:
        log.grow(events)
    hub = Hub(log, Metrics(), **settings)
    async with running(hub):
        yield hub, log


def join(hub: Hub, position: int | None = None, *, limit: int = 1 << 40) -> tuple[Subscriber, FakeSink]:
    """Add a subscriber to everything, at the tip unless told otherwise."""
    sink = FakeSink(limit)
    lane = hub.lane()
    subscriber = Subscriber(
        sink, CLASSIC, SubscriberOptions(), lane, lane.position if position is None else position, 0.0
    )
    hub.add(subscriber)
    return subscriber, sink


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - turn by turn
            await asyncio.sleep(0)


async def test_one_reader_that_is_behind_has_slices_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: those at the tip wait for a few slices, not for a few of each."""
    turn, slices = 0, dict[int, list[FakeSink]]()
    write = FakeSink.write

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def note_turn(sink: FakeSink, data: bytes) -> None:
        slices.setdefault(turn, []).append(sink)
        write(sink, data)

    monkeypatch.setattr(FakeSink, "write", note_turn)
    async with served(events=100) as (hub, _):
        counting = asyncio.create_task(count_turns())
        readers = [join(hub, position=1) for _ in range(20)]
        leaving = [join(hub, position=1) for _ in range(20)]
        await asyncio.sleep(0)
        for subscriber, _ in leaving:
            hub.remove(subscriber)
        await until(lambda: all(subscriber.group for subscriber, _ in readers))
        counting.cancel()
    assert len(slices) >= 20
    assert all(len(set(sinks)) == 1 for sinks in slices.values())
    assert all(len(sinks) <= hub_module.SLICES_PER_TURN for sinks in slices.values())
    assert all(times(sink) == [STEP_US * n for n in range(1, 101)] for _, sink in readers)


async def test_a_reader_behind_has_no_more_slices_once_its_socket_is_full() -> None:
    async with served(events=100) as (hub, _):
        _, sink = join(hub, position=1, limit=8)  # an eighth of it while behind: full with any slice
        await until(sink.messages)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sink.full
        assert len(sink.messages()) <= DeliveryLimits().chunk_events


@given(
    st.integers(1, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(1, lanes_module.LANES_MAX),
)
def test_the_rest_is_fair_and_bounded(
    events: int, worked_s: float, storing_s: float, written: int, hungry: int, lanes: int
) -> None:
    """What one flush rests, in a round of one of each lane, all of them alike."""
    taken_s = worked_s + storing_s
    alone = rest_s(events, worked_s, taken_s, written, 0, lanes)
    assert alone == 0 if events >= hub_module.FULL_EVENTS else alone * lanes >= hub_module.REST_S_MIN
    together = rest_s(events, worked_s, taken_s, written, hungry, lanes)
    assert alone <= together <= max(alone, hub_module.REST_S_MAX / lanes)
    if together * lanes < hub_module.REST_S_MAX:
        assert together * lanes * max(written, 1) >= 2 * taken_s * hungry * 0.999  # head for head


async def test_who_waits_for_the_log_is_hungry_and_who_waits_for_their_socket_is_not() -> None:
    async with served(events=100) as (hub, log):
        log.patience = 3
        _, sink = join(hub, position=1, limit=8)
        await until(lambda: log.reads)
        assert (hub._hungry, len(sink.messages())) == (1, 0)
        await until(lambda: sink.full)
        await asyncio.sleep(0)
        assert hub._hungry == 0
        _, gone = join(hub, position=1)
        await until(lambda: hub._hungry)
        hub.remove(next(each for each in hub._subscribers if each.sink is gone))
        await until(lambda: not hub._hungry)


async def test_a_cursor_among_events_not_published_yet_waits_for_them() -> None:
    async with served(events=20) as (hub, log):
        log.grow(5)
        position = 23 * STEP_US
        assert hub.position < position
        subscriber, sink = join(hub, position)
        await until(lambda: subscriber.group)
        log.grow(1)
        await until(lambda: len(sink.messages()) == 4)
    assert times(sink) == [230, 240, 250, 260]


RARE = SubscriberOptions(Filter(dids=frozenset({b"did:plc:repo0"}), collections=frozenset({THING})))


async def test_options_that_change_during_a_read_judge_what_it_passed_over() -> None:
    nothing = SubscriberOptions(Filter(dids=frozenset({b"did:plc:nobody"})))
    async with served(events=20) as (hub, log):
        log.patience = 5
        sink = FakeSink()
        subscriber = Subscriber(sink, CLASSIC, nothing, hub.lane(), 1, 0.0)
        hub.add(subscriber)
        await until(lambda: log.reads)
        hub.change(subscriber, SubscriberOptions())
        await until(lambda: subscriber.group)
    assert times(sink) == [STEP_US * n for n in range(1, 21)]


async def test_options_that_change_while_a_slice_is_due_judge_what_it_passed_over() -> None:
    async with served(events=5 * BATCH_EVENTS) as (hub, log):
        # Only the last batch has what the old options want: so that is the one which was read.
        log.batches[:-1] = map(_without_rare, log.batches[:-1])
        sink = FakeSink()
        subscriber = Subscriber(sink, CLASSIC, RARE, hub.lane(), 1, 0.0)
        hub.add(subscriber)
        await until(lambda: hub._slices)
        hub.change(subscriber, SubscriberOptions())
        await until(lambda: subscriber.group)
    assert times(sink) == [time for batch in log.batches for time in batch.times]


def _without_rare(batch: Batch) -> Batch:
    kept = [i for i in range(len(batch)) if not RARE.wanted.select(batch, i, i + 1)]
    return Batch.of([batch.event(i) for i in kept], [batch.times[i] for i in kept])


async def test_a_member_put_behind_in_the_middle_of_a_flush_is_sent_it_once() -> None:
    with small_turns():
        async with served(events=20) as (hub, log):
            members = [join(hub) for _ in range(3)]
            for subscriber, sink in members:
                subscriber.write(b"x")
                sink.sent.clear()
            log.grow(1)
            await until(lambda: members[0][1].sent)
            assert not members[1][1].sent
            hub._relieve(1_000_000)
            assert not any(subscriber.group for subscriber, _ in members)
            for _, sink in members:
                sink.drain()
            await until(lambda: all(subscriber.group for subscriber, _ in members))
    assert [times(sink) for _, sink in members] == [[21 * STEP_US]] * 3


async def test_messages_and_bytes_are_counted_for_readers_live_and_behind() -> None:
    async with served(events=20) as (hub, log):
        behind, behind_sink = join(hub, position=1)
        live, live_sink = join(hub)
        await until(lambda: behind.group)
        log.grow(10)
        await until(lambda: hub.position > log.tip and not live.group.delivering)  # type: ignore[union-attr]
        metrics = hub._metrics
        assert metrics.messages.labels("classic")._value.get() == 30 + 10
        sent = len(behind_sink.sent) + len(live_sink.sent)
        assert metrics.bytes.labels("classic")._value.get() == sent
        assert metrics.subscribers.labels("classic")._value.get() == len(hub) == 2
        hub.remove(behind)
        hub.remove(behind)
        assert metrics.subscribers.labels("classic")._value.get() == len(hub) == 1


async def test_kinds_that_a_wire_declines_are_left_out_for_its_readers_alone() -> None:
    async with served(events=30) as (hub, log):
        members = []
        for encoding, position in ((CREATES, 1), (CREATES, None), (CLASSIC, None)):
            sink, lane = FakeSink(), hub.lane()
            start = lane.position if position is None else position
            members.append(Subscriber(sink, encoding, SubscriberOptions(), lane, start, 0.0))
            hub.add(members[-1])
        await until(lambda: members[0].group)
        log.grow(30)
        await until(lambda: hub.position > log.tip and not members[2].group.delivering)  # type: ignore[union-attr]
        creates = [STEP_US * n for n in range(1, 61) if event(n).kind == CREATE]
        live = [time for time in creates if time > 30 * STEP_US]
        assert [times(member.sink) for member in members] == [  # type: ignore[arg-type]
            creates,
            live,
            [STEP_US * n for n in range(31, 61)],
        ]
        assert hub._metrics.messages.labels("v1")._value.get() == len(creates) + len(live)


async def test_a_log_that_cannot_be_read_ends_that_reader_alone() -> None:
    async with served(events=20) as (hub, log):
        log.failure = OSError("the disk is on fire")
        sink = FakeSink()
        wanted = SubscriberOptions(Filter(dids=frozenset({b"did:plc:repo1"})))
        hub.add(Subscriber(sink, CLASSIC, wanted, hub.lane(), 1, 0.0))
        _, healthy = join(hub)
        await until(lambda: sink.closing)
        assert sink.close_seen == Close(1011, "error", "the server failed to read its log: connect again")
        log.grow(1)
        await until(healthy.messages)
    assert times(healthy) == [21 * STEP_US]


async def test_a_connection_that_is_gone_is_no_fault_of_the_log() -> None:
    async with served(events=20) as (hub, _):
        subscriber, sink = join(hub, position=1)
        sink.lost = True
        feeder = subscriber.feeder
        assert feeder is not None
        await until(feeder.done)
        assert (sink.closing, feeder.exception()) == (False, None)


async def test_what_was_trimmed_before_it_was_published_does_not_stop_the_hub() -> None:
    async with served(events=20) as (hub, log):
        _, sink = join(hub)
        log.grow(12)
        await log.trim(log.tip + 1)
        await until(lambda: hub.position > log.tip)
        log.grow(1)
        await until(sink.messages)
    assert times(sink) == [33 * STEP_US]


async def test_it_is_ready_for_more_once_a_lane_has_all_and_it_has_rested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then what is stored next is in the flush of the next lane, and delivery ends with the last one."""
    monkeypatch.setattr(lanes_module, "LANE_SUBSCRIBERS", 1)
    monkeypatch.setattr(hub_module, "WORK_RATIO", 0.0)  # as if each flush were long
    async with served() as (hub, log):
        sinks = [sink for _, sink in (join(hub) for _ in range(3))]
        read_at = time.monotonic() - 10
        seen = []
        for _ in range(3):
            log.grow(1, read_at)
            await log.followers.wait()
            seen.append([len(times(sink)) for sink in sinks])
        assert seen == [[1, 0, 0], [1, 2, 0], [1, 2, 3]]
        assert deliveries(hub) == (1, pytest.approx(10, abs=1))
        await until(lambda: deliveries(hub)[0] == 3)
        assert [times(sink) for sink in sinks] == [[STEP_US * n for n in (1, 2, 3)]] * 3


async def test_it_is_not_ready_before_it_has_rested() -> None:
    async with served() as (hub, log):
        _, sink = join(hub)
        hub._rest.owe(0.05)
        log.grow(1)
        ready = asyncio.create_task(log.followers.wait())
        await until(lambda: times(sink))
        written_at = time.monotonic()
        assert not ready.done()
        await ready
        assert time.monotonic() - written_at > 0.04
    assert times(sink) == [STEP_US]


async def test_delivery_ends_when_those_who_waited_for_it_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not with the next event, which may be long in coming."""
    monkeypatch.setattr(lanes_module, "LANE_SUBSCRIBERS", 1)
    monkeypatch.setattr(hub_module, "WORK_RATIO", 0.0)
    async with served() as (hub, log):
        (_, first), (second, _) = (join(hub) for _ in range(2))
        log.grow(1)
        await log.followers.wait()
        assert (len(times(first)), deliveries(hub)[0]) == (1, 0)
        hub.remove(second)
        assert deliveries(hub)[0] == 1


async def test_lanes_are_flushed_together_while_a_pause_takes_longer_than_a_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes_module, "LANE_SUBSCRIBERS", 1)
    async with served() as (hub, log):
        subscribers, sinks = zip(*(join(hub) for _ in range(3)), strict=True)
        log.grow(1)
        await until(lambda: times(sinks[0]) and not subscribers[0].group.delivering)
        time.sleep(0.05)  # noqa: ASYNC251 - somebody has the loop for long
        log.grow(1)
        await log.followers.wait()
        assert [len(times(sink)) for sink in sinks] == [2, 2, 2]


async def test_it_is_not_ready_while_more_is_stored_than_a_flush_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "FLUSH_EVENTS_MAX", 7)
    async with served() as (hub, log):
        _, sink = join(hub)
        log.grow(20)
        await log.followers.wait()
        assert times(sink) == [STEP_US * n for n in range(1, 21)]


def deliveries(hub: Hub) -> tuple[Any, Any]:
    """Return how many deliveries were observed, and how many seconds they took together."""
    sample = hub._metrics.registry.get_sample_value
    return sample("jetstream_delivery_seconds_count"), sample("jetstream_delivery_seconds_sum")


# Slow readers


def stalled(hub: Hub) -> tuple[Subscriber, FakeSink]:
    """Add a subscriber whose socket takes nothing of what it is sent."""
    subscriber, sink = join(hub)
    subscriber.write(b"\x81\x02{}")
    return subscriber, sink


async def test_a_reader_is_cut_once_it_took_nothing_for_the_timeout() -> None:
    async with served(events=1, slow_timeout_s=60) as (hub, _):
        _, sink = stalled(hub)
        for now in (0.0, 30.0, 59.9):
            await hub._look_at_all(now, ping=True)
            assert not sink.closing
        await hub._look_at_all(60.0, ping=True)
    assert sink.close_seen == Close(1008, "slow", "read nothing for 60 s: read faster")
    assert sink.sent == b"\x81\x02{}"


async def test_any_progress_begins_the_timeout_anew() -> None:
    async with served(events=1, slow_timeout_s=60) as (hub, _):
        _, sink = stalled(hub)
        await hub._look_at_all(50.0, ping=False)
        del sink.waiting[:1]
        await hub._look_at_all(55.0, ping=False)
        await hub._look_at_all(114.0, ping=False)
        assert not sink.closing
        await hub._look_at_all(115.0, ping=False)
    assert sink.closing


async def test_an_idle_reader_is_pinged_and_never_cut() -> None:
    async with served(events=1, slow_timeout_s=60) as (hub, _):
        _, sink = join(hub)
        for minute in range(100):
            await hub._look_at_all(60.0 * minute, ping=minute % 2 == 0)
            sink.drain()
    assert sink.sent == CLASSIC.framing.keep_alive * 50
    assert not sink.closing


async def test_when_too_much_waits_the_fullest_are_put_behind_and_come_back() -> None:
    async with served(events=20, buffer_total=10_000) as (hub, log):
        members = [join(hub) for _ in range(6)]
        for size, (subscriber, _) in zip((0, 100, 6_000, 9_000, 0, 3_000), members, strict=True):
            subscriber.write(b"x" * size)
        await hub._look_at_all(0.0, ping=False)
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
    async with served(events=20, buffer_total=100) as (hub, _):
        behind, sink = join(hub, position=1, limit=10)
        await until(lambda: sink.full)
        at_the_tip, _ = join(hub)
        await hub._look_at_all(0.0, ping=False)
        assert at_the_tip.group is not None
        assert behind.group is None


# Memory


class Counted(Batch):
    """A batch that says when it goes."""


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30), st.data())
def test_one_flush_is_bounded_by_bytes_and_takes_at_least_one_event(
    sizes: list[int], data: st.DataObject
) -> None:
    events = [Event(CREATE, b"did:plc:a", LIKE, b"k", b"r", b"", b"x" * size) for size in sizes]
    batch = Batch.of(events, range(len(sizes)))
    first = data.draw(st.integers(0, len(sizes) - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "FLUSH_BYTES_MAX", 4_000)
        last = flush_end(batch, first, len(sizes))
    assert first < last <= len(sizes)
    assert last == first + 1 or sum(sizes[first:last]) <= 4_000
    assert last == len(sizes) or sum(sizes[first : last + 1]) > 4_000


def test_one_flush_of_small_events_is_bounded_by_their_number() -> None:
    batch = Batch.of([event(number) for number in range(1, 3000)], range(1, 3000))
    assert flush_end(batch, 7, len(batch)) == 7 + FLUSH_EVENTS_MAX


async def test_what_is_written_at_once_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await _writes_of_a_batch()
    monkeypatch.setattr(hub_module, "FLUSH_BYTES_MAX", 100)
    assert len(whole) < len(await _writes_of_a_batch()) <= BATCH_EVENTS


async def _writes_of_a_batch() -> list[bytes]:
    world, writes = World(), list[bytes]()
    world.join(SubscriberOptions(), CLASSIC, None, 1 << 40)
    sink = world.members[0].sink
    write = sink.write

    def note(data: bytes) -> None:
        writes.append(data)
        write(data)

    sink.write = note  # type: ignore[method-assign]
    async with running(world.hub):
        world.log.grow(BATCH_EVENTS)
        await world.settle()
    assert world.members[0].obeys_the_law(world.log)
    return writes


@pytest.mark.parametrize("limit", [200, 1 << 40])  # a feeder that waits for its socket, one that has arrived
@pytest.mark.parametrize("turns", [0, 1, 3, 30])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("cursor", [None, 0, 10**9])
async def test_nothing_stays_of_a_subscriber_that_left(
    cursor: int | None, lost: bool, turns: int, limit: int
) -> None:
    gc.collect()
    gc.disable()  # what stays until the collector comes stays for hours: it hardly ever looks at what is old
    try:
        world = World()
        async with running(world.hub):
            world.join(SubscriberOptions(Filter(dids=frozenset({b"did:plc:repo1"}))), CLASSIC, cursor, limit)
            await world.turn(turns)
            member = world.members.pop()
            member.sink.lost = lost
            if lost:
                member.sink.drain()
                await world.turn(turns)
            world.hub.remove(member.subscriber)
            sink = weakref.ref(member.sink)  # which the subscriber holds, and whatever holds that
            del member
            await world.turn(5)
            assert sink() is None
            assert not len(world.hub)
    finally:
        gc.enable()


async def test_many_readers_at_as_many_places_hold_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "HOLDERS_MAX", 3)
    world = World()
    world.log.grow(60 * BATCH_EVENTS)
    world.hub = Hub(world.log, Metrics())
    world.log.patience = 2
    held, most = set[int](), 0
    read = world.log.read

    async def read_a_copy(position: int, stop: int, wanted: Filter) -> Batch | None:
        """Read as from a disk: each batch is another's, and counted for as long as it is there."""
        nonlocal most
        batch = await read(position, stop, wanted)
        if batch is None or batch is world.log.batches[-1]:
            return batch
        copy = Counted.of([batch.event(i) for i in range(len(batch))], batch.times)
        held.add(id(copy))
        weakref.finalize(copy, held.discard, id(copy))
        most = max(most, len(held))
        return copy

    monkeypatch.setattr(world.log, "read", read_a_copy)
    async with running(world.hub):
        for number in range(50):
            world.join(SubscriberOptions(), CLASSIC, number * BATCH_EVENTS * STEP_US, 1 << 40)
        await world.settle()
    assert all(member.obeys_the_law(world.log) for member in world.members)
    assert most <= 3 + 2  # one that was just read, and one that was just let go of
