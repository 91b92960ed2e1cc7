"""The hub: brings every subscriber from its position to the tip of the log, and keeps it there.

Each subscriber is in a lane (see `lanes`), whose `position` is a boundary: all below it has been published
there. A subscriber is either

* *at the tip*: a member of the group of its filter, and its position is the lane's. Each flush of the lane
  writes what is new, once for each group as one `bytes`, to each of the group's members; or
* *behind*: its own feeder reads the log from its position up to the lane's, a slice at a time, and joins the
  group when it has arrived. So does a newcomer with a cursor, and a member whose socket is full.

A flush moves the boundary first and writes after, in turns, so that no number of sockets holds the
event loop for long. Whoever leaves a group in the middle of a flush is asked whether it was written to
(`_position_of`); whoever joins then is already past the boundary. Hence nothing is lost or repeated.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from typing import Final

import structlog

from jetstream.delivery.chunks import cut
from jetstream.delivery.index import Group
from jetstream.delivery.lanes import Lane, Lanes
from jetstream.delivery.render_cache import RenderCache
from jetstream.delivery.subscriber import Close, Subscriber, SubscriberOptions
from jetstream.errors import LogError
from jetstream.eventlog import LogReader
from jetstream.limits import DeliveryLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING
from jetstream.scheduling import TURN_S, Line, Pulse, Rest

# After a flush the hub rests for this share of what it took, and after one of each lane for no less than
# this: batches grow, and with them what one commit and one write carry.
REST_RATIO: Final = 0.36
REST_S_MIN: Final = 0.001
FULL_EVENTS: Final = 200  # of a flush that would not get cheaper: no rest on its own account
# For those behind it rests longer: for so many times what was taken from them, head for head.
HUNGRY_RATIO: Final = 2
REST_S_MAX: Final = 0.02  # whatever for
# Between two pauses there is this share of what the last one took: where that is more than one lane, a pause
# and a commit for each would be the larger part. So it is when lanes are light, and when the loop is busy.
WORK_RATIO: Final = 0.5
WRITES_PER_LOOK: Final = 32  # at the clock, whether the turn is over
FLUSH_EVENTS_MAX: Final = 1_000  # rendered between two turns: about a millisecond
# The same by bodies, twice what a thousand ordinary events have: for a reader at the tip, so much more than
# its buffer may wait.
FLUSH_BYTES_MAX: Final = 1 << 20
# Batches held by feeders that wait for their turn, as many feeders as there are at each. An ordinary block is
# 5 MB and rendered twice that; each of 200 readers may be at another one.
HOLDERS_MAX: Final = 12
SLICES_PER_TURN: Final = 5  # of one feeder, as long as its socket takes them
WATCH_SLICE: Final = 500  # subscribers looked at between two turns
PING_EVERY_S: Final = 30.0
LOOK_EVERY_S: Final = 0.5

logger = structlog.get_logger(__name__)
throttled = Throttled(logger)


class Hub:
    """Keeps all subscribers, and publishes the log to them.

    `slow_timeout_s` is how long a socket may take nothing while something waits for it. When more than
    `buffer_total` bytes wait for all subscribers together, those with the most are put behind.
    """

    def __init__(
        self,
        log: LogReader,
        metrics: Metrics,
        *,
        slow_timeout_s: float = 60.0,
        buffer_total: int = 512 << 20,
        limits: DeliveryLimits = DeliveryLimits(),
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._slow_timeout_s = slow_timeout_s
        self._buffer_total = buffer_total
        self._limits = limits
        self._rendered = RenderCache(limits.render_cache_bytes)
        self._lanes = Lanes(log.tip + 1)
        self._subscribers: dict[Subscriber, None] = {}
        self._rest = Rest()
        self._follower = log.followers.join(self.position)  # told where the foremost lane is after each rest
        self._storing_s = 0.0  # how long the last turn was that was left for storing
        self._hungry = 0  # feeders that do not wait for their socket, but for the log or their turn
        self._held = Counter[Batch]()  # by feeders that wait for their turn; each batch counts once
        self._holders = asyncio.Semaphore(HOLDERS_MAX)
        self._slices = Line(1)  # a turn, however many feeders there are
        self._changed = Pulse()  # a lane's position
        self._tasks: asyncio.TaskGroup | None = None

    def __len__(self) -> int:
        return len(self._subscribers)

    @property
    def position(self) -> int:
        """The boundary of the lane that is furthest behind: all below it has been published."""
        return self._lanes.hindmost.position

    def lane(self) -> Lane:
        """Return the lane for the next newcomer; one that is to be live begins at its position."""
        return self._lanes.for_newcomer()

    async def run(self) -> None:
        """Publish, feed and watch, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._watch())
                await self._publish()
        finally:
            self._follower.leave()

    # Coming and going

    def add(self, subscriber: Subscriber) -> None:
        """Begin to serve a subscriber from its position."""
        self._subscribers[subscriber] = None
        self._lanes.enter(subscriber.lane)
        self._metrics.connected[subscriber.encoding.wire].inc()
        self._place(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """Forget a subscriber; what it has not been sent is not sent."""
        if self._subscribers.pop(subscriber, subscriber) is subscriber:
            return
        self._lanes.leave(subscriber.lane)
        self._observe_delivery()  # the lane that all waited for may be gone
        self._metrics.connected[subscriber.encoding.wire].dec()
        if subscriber.group is not None:
            subscriber.lane.groups.remove(subscriber)
        feeder, subscriber.feeder = subscriber.feeder, None
        if feeder is not None:  # a task refers to its subscriber: both would be a reference cycle
            feeder.cancel()

    def change(self, subscriber: Subscriber, options: SubscriberOptions) -> None:
        """Judge every event from the subscriber's position on by new options."""
        if subscriber.group is None:
            subscriber.options = options  # its feeder looks before every slice
            return
        subscriber.position = self._position_of(subscriber)
        subscriber.lane.groups.remove(subscriber)
        subscriber.options = options
        self._place(subscriber)

    def _place(self, subscriber: Subscriber) -> None:
        groups = subscriber.lane.groups
        if subscriber.position == subscriber.lane.position and not groups.takes_steps(subscriber):
            groups.add(subscriber)
        else:  # its feeder indexes what it wants, in turns, and brings it to the tip again
            self._fall_behind(subscriber)

    def _position_of(self, subscriber: Subscriber) -> int:
        """Return the position of a member of a group, in the middle of a flush, too."""
        group = subscriber.group
        assert group is not None
        lane = subscriber.lane
        unwritten = group.delivering and subscriber.position != lane.position
        return lane.flushed_from if unwritten else lane.position

    # At the tip

    async def _publish(self) -> None:
        pause_s = 0.0
        while True:
            await self._log.wait(self.position)
            worked_s = await self._flush(self._lanes.hindmost)
            while worked_s < pause_s * WORK_RATIO and self.position <= self._log.tip:
                if worked_s > TURN_S / 4:  # and the next lane may take a whole turn
                    await asyncio.sleep(0)
                worked_s += await self._flush(self._lanes.hindmost)
            ended = time.monotonic()
            await self._rest.take()
            await self._let_in()
            pause_s = time.monotonic() - ended

    async def _let_in(self) -> None:
        """Leave a turn to whoever is to store what came meanwhile, so that it is in the next flush."""
        began = time.monotonic()
        self._follower.advance(self._lanes.foremost.position)
        await asyncio.sleep(0)
        self._storing_s = time.monotonic() - began

    async def _flush(self, lane: Lane) -> float:
        """Move a lane's boundary over the next events, and write them to all who are at the tip there.

        Returns how many seconds of work it was.
        """
        stop = self._log.tip + 1
        batch = await self._log.read(lane.position, stop, EVERYTHING)
        if batch is None:  # all of it was trimmed or scrubbed before it could be published
            self._move(lane, stop)
            self._observe_delivery()
            return 0.0
        first = batch.index(lane.position)
        last = flush_end(batch, first, batch.index(stop))
        self._move(lane, batch.times[last - 1] + 1)
        written, worked_s = await self._deliver(lane, batch, first, last)
        self._observe_delivery()
        taken_s, self._storing_s = self._storing_s + worked_s, 0.0
        self._rest.owe(rest_s(last - first, worked_s, taken_s, written, self._hungry, len(self._lanes)))
        return worked_s

    def _move(self, lane: Lane, position: int) -> None:
        lane.move(position)
        self._changed.send()

    def _observe_delivery(self) -> None:
        """Take note of what all lanes have by now."""
        position, now = self.position, time.monotonic()
        appended = self._follower.appended
        while appended and appended[0][0] < position:
            _, received_at = appended.popleft()
            self._metrics.delivery.observe(now - received_at)

    async def _deliver(self, lane: Lane, batch: Batch, first: int, last: int) -> tuple[int, float]:
        """Write `batch[first:last]` to all at the tip, in turns; return to how many, in how many seconds."""
        began, worked_s, reached = time.perf_counter(), 0.0, 0
        messages, sizes = Counter[str](), Counter[str]()
        encodings = lane.groups.encodings()
        rendered = {each: self._rendered.render(batch, range(first, last), each) for each in encodings}
        wanted = lane.groups.wanted(batch, first, last)
        for group in wanted:
            group.delivering = True
        for group, indices in wanted.items():
            frames = rendered[group.encoding].frames(indices, group.options.message_bytes_max)
            data = frames[0] if len(frames) == 1 else b"".join(frames)
            members, written = list(group.members) if data else [], 0
            for start in range(0, len(members), WRITES_PER_LOOK):
                written += self._write(lane, group, members[start : start + WRITES_PER_LOOK], data)
                turn_s = time.perf_counter() - began
                if turn_s >= TURN_S:
                    worked_s += turn_s
                    await asyncio.sleep(0)
                    began = time.perf_counter()
            group.delivering = False
            reached += written
            messages[group.encoding.wire] += written * len(frames)
            sizes[group.encoding.wire] += written * len(data)
        for wire, size in sizes.items():
            self._metrics.count_sent(wire, messages[wire], size)
        return reached, worked_s + time.perf_counter() - began

    def _write(self, lane: Lane, group: Group, members: list[Subscriber], data: bytes) -> int:
        """Write to those who are still at the tip, each once, whoever has come and gone; return how many."""
        position, size, written = lane.position, len(data), 0
        for subscriber in members:
            if subscriber.group is group and subscriber.position != position:
                sink = subscriber.sink  # `Subscriber.write`, without the call: nothing is done as often
                sink.written += size
                try:
                    sink.write(data)
                except RuntimeError:
                    continue  # gone, and about to be removed
                written += 1
                subscriber.position = position
                if sink.full:
                    lane.groups.remove(subscriber)
                    self._fall_behind(subscriber)
        return written

    # Behind

    def _fall_behind(self, subscriber: Subscriber) -> None:
        assert self._tasks is not None
        # What waits for those at the tip is one buffer for a whole group; slices are often each reader's own.
        subscriber.sink.lower_limit(True)
        subscriber.feeder = self._tasks.create_task(self._feed(subscriber))

    async def _feed(self, subscriber: Subscriber) -> None:
        indexed: Group | None = None  # the group of its options, if that is large
        try:
            while not subscriber.closed:
                await subscriber.sink.writable()
                if subscriber.position == subscriber.lane.position:
                    if indexed is not None and indexed.options is not subscriber.options:
                        subscriber.lane.groups.forget(indexed)  # the options were changed meanwhile
                        indexed = None
                    if indexed is None and subscriber.lane.groups.takes_steps(subscriber):
                        indexed = await self._index(subscriber)
                        continue  # the lane has moved on
                    subscriber.feeder = None
                    subscriber.sink.lower_limit(False)
                    ready, indexed = indexed, None
                    subscriber.lane.groups.add(subscriber, ready)
                    return
                if subscriber.position > subscriber.lane.position:
                    await self._reached(subscriber.lane, subscriber.position)
                else:
                    self._hungry += 1
                    try:
                        await self._feed_slice(subscriber)
                    finally:
                        self._hungry -= 1
        except ConnectionError:
            return  # whoever holds the connection hears of it, too, and removes the subscriber
        except LogError as error:  # no damage, which the log passes over
            throttled.warning("subscriber: the log could not be read", error=str(error))
            subscriber.close(Close(1011, "error", "the server failed to read its log: connect again"))
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._metrics.failures.labels("feed").inc()
            throttled.exception("subscriber: could not be fed")
            subscriber.close(Close(1011, "error", "the server failed to read its log: connect again"))
        finally:
            if indexed is not None:
                subscriber.lane.groups.forget(indexed)

    async def _index(self, subscriber: Subscriber) -> Group:
        """Index the group of a subscriber's options, a step in each turn."""
        group, groups = Group(subscriber.encoding, subscriber.options), subscriber.lane.groups
        try:
            for _ in groups.index(group):
                await self._slices.turn()
        except asyncio.CancelledError:
            groups.forget(group)
            raise
        return group

    async def _reached(self, lane: Lane, position: int) -> None:
        """Wait until the boundary has reached a cursor among events that are stored but not published."""
        while lane.position < position:
            await self._changed.wait()

    async def _feed_slice(self, subscriber: Subscriber) -> None:
        batch = await self._read(subscriber, subscriber.position)
        if batch is not None and batch not in self._held:
            if self._holders.locked():
                found, batch = batch.first, None
                batch = await self._hold(subscriber, found)
            else:
                await self._holders.acquire()  # which does not wait
        if batch is None:
            return
        self._held[batch] += 1
        try:
            await self._send_slices(subscriber, batch)
        finally:
            self._held[batch] -= 1
            if not self._held[batch]:
                del self._held[batch]
                self._holders.release()

    async def _hold(self, subscriber: Subscriber, found: int) -> Batch | None:
        """Wait, with no batch in hand, until one more may be held, and read again from where it was found."""
        options, batch = subscriber.options, None
        await self._holders.acquire()
        try:
            if subscriber.options is options:
                batch = await self._read(subscriber, max(subscriber.position, found))
        finally:
            if batch is None or batch in self._held:  # then it counts already
                self._holders.release()
        return batch

    async def _read(self, subscriber: Subscriber, position: int) -> Batch | None:
        """Return the batch with the first events from `position` on that a subscriber may want.

        None when the feeder has to look again: there are none up to the boundary, and the subscriber's
        position is there; or it has other options meanwhile, or is closed.
        """
        stop, options = subscriber.lane.position, subscriber.options
        batch = await self._log.read(position, stop, options.wanted)
        if position < self._log.floor:
            subscriber.close(_overtaken(position, self._log.floor))
        if subscriber.options is not options or subscriber.closed:
            return None  # a new filter judges from this position on
        if batch is None:
            subscriber.position = stop
        return batch

    async def _send_slices(self, subscriber: Subscriber, batch: Batch) -> None:
        options = subscriber.options
        await self._slices.turn()
        if subscriber.options is not options or subscriber.closed:
            return
        # The boundary may have moved on while others had their turn, and the batch have grown with it.
        first, last = batch.index(subscriber.position), batch.index(subscriber.lane.position)
        for _ in range(SLICES_PER_TURN):
            first = self._send_slice(subscriber, batch, first, last)
            if subscriber.sink.full or first == last:
                return

    def _send_slice(self, subscriber: Subscriber, batch: Batch, first: int, last: int) -> int:
        """Write the next slice of `batch[first:last]` to a subscriber, and move its position.

        Returns the index up to which the batch has been judged.
        """
        data, messages, reached = cut(
            batch, first, last, subscriber.encoding, subscriber.options, self._rendered, self._limits
        )
        if data:
            subscriber.write(data)
            self._metrics.count_sent(subscriber.encoding.wire, messages, len(data))
        # An empty range would mean that nothing stands between the position and the boundary.
        subscriber.position = batch.times[reached - 1] + 1 if reached > first else subscriber.lane.position
        return reached

    # Watching

    async def _watch(self) -> None:
        """Ping everyone now and then, and cut those whose socket has stood still for too long."""
        loop = asyncio.get_running_loop()
        ping_at = loop.time() + PING_EVERY_S
        while True:
            due = loop.time() + LOOK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
            now = loop.time()
            self._metrics.loop_delay.observe(max(0.0, now - due))
            ping = now >= ping_at
            if ping:
                ping_at = now + PING_EVERY_S
            await self._look_at_all(now, ping=ping)

    async def _look_at_all(self, now: float, *, ping: bool) -> None:
        waiting = 0
        for count, subscriber in enumerate(list(self._subscribers), 1):
            buffered = subscriber.sink.buffered
            waiting += buffered
            stalled_s = subscriber.stalled_s(buffered, now)
            if stalled_s >= self._slow_timeout_s:
                subscriber.close(Close(1008, "slow", f"read nothing for {stalled_s:.0f} s: read faster"))
            elif ping and not buffered:
                subscriber.write(subscriber.encoding.framing.keep_alive)
            if count % WATCH_SLICE == 0:
                await asyncio.sleep(0)
        if waiting > self._buffer_total:
            self._relieve(waiting - self._buffer_total)

    def _relieve(self, excess: int) -> None:
        """Put those with the fullest buffers behind, until less waits."""
        at_tip = [each for each in self._subscribers if each.group is not None and each.sink.buffered]
        for subscriber in sorted(at_tip, key=lambda subscriber: -subscriber.sink.buffered):
            excess -= subscriber.sink.buffered
            subscriber.position = self._position_of(subscriber)
            subscriber.lane.groups.remove(subscriber)
            self._fall_behind(subscriber)
            if excess <= 0:
                return


def rest_s(events: int, worked_s: float, taken_s: float, written: int, hungry: int, lanes: int) -> float:
    """Return for how many seconds to rest after a flush of `events` to `written` sockets of one of the lanes.

    `worked_s` is what it took, `taken_s` that and the turn left for storing before. While `hungry` readers
    are behind whose sockets would take more, the loop is never idle, and all of that is taken from them. So
    they get twice as much, head for head: with less, thousands who come back together, or a few on a server
    that does all it can, would stay as far behind as they are.
    """
    own_s = 0.0 if events >= FULL_EVENTS else max(REST_S_MIN / lanes, min(REST_RATIO * worked_s, REST_S_MAX))
    theirs_s = HUNGRY_RATIO * taken_s * hungry / (max(written, 1) * lanes)
    return max(own_s, min(theirs_s, REST_S_MAX / lanes))


def flush_end(batch: Batch, first: int, stop: int) -> int:
    """Return the end of what one flush takes of `batch[first:stop]`: at least one event."""
    last = min(stop, first + FLUSH_EVENTS_MAX)
    if sum(map(len, batch.bodies[first:last])) <= FLUSH_BYTES_MAX:
        return last
    sizes = list(accumulate(map(len, batch.bodies[first:last])))
    return first + max(1, bisect_right(sizes, FLUSH_BYTES_MAX))


def _overtaken(position: int, floor: int) -> Close:
    text = f"position {position} is no longer kept, the oldest is {floor}: connect with a later cursor"
    return Close(1008, "overtaken", text)
