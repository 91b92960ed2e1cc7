"""`Delivery`: brings every subscriber from its position to the tip of the log, and keeps it there.

A subscriber belongs to a lane (see `lanes`) and is either

* *at the tip*: in the group of its encoding and options. Its position is the lane's, and the `publisher`
  writes new events to it; or
* *behind*: it has a position of its own, and a feeder of `catch_up` brings it to the lane's position.

                 cursor, or a large filter
      subscribe ───────────────────────────▶ behind ◀──────────────┐
          │                                    │ caught up         │ the socket is full, too much waits,
          │ no cursor                          ▼                   │ or a large new filter
          └────────────────────────────────▶ at the tip ───────────┘

One with `Bounds` stays with its feeder until it ends, also at the tip.

The log keeps what a subscriber has not been sent; nothing else does. So a slow subscriber needs no queue and
does not delay others. It is closed in two cases: its socket takes nothing for `slow_timeout_s` (`check`), or
the log no longer keeps its position (`catch_up`).

The parts share one event loop, and each holds it for a bounded time:

    publisher   flushes of 4 ms, and pauses as the pacer says
    catch_up    a few chunks of one reader in each turn of the event loop
    check       500 subscribers in a turn, twice a second: who is slow, who is due a ping or a heartbeat
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from jetstream.delivery.catch_up import CatchUp
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.heartbeat import Heartbeat
from jetstream.delivery.lanes import Lane, Lanes
from jetstream.delivery.publisher import Publisher
from jetstream.delivery.render_cache import RenderCache
from jetstream.delivery.subscriber import (
    Bounds,
    Close,
    Encoding,
    Replay,
    Sink,
    Subscriber,
    SubscriberOptions,
)
from jetstream.eventlog import LogReader
from jetstream.limits import DeliveryLimits
from jetstream.metrics import Metrics
from jetstream.scheduling import Worker
from jetstream.status import LAGS_S, ReaderStatus


class Progress(NamedTuple):
    """How far a subscriber is, as the list of subscribers shows it."""

    # `replaying` until it first reaches the tip, then `live`; `lagging` while it is behind after that.
    state: str
    lag_s: float  # how far its position is behind the newest event, in seconds of the events' times
    messages: int  # that it was sent; some of them may wait in the buffer


class Positions(NamedTuple):
    """Where a subscription begins, and what the log holds. In unix microseconds.

    A client is told in the headers of the response, so that it can find out whether something is missing.
    """

    cursor: int  # no event below is sent
    oldest: int | None  # time_us of the oldest event; None: the log is empty
    latest: int | None  # of the newest one


class Delivery:
    """All subscribers of one server. Needs `run` before the first one.

    `slow_timeout_s` is how long a socket may take nothing although something waits for it. `buffer_total` is
    how many bytes may wait for all subscribers together before those with the most are put behind. `clock`
    gives monotonic seconds, `sleep` is what the publisher and readers of the past pause with.
    """

    def __init__(
        self,
        log: LogReader,
        metrics: Metrics,
        limits: DeliveryLimits = DeliveryLimits(),
        *,
        slow_timeout_s: float = 60.0,
        buffer_total: int = 512 << 20,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log = log
        self._metrics = metrics
        self._limits = limits
        self._slow_timeout_s = slow_timeout_s
        self._buffer_total = buffer_total
        self._clock = clock
        # What `readers` returned last, and when that was.
        self._readers: tuple[float, ReaderStatus] = (float("-inf"), ReaderStatus())
        # Every subscriber from `subscribe` to `remove`, with its lane.
        self._subscribers: dict[Subscriber, Lane] = {}
        # One object for all equal encodings, so that it is in the processor's cache when thousands of groups
        # are written to. There are as many as kinds of connections.
        self._encodings: dict[Encoding, Encoding] = {}
        # The worker takes large filters out of the index, in half of the loop's time at most.
        cache, features = RenderCache(limits.render_cache_bytes), FeatureCache(limits.feature_cache_bytes)
        self._lanes = Lanes(log.tip + 1, Worker(pause_ratio=1.0).put, features, limits)
        self._catch_up = CatchUp(log, cache, features, metrics, limits, clock, sleep)
        self._publisher = Publisher(log, self._lanes, self._catch_up, cache, metrics, limits, clock, sleep)

    def __len__(self) -> int:
        """Return the number of subscribers."""
        return len(self._subscribers)

    @property
    def position(self) -> int:
        """The position of the lowest lane: all below has been published to every subscriber at the tip."""
        return self._lanes.lowest.position

    def readers(self) -> ReaderStatus:
        """Return how far the subscribers are behind, at most a second ago: with thousands it takes 1 ms.

        It is read for metrics and for pages. What was counted is kept for `readers_kept_s`.
        """
        now = self._clock()
        if now - self._readers[0] >= self._limits.readers_kept_s:
            self._readers = now, self._count_readers()
        return self._readers[1]

    def _count_readers(self) -> ReaderStatus:
        """Count those that are behind. All others are at the position of their lane, which is the newest."""
        served, end = self._catch_up.subscribers, self._log.tip + 1
        # One count for each bound of `LAGS_S`, and one for all above. The first has those at the tip.
        lags, catching_up, lagging = [len(self) - len(served), *(0 for _ in LAGS_S)], 0, 0
        for each in served:
            lags[bisect_left(LAGS_S, (end - each.position) / 1e6)] += 1
            lagging += each.fell_behind
            catching_up += not (each.fell_behind or each.live)
        return ReaderStatus(catching_up, lagging, tuple(lags))

    async def run(self) -> None:
        """Deliver until cancelled.

        All feeders run in this task group. An error of the publisher or of the watch ends all of it, as an
        ExceptionGroup; a feeder raises none.
        """
        async with asyncio.TaskGroup() as tasks:
            self._catch_up.tasks = tasks
            tasks.create_task(self._watch())
            await self._publisher.run()

    def subscribe(
        self,
        sink: Sink,
        encoding: Encoding,
        options: SubscriberOptions,
        cursor: int | None,
        *,
        bounds: Bounds | None = None,
        heartbeat_s: int | None = None,
        replay: Replay | None = None,
    ) -> Subscriber:
        """Start to deliver to a sink, from `cursor` on or, without one, from the next event on.

        A cursor below the oldest event starts at that event, one beyond the newest event with the next. At
        the `bounds` the sink is closed. After `heartbeat_s` seconds without an event there is a heartbeat;
        None is the wire's own interval, 0 is never. `replay` limits what is sent on the way to the tip.

        Returns at once; the sink may have been written to. The caller calls `remove` when the connection is
        gone.
        """
        lane, encoding = self._lanes.enter(), self._encodings.setdefault(encoding, encoding)
        subscriber = Subscriber(sink, encoding, options, self._start(cursor, lane.position), self._clock())
        subscriber.bounds = bounds
        subscriber.replay = replay
        self._set_heartbeat(subscriber, heartbeat_s)
        self._subscribers[subscriber] = lane
        self._metrics.subscribers[encoding.renderer.name].inc()
        self._place(subscriber, lane)
        return subscriber

    def positions(self, cursor: int | None = None) -> Positions:
        """Return where a subscription with this cursor would begin now, and what the log holds.

        Without a cursor, it would begin with the next event.
        """
        oldest = self._log.oldest_us
        start = self._start(cursor, self._lanes.next_position)
        return Positions(max(start, oldest or 0), oldest, None if oldest is None else self._log.tip)

    def _start(self, cursor: int | None, live: int) -> int:
        """Return the position of a subscription with this cursor in a lane whose position is `live`.

        A cursor is compared with the newest position that the log has, not with the lane's. The client may
        have read that far in another lane, which was flushed first, or from another process, which was ahead
        of this one. Then it waits at its cursor. A cursor beyond that is of the future: it starts live.
        """
        return max(live if cursor is None else min(cursor, self._log.cursor_max), self._log.floor)

    def must_look(self, cursor: int | None) -> bool:
        """Tell whether a cursor is beyond all that is known of the log: `look` first.

        A client that was served by another process, which was ahead of this one, has such a cursor. Without
        the look it would start at a lower position, and be sent some events again.
        """
        return cursor is not None and cursor > self._log.cursor_max

    async def look(self) -> None:
        """Learn how far the log is, where another process writes it. Raises LogError."""
        await self._log.look()

    def resume_at(self, subscriber: Subscriber) -> int:
        """Return the cursor with which a client loses nothing that it has not been sent.

        What waits in the buffer counts as sent. Of a subscriber that was removed, it is the position of the
        last write to it, or the log's floor.
        """
        lane = self._subscribers.get(subscriber)
        position = subscriber.position if lane is None else lane.position_of(subscriber)
        return max(position, self._log.floor)

    def progress(self, subscriber: Subscriber) -> Progress:
        """Return how far a subscriber is. Its lag is 0 when the event it waits for is not there yet."""
        state = "lagging" if subscriber.fell_behind else "live" if subscriber.live else "replaying"
        behind_us = self._log.tip + 1 - self.resume_at(subscriber)
        return Progress(state, max(behind_us, 0) / 1e6, subscriber.sent)

    def remove(self, subscriber: Subscriber) -> None:
        """Deliver nothing more to a subscriber. Does nothing for one that was removed before."""
        lane = self._subscribers.pop(subscriber, None)
        if lane is None:
            return
        self._lanes.leave(lane)
        self._publisher.observe_delivery()  # this lane may have been the lowest
        self._metrics.subscribers[subscriber.encoding.renderer.name].dec()
        if subscriber.group is not None:
            lane.groups.remove(subscriber)
        self._catch_up.stop(subscriber)
        subscriber.end_replay()

    def change(
        self, subscriber: Subscriber, options: SubscriberOptions, heartbeat_s: int | None = None
    ) -> None:
        """Judge every event from the subscriber's position on by new options, and none before.

        A heartbeat, if there are any, says which position that is. Raises KeyError for a subscriber that was
        removed.
        """
        lane = self._subscribers[subscriber]
        at_tip = subscriber.group is not None
        if at_tip:
            lane.detach(subscriber)
        subscriber.options = options  # a feeder checks before every chunk
        self._set_heartbeat(subscriber, heartbeat_s)
        subscriber.send_heartbeat(subscriber.position)
        if at_tip:
            self._place(subscriber, lane)

    def _set_heartbeat(self, subscriber: Subscriber, interval_s: int | None) -> None:
        """Set the interval of heartbeats, in seconds; None: that of the wire; 0: none."""
        asked = interval_s is not None
        interval_s = subscriber.encoding.renderer.heartbeat_s if interval_s is None else interval_s
        subscriber.heartbeat = Heartbeat(interval_s, asked=asked) if interval_s else None

    def _place(self, subscriber: Subscriber, lane: Lane) -> None:
        """Put a subscriber into its group if it is at the tip; else let it catch up.

        A feeder indexes a large filter, too: in steps, while the lane moves on.
        """
        at_tip = subscriber.position == lane.position and subscriber.bounds is None
        if at_tip and not lane.groups.takes_steps(subscriber):
            lane.groups.add(subscriber)
            subscriber.reach_tip(lane.position)
        else:
            self._catch_up.start(subscriber, lane)

    async def _watch(self) -> None:
        """Check all subscribers from time to time; observe how late the event loop is.

        The delay is by how much the timer of this task fired late: any other task waits as long for its turn.
        """
        ping_at = self._clock() + self._limits.ping_interval_s
        while True:
            due = self._clock() + self._limits.watch_interval_s
            await asyncio.sleep(self._limits.watch_interval_s)
            now = self._clock()
            self._metrics.loop_delay.observe(max(0.0, now - due))
            ping = now >= ping_at
            if ping:
                ping_at = now + self._limits.ping_interval_s
            await self.check(now, ping=ping)

    async def check(self, now: float, *, ping: bool) -> None:
        """Check every subscriber once, some in each turn of the event loop; `ping` those that are idle.

        `now` is the time at which the check begins, in monotonic seconds. Subscribers that come meanwhile are
        left to the next call, and those that go are checked without effect.
        """
        waiting = 0
        for count, subscriber in enumerate(list(self._subscribers), 1):
            buffered = subscriber.sink.buffered
            if buffered:
                waiting += buffered
                subscriber.sink.gather()
                self._close_if_slow(subscriber, buffered, now)
            else:  # as nearly always, and kept short
                subscriber.progress_at = now
                if ping:
                    subscriber.write_control(subscriber.encoding.framing.keep_alive)
            if subscriber.heartbeat is not None or subscriber.bounds is not None:
                self._check_time(subscriber, now)
            if count % self._limits.checks_per_turn == 0:
                await asyncio.sleep(0)
        if waiting > self._buffer_total:
            self.relieve(waiting - self._buffer_total)

    def _close_if_slow(self, subscriber: Subscriber, buffered: int, now: float) -> None:
        """Close a subscriber (1008) whose socket has taken nothing for `slow_timeout_s`."""
        stalled_s = subscriber.stalled_s(buffered, now)
        if stalled_s >= self._slow_timeout_s:
            subscriber.sink.close(Close(1008, "slow", f"read nothing for {stalled_s:.0f} s: read faster"))

    def _check_time(self, subscriber: Subscriber, now: float) -> None:
        """Send a heartbeat that is due, and close a subscriber at its end, unless it has been removed."""
        lane = self._subscribers.get(subscriber)
        if lane is None:
            return
        if subscriber.heartbeat is not None:
            self._beat(subscriber, subscriber.heartbeat, lane, now)
        if subscriber.bounds is not None:
            self._end_in_time(subscriber, subscriber.bounds, lane)

    def _beat(self, subscriber: Subscriber, heartbeat: Heartbeat, lane: Lane, now: float) -> None:
        """Send a heartbeat that is due, unless the socket still has to send something else."""
        if heartbeat.due(subscriber.sink.written, now) and not subscriber.sink.buffered:
            subscriber.send_heartbeat(lane.position_of(subscriber))

    def _end_in_time(self, subscriber: Subscriber, bounds: Bounds, lane: Lane) -> None:
        """Have a subscriber closed that has no event before `until` to come, once all there are were judged.

        Its feeder closes it, as at any other end. The watermark says that none is to come: without it, a
        subscription to a quiet time would end with the first event after `until`.
        """
        judged_all = bounds.until > subscriber.position >= lane.position > self._log.newest
        if judged_all and self._log.watermark >= bounds.until:
            bounds.until = subscriber.position
            self._catch_up.moved.notify()

    def relieve(self, excess: int) -> None:
        """Put subscribers at the tip with the fullest buffers behind, until `excess` bytes fewer wait.

        Nothing is dropped: what waits is still sent. But a feeder writes only to a socket that is not full,
        and the limit of its buffer is lower. So these buffers do not grow any more.
        """
        at_tip = [each for each in self._subscribers if each.group is not None and each.sink.buffered]
        for subscriber in sorted(at_tip, key=lambda subscriber: -subscriber.sink.buffered):
            if excess <= 0:
                break
            excess -= subscriber.sink.buffered
            lane = self._subscribers[subscriber]
            lane.detach(subscriber)
            self._catch_up.start(subscriber, lane)
