"""The hub against a log in memory and sinks without a socket: positions, and what follows from them.

The law: whatever happens, a subscriber is sent what it wants of every event from its position on, once, in
order; and each change of its options has one position, before which the old ones judge and after it the new.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.events import ACCOUNT, CREATE, DELETE, IDENTITY, Batch, Event
from jetstream.filters import EVERYTHING, Filter
from jetstream.hub import hub as hub_module
from jetstream.hub.hub import Hub
from jetstream.hub.subscriber import Close, Options, Subscriber
from jetstream.hub.wires import CLASSIC, V1, Wire
from jetstream.log import LogStatistics, UpstreamCursor
from jetstream.metrics import Metrics

STEP_US = 10
BATCH_EVENTS = 16
CURSOR = UpstreamCursor("relay.example:443", 1)
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
        self.upstream = CURSOR
        self.patience = 0
        self.reads = 0
        self.failure: Exception | None = None
        self._grown = asyncio.Event()

    async def append(self, batch: Batch, upstream: UpstreamCursor) -> None:
        raise NotImplementedError

    def grow(self, count: int) -> None:
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

    async def close(self) -> None:
        raise NotImplementedError


class FakeSink:
    """A buffer that drains when it is told to."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit = limit
        self.full = False
        self.closing = False
        self.squeezed = False
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
        self.full = len(self.waiting) > (self.limit // 8 if self.squeezed else self.limit)

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

    def squeeze(self, squeezed: bool) -> None:
        self.squeezed = squeezed

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
    segments: list[tuple[Options, int]] = field(default_factory=list)  # options, messages sent before them

    def obeys_the_law(self, log: MemoryLog) -> bool:
        """Tell whether what it was sent can be cut at its changes so that each part is exactly right."""
        messages = self.sink.messages()
        wire = self.subscriber.wire
        whole = Batch.of([event(time // STEP_US) for time in log.times], log.times)
        ends = [count for _, count in self.segments[1:]] + [len(messages)]
        starts = {self.first}
        for (options, begin), end in zip(self.segments, ends, strict=True):
            part = messages[begin:end]
            starts = {stop for start in starts for stop in _stops(whole, start, wire, options, part)}
        return bool(starts) if self.sink.closing else len(whole) in starts


def _stops(whole: Batch, start: int, wire: Wire, options: Options, part: list[bytes]) -> Iterator[int]:
    """Yield each index up to which `part` is exactly what is wanted from `start` on."""
    sent = 0
    for stop in range(start, len(whole) + 1):
        if sent == len(part):
            yield stop
        if stop == len(whole):
            return
        message = wire.message(whole, stop)
        if options.wanted.select(whole, stop, stop + 1) and (
            not options.message_bytes_max or len(message) <= options.message_bytes_max
        ):
            if sent == len(part) or part[sent] != message:
                return
            sent += 1


class World:
    """A hub, its log and its subscribers, driven step by step."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.log.grow(40)
        self.hub = Hub(self.log, Metrics(), clock=lambda: self.log.tip)
        self.members: list[Member] = []
        self.left: list[Member] = []

    def join(self, options: Options, wire: Wire, cursor: int | None, limit: int) -> None:
        position = self.hub.position if cursor is None else max(min(cursor, self.log.tip + 1), self.log.floor)
        sink = FakeSink(limit)
        subscriber = Subscriber(sink, wire, options, position, 0.0)
        first = sum(time < position for time in self.log.times)
        self.members.append(Member(subscriber, sink, first, [(options, 0)]))
        self.hub.add(subscriber)

    def change(self, which: int, options: Options) -> None:
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
        Options(),
        Options(message_bytes_max=150),
        Options(Filter(collections=frozenset({LIKE}))),
        Options(Filter(prefixes=frozenset({b"app.bsky.feed."})), 180),
        Options(Filter(dids=frozenset({b"did:plc:repo1"}))),
        Options(Filter(frozenset({THING}), dids=frozenset({b"did:plc:repo1", b"did:plc:repo2"}))),
    ]
)
which = st.integers(0, 5)
cursors = st.one_of(st.none(), st.none(), st.integers(0, 1_000))
joins = st.tuples(
    st.just("join"), options, st.sampled_from([CLASSIC, V1]), cursors, st.sampled_from([200, 2_000, 1 << 40])
)
turns = st.tuples(st.just("turn"), st.integers(1, 4))
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


@pytest.fixture(scope="module")
def _small_turns() -> Iterator[None]:
    """Make each step of the hub small, so that a test's steps fall between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "FLUSH_EVENTS_MAX", 7)
        patch.setattr(hub_module, "SLICE_EVENTS_MAX", 5)
        patch.setattr(hub_module, "SLICE_BYTES_MAX", 600)
        patch.setattr(hub_module, "TURN_S", 0.0)  # so that a turn has the fewest writes it may have
        patch.setattr(hub_module, "TURN_WRITES_MIN", 1)
        yield


@pytest.mark.usefixtures("_small_turns")
@settings(max_examples=300)
@given(programs, st.integers(0, 3))
def test_each_subscriber_gets_exactly_what_it_wants(program: list[tuple[Any, ...]], patience: int) -> None:
    async def play() -> None:
        world = World()
        world.log.patience = patience
        world.hub._turn_writes = 1
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

    asyncio.run(play())
