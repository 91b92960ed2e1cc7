"""A log in memory, sinks without a socket, and a clock that stands still: delivery, driven step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
from tests.unit.delivery.encodings import CLASSIC, frames_of
from websockets.frames import Opcode

from jetstream.delivery.delivery import Delivery
from jetstream.delivery.subscriber import Close, Encoding, Subscriber, SubscriberOptions
from jetstream.eventlog import Gap
from jetstream.eventlog.backpressure import Followers
from jetstream.limits import DeliveryLimits
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, Event
from jetstream.model.filter import EVERYTHING, Filter
from jetstream.status import LogStatistics

STEP_US = 10
BATCH_EVENTS = 16
UNBOUNDED = 1 << 40
LIKE, POST, THING = b"app.bsky.feed.like", b"app.bsky.feed.post", b"com.example.thing"
ALL = SubscriberOptions()
LIMITS = DeliveryLimits()
# Each step is small, so that what a test does falls between two of them.
SMALL = DeliveryLimits(
    turn_s=0.0,
    costly_s=0.0,
    writes_per_look=1,
    judged_per_step=3,
    flush_events=7,
    chunk_events=5,
    chunk_bytes=600,
    judged_events=11,
    render_cache_bytes=10_000,
)
# Each subscriber has a lane of its own, and there is a pause after each flush.
LANES = replace(LIMITS, lane_subscribers=1, work_ratio=0.0)


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


class Clock:
    """Stands still until it is moved. `sleep` notes how long it was asked for, and takes no time."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []
        self.asleep = asyncio.Event()  # set once a sleep that is not 0 has begun
        self.oversleep_s = 0.0  # by how much a sleep is too long
        self.alarm: asyncio.Event | None = None  # what sleeps wait for, if anything

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.oversleep_s
        if seconds:
            self.asleep.set()
            if self.alarm is not None:
                await self.alarm.wait()
        await asyncio.sleep(0)


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
        self.appended_by_others = 0  # the newest position of another process, which `look` finds
        self.watermark = 0  # as the writer has told it
        self.possible = 0  # the newest position that another process may have stored
        self.copy: Callable[[Batch], Batch] | None = None  # what a reader is given instead of a full batch
        self._grown = asyncio.Event()
        self._seen = 0

    @property
    def oldest_us(self) -> int | None:
        return self.batches[0].first if self.batches else None

    @property
    def newest(self) -> int:
        return max(self.tip, self._seen)

    @property
    def cursor_max(self) -> int:
        return max(self.newest, self.possible) + 1

    async def look(self) -> None:
        self._seen = self.appended_by_others

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
        self._announce(received_at)

    def put(self, batch: Batch) -> None:
        """Append a batch of other events."""
        self.batches.append(batch)
        self.times += batch.times
        self._announce(0.0)

    def _announce(self, received_at: float) -> None:
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
                return batch if self.copy is None or batch is self.batches[-1] else self.copy(batch)
        return None

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        raise NotImplementedError

    async def wait(self, position: int) -> None:
        while self.tip < position:
            await self._grown.wait()

    def trim(self, before_us: int) -> None:
        while self.batches and self.batches[0].last < before_us:
            self.floor = self.batches.pop(0).last + 1

    def statistics(self) -> LogStatistics:
        raise NotImplementedError


class FakeSink:
    """A buffer that drains when it is told to."""

    def __init__(self, limit: int = UNBOUNDED, on_write: Callable[[FakeSink], None] | None = None) -> None:
        self.limit = limit
        self.on_write = on_write
        self.written = 0
        self.controls = 0
        self.full = False
        self.closing = False
        self.lowered = False
        self.gathers = 0
        self.waiting = bytearray()
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.close_seen: Close | None = None
        self.lost = False
        self._drained = asyncio.Event()

    @property
    def buffered(self) -> int:
        return len(self.waiting)

    def write(self, data: bytes) -> None:
        if self.closing:
            return
        if self.on_write is not None:
            self.on_write(self)
        self.writes.append(data)
        self.waiting += data
        self.sent += data
        self.full = len(self.waiting) > (self.limit // 8 if self.lowered else self.limit)

    async def writable(self) -> None:
        while self.full:
            await self._drained.wait()
        if self.lost:
            raise ConnectionResetError("gone")

    async def drained(self) -> None:
        while self.waiting:
            await self._drained.wait()
        await self.writable()

    def drain(self) -> None:
        self.waiting.clear()
        self.full = False
        drained, self._drained = self._drained, asyncio.Event()
        drained.set()

    def lower_limit(self, lowered: bool) -> None:
        self.lowered = lowered

    def gather(self) -> None:
        self.gathers += 1

    def close(self, close: Close) -> None:
        if not self.closing:
            self.closing = True
            self.close_seen = close

    def messages(self) -> list[bytes]:
        """Return what was written, message by message, without pings."""
        return [bytes(frame.data) for frame in frames_of(bytes(self.sent)) if frame.opcode is Opcode.TEXT]

    def times(self) -> list[int]:
        """Return the `time_us` of each message."""
        return [orjson.loads(message)["time_us"] for message in self.messages()]

    def heartbeats(self) -> list[tuple[int, bool]]:
        """Return the `time_us` and the `live` of each heartbeat."""
        messages = map(orjson.loads, self.messages())
        return [(each["time_us"], each["live"]) for each in messages if "live" in each]


@asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[None]:
    """Run delivery."""
    task = asyncio.create_task(delivery.run())
    await asyncio.sleep(0)
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def served(
    events: int = 0, limits: DeliveryLimits = LIMITS, **arguments: Any
) -> AsyncIterator[tuple[Delivery, MemoryLog]]:
    """Run delivery from a log that has so many events."""
    log = MemoryLog()
    if events:
        log.grow(events)
    delivery = Delivery(log, Metrics(("classic", "v1")), limits, **arguments)
    async with running(delivery):
        yield delivery, log


def join(
    delivery: Delivery,
    cursor: int | None = None,
    *,
    limit: int = UNBOUNDED,
    encoding: Encoding = CLASSIC,
    options: SubscriberOptions = ALL,
    on_write: Callable[[FakeSink], None] | None = None,
    **arguments: Any,
) -> tuple[Subscriber, FakeSink]:
    """Add a subscriber: to everything from the tip on, unless told otherwise."""
    sink = FakeSink(limit, on_write)
    return delivery.subscribe(sink, encoding, options, cursor, **arguments), sink


async def until(condition: Callable[[], object]) -> None:
    """Return once a condition holds; it is checked in each turn of the event loop."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - turn by turn
            await asyncio.sleep(0)


async def reading(condition: Callable[[], object], *sinks: FakeSink) -> None:
    """Return as `until`; meanwhile all that is written to these sinks is read."""

    def holds() -> object:
        for sink in sinks:
            sink.drain()
        return condition()

    await until(holds)


async def flushed(delivery: Delivery, log: MemoryLog, *subscribers: Subscriber) -> None:
    """Return once all that is stored has been written to these subscribers, at the tip."""
    await until(
        lambda: (
            delivery.position > log.tip
            and not is_judging(delivery)
            and all(each.group is not None and not each.group.flushing for each in subscribers)
        )
    )


def is_judging(delivery: Delivery) -> bool:
    """Tell whether a flush has not found yet which groups want its events."""
    return any(lane.judging for lane in delivery._lanes._lanes)


def steps(first: int, stop: int) -> list[int]:
    """Return the times of the events from one number to before another."""
    return [STEP_US * number for number in range(first, stop)]
