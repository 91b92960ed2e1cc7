"""The publisher: writes new events to all subscribers at the tip, lane by lane.

    wait for an event above the lowest lane
    flush the lowest lane, up to the newest event; more lanes while the pacer says so
    sleep for as long as the pacer says
    tell the log that more may be stored, and give ingest a turn
    repeat

A flush moves the lane's position first, then judges which groups want its events, and writes after. So the
event loop can have turns in between, and no number of groups or sockets holds it for long. Meanwhile
subscribers come and go and change options. The flush writes to those that were in a group when it began, are
still in it and have not been written to. A subscriber that leaves its group in the middle of a flush takes
along the position that says whether it was written to (see `Lane.detach`). One that joins is at the lane's
new position already. So nothing is lost or repeated.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable

from jetstream.delivery.catch_up import CatchUp
from jetstream.delivery.chunks import Rendering, flush_end
from jetstream.delivery.lanes import Lane, Lanes
from jetstream.delivery.pacer import Pacer
from jetstream.delivery.render_cache import RenderCache
from jetstream.delivery.subscriber import Group, Subscriber
from jetstream.eventlog import LogReader
from jetstream.limits import DeliveryLimits
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING
from jetstream.steps import Steps, T


class Publisher:
    """Keeps the lanes at the tip of the log.

    `clock` gives monotonic seconds, `sleep` waits for seconds and at least for a turn of the event loop. One
    per `Delivery`; only its own task, `run`, writes events to subscribers at the tip.
    """

    def __init__(
        self,
        log: LogReader,
        lanes: Lanes,
        catch_up: CatchUp,
        cache: RenderCache,
        metrics: Metrics,
        limits: DeliveryLimits,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._log = log
        # All lanes; moved here, and nowhere else.
        self._lanes = lanes
        # Serves members whose socket is full, and tells the pacer how many readers are catching up.
        self._catch_up = catch_up
        # Shared with `catch_up`: what is flushed first is often replayed a second later.
        self._cache = cache
        self._metrics = metrics
        self._limits = limits
        self._clock = clock
        self._sleep = sleep
        # Told what each flush and pause took, asked what to do next.
        self._pacer = Pacer(limits)
        # Holds the writer of the log back until a lane has all that is stored and the pause is over. Then
        # what is stored next is one commit, and part of the flush of the next lane.
        self._follower = log.followers.join(lanes.lowest.position)

    async def run(self) -> None:
        """Publish until cancelled. Raises LogError when the log cannot be read; nothing is retried here."""
        try:
            while True:
                await self._log.wait(self._lanes.lowest.position)
                await self._flush(self._lanes.lowest)
                while self._pacer.flush_more and self._lanes.lowest.position <= self._log.tip:
                    if self._pacer.turn_over:
                        await asyncio.sleep(0)
                    await self._flush(self._lanes.lowest)
                await self._pause()
        finally:
            self._follower.leave()

    def observe_delivery(self) -> None:
        """Observe the delay of events that all lanes have been sent by now.

        The delay is from when the oldest event of an append was received to now, in seconds. This is called
        after each flush, and when a subscriber is removed.
        """
        position, now = self._lanes.lowest.position, self._clock()
        appended = self._follower.appended
        while appended and appended[0][0] < position:
            _, received_at = appended.popleft()
            self._metrics.delivery.observe(now - received_at)

    async def _pause(self) -> None:
        """Sleep, then let the writer of the log append what has arrived."""
        began = self._clock()
        await self._sleep(self._pacer.due_s)
        slept = self._clock()
        # The writer appends once this is above the tip: once a lane has all that is stored. What it appends
        # goes to the other lanes together with what they lack.
        self._follower.advance(self._lanes.highest.position)
        await asyncio.sleep(0)  # ingest appends, so that it is part of the next flush
        self._pacer.paused(slept - began, self._clock() - slept)

    async def _flush(self, lane: Lane) -> None:
        """Move a lane over the next events, and write them to all its subscribers at the tip.

        It takes what one batch of the log has, up to the limits of a flush. Raises LogError.
        """
        stop = self._log.tip + 1
        batch = await self._log.read(lane.position, stop, EVERYTHING)
        if batch is None:  # all of it was trimmed or erased before it could be published
            self._move(lane, stop)
        else:
            first = batch.index(lane.position)
            last = flush_end(batch, first, batch.index(stop), self._limits)
            self._move(lane, batch.times[last - 1] + 1)
            if lane.subscribers:  # else there is nothing to write, and nothing to pause for
                written, worked_s = await self._deliver(lane, batch, first, last)
                self._pacer.flushed(last - first, worked_s, written, self._catch_up.active, len(self._lanes))
        self.observe_delivery()

    def _move(self, lane: Lane, position: int) -> None:
        """Move a lane's position; feeders may wait for it."""
        lane.move(position)
        self._catch_up.moved.notify()

    async def _deliver(self, lane: Lane, batch: Batch, first: int, last: int) -> tuple[int, float]:
        """Write `batch[first:last]` to all at the tip, in turns; return to how many, and the time it took.

        The time is without the turns of others in between, in seconds. `lane` has been moved over the events
        before. First all groups are judged. Then the bytes of each group are made once, and written to its
        members. A turn ends after `turn_s`, which is looked at after each step and some writes.
        """
        turn, written, unlooked = _Turn(self._clock), 0, 0
        # By wire, for the metrics: added up here, because counters take a lock.
        messages: defaultdict[str, int] = defaultdict(int)
        sizes: defaultdict[str, int] = defaultdict(int)
        lane.judging, per_look = True, self._limits.writes_per_look
        wanted = await self._in_turns(lane.groups.judge(batch, first, last), turn)
        rendering = Rendering(self._cache, batch, range(first, last), wanted)
        for group in wanted:  # before the next turn of others: see `Lane.position_of`
            group.flushing = True
        lane.judging = False
        for group, indices in wanted.items():
            # What groups of a costly encoding want is compressed when the first of them is written to. That
            # may take a whole turn, so it begins in a turn that is still short.
            if group.costly:
                await self._in_turns(rendering.gather(group), turn)
                if turn.lasts(self._limits.costly_s):
                    await turn.end()
            frames = rendering.of(group).frames(indices, group.message_bytes_max)
            data = b"".join(frames)
            members, reached = list(group.members) if frames else [], 0
            # A member that leaves while others are written to subtracts `writing`: see `Lane.detach`.
            group.writing = len(frames)
            group.messages += len(frames)
            unlooked += len(indices)
            for start in range(0, len(members) or 1, per_look):  # once also for no members: the turn may end
                some = members[start : start + per_look]
                reached += self._write(lane, group, some, data)
                unlooked += len(some)
                if unlooked >= per_look:
                    unlooked = 0
                    if turn.lasts(self._limits.turn_s):
                        await turn.end()
            group.flushing, group.writing = False, 0
            written += reached
            messages[group.wire] += reached * len(frames)
            sizes[group.wire] += reached * len(data)
        for wire, size in sizes.items():
            self._metrics.count_sent(wire, messages[wire], size)
        return written, turn.worked_s

    async def _in_turns(self, steps: Steps[T], turn: _Turn) -> T:
        """Do work in steps, and end the turn where it is over."""
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
            if turn.lasts(self._limits.turn_s):
                await turn.end()

    def _write(self, lane: Lane, group: Group, members: list[Subscriber], data: bytes) -> int:
        """Write to members that are still in the group and were not written to; return how many.

        One whose socket is full afterwards has these bytes, too. It leaves the group, and a feeder goes on
        with what follows.
        """
        position, size, written = lane.position, len(data), 0
        for subscriber in members:
            if subscriber.group is group and subscriber.position != position:
                sink = subscriber.sink  # `Subscriber.write` without the call: nothing is done as often
                sink.written += size
                try:
                    sink.write(data)
                except RuntimeError:
                    continue  # the connection is gone, and the subscriber about to be removed
                written += 1
                subscriber.position = position
                if sink.full:
                    lane.groups.remove(subscriber)
                    self._catch_up.start(subscriber, lane)
        return written


class _Turn:
    """A turn of the event loop, and the time that was worked in it and in the turns before."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # When the turn began, in monotonic seconds; moved by `end`.
        self._began = clock()
        # Seconds in the turns before; added to by `end`.
        self._before_s = 0.0

    @property
    def worked_s(self) -> float:
        """Seconds in all turns, without those of others in between."""
        return self._before_s + self._clock() - self._began

    def lasts(self, seconds: float) -> bool:
        """Tell whether the turn has taken so many seconds. The turns before are not counted."""
        return self._clock() - self._began >= seconds

    async def end(self) -> None:
        """End the turn, and begin another one."""
        self._before_s = self.worked_s
        await asyncio.sleep(0)
        self._began = self._clock()
