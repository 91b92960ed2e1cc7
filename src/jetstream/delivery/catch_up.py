"""Catching up: a subscriber behind the tip is served by a task of its own, its feeder.

A subscriber is behind when it connects with a cursor, when its socket is full, and when it has a large new
filter that is not in the index yet. Its feeder repeats:

    wait until the socket takes more
    read the next batch of the log that may have something for it
    wait for a turn, and write a few chunks of that batch

When it arrives at the lane's position, it puts the subscriber into its group and ends. The lane may move on
at any `await`, options may change, and the subscriber may be closed. So a feeder checks again after each.

A subscriber with `Bounds` has its feeder to the end: it waits at the lane's position for the next flush, cuts
exactly at `until` and at the limit, and closes the connection once the buffer has been sent.

A replay whose address has sent more than it may (`Subscriber.replay`) pauses, and holds nothing meanwhile.

Any number of feeders share the event loop: one of them has `chunks_per_turn` chunks in each turn. A feeder
that waits for its turn holds the batch that it has read. All feeders together hold at most `held_batches`
different batches: the others wait without one, and read again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Final

import structlog

from jetstream.delivery.chunks import cut
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.lanes import Lane
from jetstream.delivery.render_cache import RenderCache
from jetstream.delivery.subscriber import Bounds, Close, Encoding, Group, Subscriber, SubscriberOptions
from jetstream.errors import LogError
from jetstream.eventlog import LogReader
from jetstream.limits import DeliveryLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.scheduling import Notifier, TurnQueue

# How a subscription with `Bounds` ends: normally (1000, RFC 6455, section 7.4.1). The sink adds the cursor.
LIMIT_REACHED: Final = Close(1000, "done", "done: the limit is reached, to go on connect with this cursor")
UNTIL_REACHED: Final = Close(1000, "done", "done: until is reached, to go on connect with this cursor")
# After an error of the log or of the feeder. The subscriber may come back with the cursor that it is sent.
_FAILED: Final = Close(1011, "error", "the server failed to read its log: connect again")


class CatchUp:
    """Serves the subscribers that are behind. `clock` gives monotonic seconds, `sleep` pauses for some.

    Used by the event loop's thread only. `Delivery` and `Publisher` start feeders. A feeder ends by itself,
    or by `stop`.
    """

    def __init__(
        self,
        log: LogReader,
        cache: RenderCache,
        features: FeatureCache,
        metrics: Metrics,
        limits: DeliveryLimits,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._log = log
        # Shared with the publisher, and by all feeders: many readers return with the same cursor.
        self._cache = cache
        # Shared with the index: records that content filters have parsed.
        self._features = features
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        # How many feeders wait for the log or for their turn, and not for their socket: read by the
        # publisher, which pauses longer for them.
        self.active = 0
        # Sent by the publisher when a lane's position has moved, and when a large group is indexed.
        self.moved = Notifier()
        # Where feeders run; set by `Delivery.run`.
        self.tasks: asyncio.TaskGroup | None = None
        # Of each subscriber that is behind. A task refers to its subscriber: it is removed here when either
        # ends, so that no cycle of references is left.
        self._feeders: dict[Subscriber, asyncio.Task[None]] = {}
        # The large groups that a feeder is indexing or about to join, by their list of DIDs if they have one.
        # Others wait for it: many readers may return with the same list.
        self._indexing = set[Hashable]()
        # One feeder passes in each turn of the event loop.
        self._turns = TurnQueue(1)
        # How many feeders hold each batch, and room for more batches.
        self._held = Counter[Batch]()
        self._free = asyncio.Semaphore(limits.held_batches)
        # A broken disk fails every feeder, so its log lines are throttled.
        self._throttled = Throttled(structlog.get_logger(__name__))

    def start(self, subscriber: Subscriber, lane: Lane) -> None:
        """Serve a subscriber that is in no group, until it is in one of `lane`, or at its bounds.

        Returns at once: a task does it. A subscriber that was live counts as lagging from now on.
        """
        assert self.tasks is not None
        subscriber.fell_behind, subscriber.live = subscriber.live, False
        # At the tip a group shares the bytes that wait in the buffers. Chunks are often the reader's own.
        subscriber.sink.lower_limit(True)
        self._feeders[subscriber] = self.tasks.create_task(self._feed(subscriber, lane))

    @property
    def subscribers(self) -> Collection[Subscriber]:
        """The subscribers that are served here."""
        return self._feeders.keys()

    def stop(self, subscriber: Subscriber) -> None:
        """Cancel the feeder of a subscriber. Does nothing for one that is at the tip, or that was stopped."""
        feeder = self._feeders.pop(subscriber, None)
        if feeder is not None:
            feeder.cancel()

    async def _feed(self, subscriber: Subscriber, lane: Lane) -> None:
        """Run a feeder. It raises nothing: one subscriber must not end the others."""
        try:
            if subscriber.bounds is None:
                await self._catch_up(subscriber, lane)
            else:
                await self._serve(subscriber, lane, subscriber.bounds)
        except ConnectionError:
            return  # the owner of the connection hears of it too, and removes the subscriber
        except LogError as error:  # not a damaged segment, which the log skips
            self._throttled.warning("subscriber: the log could not be read", error=str(error))
            subscriber.sink.close(_FAILED)
        except Exception:  # noqa: BLE001 - it is logged, and the client is told
            self._metrics.failures["feed"].inc()
            self._throttled.exception("subscriber: could not be fed")
            subscriber.sink.close(_FAILED)

    async def _catch_up(self, subscriber: Subscriber, lane: Lane) -> None:
        """Bring a subscriber to the lane's position and into its group, or return when it is closed.

        Raises ConnectionError when the connection is gone, LogError when the log cannot be read.
        """
        indexed: Group | None = None  # the group of the subscriber's options, if it is large
        try:
            while not subscriber.sink.closing:
                await subscriber.sink.writable()
                if subscriber.position < lane.position:
                    await self._advance(subscriber, lane)
                elif subscriber.position > lane.position:  # its cursor is among events not published yet
                    await self.moved.wait()
                # The options were changed while their group was indexed: nobody will be in that group.
                elif indexed is not None and indexed.options is not subscriber.options:
                    lane.groups.forget(indexed)
                    self._end_indexing(lane, indexed)
                    indexed = None
                elif indexed is None and lane.groups.takes_steps(subscriber):
                    key = _indexed_once(lane, subscriber.encoding, subscriber.options)
                    if key in self._indexing:
                        await self.moved.wait()
                        continue
                    self._indexing.add(key)
                    indexed = Group(subscriber.encoding, subscriber.options)
                    for _ in lane.groups.index(indexed):
                        await self._turns.wait()
                    # Then the loop begins again: the lane has moved on meanwhile.
                else:
                    # Nothing is awaited from here on, so the lane stays at the subscriber's position.
                    ready, indexed = indexed, None
                    del self._feeders[subscriber]
                    subscriber.sink.lower_limit(False)
                    lane.groups.add(subscriber, ready)
                    if ready is not None:
                        self._end_indexing(lane, ready)
                    subscriber.reach_tip(lane.position)
                    return
        finally:
            if indexed is not None:  # closed, stopped or failed before it was used
                lane.groups.forget(indexed)
                self._end_indexing(lane, indexed)

    def _end_indexing(self, lane: Lane, group: Group) -> None:
        """Let the feeders go on that wait for this group."""
        self._indexing.discard(_indexed_once(lane, group.encoding, group.options))
        self.moved.notify()

    async def _serve(self, subscriber: Subscriber, lane: Lane, bounds: Bounds) -> None:
        """Serve a subscriber up to its bounds, and close it there. Raises as `_catch_up` does.

        A client has only a few seconds after the close, and a slow one needs longer for what waits. So that
        goes first, for as long as the client reads.
        """
        while not subscriber.sink.closing:
            # It is in no group, whose flush would see the full socket. So it is found here that it is slow.
            if subscriber.sink.full:
                subscriber.fell_behind, subscriber.live = subscriber.live or subscriber.fell_behind, False
            await subscriber.sink.writable()
            if not bounds.left or subscriber.position >= bounds.until:
                await subscriber.sink.drained()
                subscriber.sink.close(UNTIL_REACHED if bounds.left else LIMIT_REACHED)
            elif subscriber.position < lane.position:
                await self._advance(subscriber, lane)
            else:
                if subscriber.position == lane.position:  # else its cursor is not published yet
                    subscriber.reach_tip(lane.position)
                await self.moved.wait()

    async def _advance(self, subscriber: Subscriber, lane: Lane) -> None:
        """Move a subscriber's position by some chunks, or over all that it does not want.

        The position may stay where it is when the options have changed meanwhile. Returns after the pause
        that `Subscriber.replay` asks for. Raises LogError when the log cannot be read.
        """
        before = subscriber.sink.written
        self.active += 1
        try:
            batch = await self._read(subscriber, lane, subscriber.position)
            if batch is not None and batch not in self._held:
                if self._free.locked():
                    found, batch = batch.first, None  # release it: held batches are bounded
                    batch = await self._read_later(subscriber, lane, found)
                else:
                    await self._free.acquire()  # does not wait
            if batch is not None:
                await self._send_chunks(subscriber, lane, batch)
        finally:
            self.active -= 1
        # The pause is not a part of `active`: the publisher need not leave time for a reader that sleeps.
        if subscriber.replay is not None:
            pause_s = subscriber.replay.charge(subscriber.sink.written - before)
            if pause_s > 0:
                await self._sleep(pause_s)

    async def _read(self, subscriber: Subscriber, lane: Lane, position: int) -> Batch | None:
        """Return the batch with the first events from `position` on that a subscriber may want.

        None when the feeder must look again. Either there are none up to the lane's position or `until`, to
        which the subscriber has been moved. Or its options have changed meanwhile, or it is closed. Below the
        log's floor, events may be missing: then the subscriber is closed (1008).

        Raises LogError when the log cannot be read.
        """
        stop, options = _stop(subscriber, lane), subscriber.options
        batch = await self._log.read(position, stop, options.wanted)
        if position < self._log.floor:
            text = f"position {position} is no longer kept: go on at the oldest, and read faster"
            subscriber.sink.close(Close(1008, "overtaken", text))
        if subscriber.options is not options or subscriber.sink.closing:
            return None  # the new options judge from this position on
        if batch is None:
            subscriber.position = stop
        return batch

    async def _read_later(self, subscriber: Subscriber, lane: Lane, found: int) -> Batch | None:
        """Wait until another batch may be held, and read again from where one was found.

        None as in `_read`. The batch that is returned has its place among the held ones, and `_send_chunks`
        gives the place back.
        """
        options, batch = subscriber.options, None
        await self._free.acquire()
        try:
            if subscriber.options is options:
                batch = await self._read(subscriber, lane, max(subscriber.position, found))
        finally:
            if batch is None or batch in self._held:  # then it is counted already
                self._free.release()
        return batch

    async def _send_chunks(self, subscriber: Subscriber, lane: Lane, batch: Batch) -> None:
        """Hold a batch, wait for a turn, and write some chunks of the batch.

        Writes nothing if the options were changed while it waited: the batch was read for the old ones. The
        last feeder that holds a batch makes room for another one.
        """
        options = subscriber.options
        self._held[batch] += 1
        try:
            await self._turns.wait()
            if subscriber.options is options and not subscriber.sink.closing:
                # The lane may have moved on while others had their turn, and the batch have grown with it.
                self._write(subscriber, batch, _stop(subscriber, lane))
        finally:
            self._held[batch] -= 1
            if not self._held[batch]:
                del self._held[batch]
                self._free.release()

    def _write(self, subscriber: Subscriber, batch: Batch, stop: int) -> None:
        """Write chunks of a batch up to the position `stop`, as many as one turn and the socket allow.

        That is at most `chunks_per_turn` chunks, none after `costly_s` seconds, and one in any case. Each
        moves the position, and is subtracted from what is left (`Bounds`). A chunk may have no message.
        """
        first, last, bounds = batch.index(subscriber.position), batch.index(stop), subscriber.bounds
        until = self._clock() + self._limits.costly_s
        for _ in range(self._limits.chunks_per_turn):
            chunk = cut(batch, first, last, subscriber, self._cache, self._features, self._limits)
            if chunk.data:
                subscriber.write(chunk.data)
                subscriber.messages += chunk.messages
                self._metrics.count_sent(subscriber.encoding.renderer.name, chunk.messages, len(chunk.data))
            # An empty range means that nothing is between the subscriber's position and `stop`.
            reached = chunk.reached
            subscriber.position = batch.times[reached - 1] + 1 if reached > first else stop
            first = reached
            if bounds is not None:
                bounds.left -= chunk.messages
                if not bounds.left:
                    return
            if subscriber.sink.full or first == last or self._clock() >= until:
                return


def _indexed_once(lane: Lane, encoding: Encoding, options: SubscriberOptions) -> Hashable:
    """Return what is indexed by one feeder at a time: a list of DIDs for all lanes, or else a group."""
    return options.wanted.listed or (lane, encoding, options)


def _stop(subscriber: Subscriber, lane: Lane) -> int:
    """Return the position up to which a subscriber is served for now.

    A feeder never goes beyond its lane: at the lane's position the subscriber can join the group there.
    """
    bounds = subscriber.bounds
    return lane.position if bounds is None else min(lane.position, bounds.until)
