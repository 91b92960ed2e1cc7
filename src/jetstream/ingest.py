"""The writer of the log: stamps what upstreams deliver, stores it, and waits until more may come.

This is the only place where events enter the log. Those of another Jetstream may have positions already. Each
call stores one batch and the cursors of all sources in one transaction. Backpressure ends here: the call
returns when the readers that follow the log are ready for more, and upstream decodes nothing before it
returns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog

from jetstream.conditions import Conditions
from jetstream.errors import JetstreamError, LogUnwritable, NotStored
from jetstream.eventlog import UPSTREAM_GAP, Changes, Gap, LogWriter, SourceCursor
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.upstream.pipeline import DecodedBatch

# Seconds between two attempts while the disk refuses a commit. Upstream is held for so long, and
# nothing is lost.
RETRY_S: Final = 1.0

logger = structlog.get_logger(__name__)


class Stamper:
    """Gives events unique, strictly rising times in unix microseconds: now, but above the one before.

    While the clock is below the newest time, times continue from there, one microsecond apart, until
    the clock has caught up. `clock` gives unix microseconds.

    A position is a `time_us`, and every position is given once. So a log that begins with a newest
    event in the future, after the clock was wrong, goes on from there.
    """

    def __init__(self, last: int, clock: Callable[[], int]) -> None:
        # The newest time that was given, by this process or an earlier one, or the one below a promised time.
        # It only rises.
        self._last = last
        self._clock = clock

    @property
    def next_us(self) -> int:
        """The lowest time that the next event may have."""
        return max(self._clock(), self._last + 1)

    def promise(self) -> int:
        """Return the lowest time that the next event may have. No lower one is given from now on.

        A writer says with its heartbeat that nothing below this comes any more. An event that comes
        right after it has this time or a higher one.
        """
        self._last = self.next_us - 1
        return self._last + 1

    def stamp(self, events: Sequence[Event]) -> Batch:
        """Return the events as a batch, in their order.

        They get consecutive times. Nothing changes for no events, whose batch is empty.
        """
        first = self.next_us
        times = range(first, first + len(events))
        if times:
            self._last = times[-1]
        return Batch.of(events, times)


class Ingest:
    """Stores what sources deliver. The log then has the cursors of these sources, and of no others.

    It does not know what several sources have in common: an event that two deliver is stored twice. The
    condition `log_unwritable` holds while the disk refuses a commit. `clock` gives seconds.

    `Intake` makes one for each log that is written. What `join` and `mirror` return are the ends of
    pipelines, and `admit` is that of admission. All of them are called in the event loop's thread, by
    several tasks.
    """

    def __init__(
        self,
        log: LogWriter,
        stamper: Stamper,
        metrics: Metrics,
        conditions: Conditions,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # A log in SQLite, or a term of one in PostgreSQL. Its cursors are those of the last append.
        self._log = log
        self._clock = clock
        # Gives positions, while `_appending` is held.
        self._stamper = stamper
        self._metrics = metrics
        self._conditions = conditions
        # The names of the sources in use. Their stored cursors stay, those of others go with the next append.
        self._sources: set[str] = set()
        # Held while a batch is stamped and appended: positions rise in the order of the appends, and each has
        # the cursors of the one before it.
        self._appending = asyncio.Lock()
        # The first position of the batch that is being stored, or that was given up. None: all are stored.
        self._unstored: int | None = None

    def join(self, source: str) -> Callable[[DecodedBatch, float], Awaitable[None]]:
        """Let a source be in use, by its name; return what stores its batches.

        The function is given what was decoded, and when the oldest of its frames was received, in
        monotonic seconds. It returns once that is stored and the readers that follow the log are ready.
        """
        self._sources.add(source)
        return partial(self._store, source)

    def mirror(self, source: str) -> Callable[[Batch, float], Awaitable[None]]:
        """Do what `join` does for a source whose events have positions, which are above the tip of the log.

        The position of the newest event is its cursor.

        A batch without events stores nothing. The time of receipt is as with `join`.
        """
        self._sources.add(source)
        return partial(self._store_stamped, source)

    def next_position(self) -> int:
        """Return the lowest position that an event may have which is not stored yet. It never falls.

        Not for a log with an upstream of `mirror`.

        While a batch waits for the disk, it is the first position of that batch: the batch is not in
        the log yet, but is going to be.
        """
        return self._stamper.promise() if self._unstored is None else self._unstored

    async def _store_stamped(self, source: str, batch: Batch, received_at: float) -> None:
        """Return once a batch with positions is on disk, and more may come. For the source of `mirror`.

        The cursor that is stored with it is the position of its newest event, as `SourceCursor.seq`.
        """
        if len(batch):
            async with self._appending:
                changes = Changes(self._cursors() | {source: SourceCursor(batch.last)})
                await self._append(batch, changes, received_at)
        await self._log.followers.wait()

    async def report_gap(self, after_us: int, before_us: int) -> None:
        """Store that upstream has nothing between two positions: those of the events around it.

        `before_us` is the first position after the gap. For the source of `mirror`, whose cursors stay.
        """
        async with self._appending:
            gap = Gap(before_us, "", str(after_us), str(before_us), UPSTREAM_GAP)
            await self._append(self._stamper.stamp(()), Changes(self._log.cursors, gaps=(gap,)), None)

    async def forget(self, sources: Collection[str]) -> None:
        """Remove the cursors of sources that are not in use any more. None of them stores anything by now."""
        self._sources.difference_update(sources)
        async with self._appending:
            cursors = self._cursors()
            if cursors != self._log.cursors:
                await self._append(self._stamper.stamp(()), Changes(cursors), None)

    def _cursors(self) -> dict[str, SourceCursor]:
        """Return the stored cursors of the sources in use."""
        return {name: each for name, each in self._log.cursors.items() if name in self._sources}

    async def _store(self, source: str, decoded: DecodedBatch, received_at: float) -> None:
        """Return once the events and the cursor are on disk, and more may come.

        There is no deadline: a full disk and slow followers are waited for. `received_at` is when the oldest
        of the events was received, in monotonic seconds.
        """
        if decoded.seq is not None:
            cursor = SourceCursor(decoded.seq, decoded.provisional, decoded.fell_from)
            async with self._appending:
                cursors = self._cursors() | {source: cursor}
                if decoded.events or cursors != self._log.cursors:
                    await self._append(self._stamper.stamp(decoded.events), Changes(cursors), received_at)
        await self._log.followers.wait()

    async def admit(
        self, events: Sequence[Event], changes: Callable[[int], Changes], received_at: float | None
    ) -> None:
        """Do what the function of `join` does, with judged events and what belongs to them.

        `changes` is given the position of the first event; those of the others follow without a gap.
        What it returns has the cursors of all sources in use.

        `received_at` is when the oldest of the frames was received, in monotonic seconds; None: nothing
        was, and only cursors or states of repositories are stored.
        """
        async with self._appending:
            batch = self._stamper.stamp(events)
            first_us = batch.times[0] if len(batch) else self._stamper.next_us
            await self._append(batch, changes(first_us), received_at)
        await self._log.followers.wait()

    async def _append(self, batch: Batch, changes: Changes, received_at: float | None) -> None:
        """Append a batch and what belongs to it, and try again for as long as the disk refuses.

        `_appending` is held by the caller. Raises what the log raises, such as Fenced, and NotStored for an
        error of the server itself. The batch then stays the first that is not stored: `next_position`
        returns its position, and the heartbeat promises nothing above it. Stored events are counted in the
        metrics.
        """
        if len(batch):
            self._unstored = batch.first
        while True:
            began = self._clock()
            try:
                await self._log.append(batch, changes, received_at)
            except LogUnwritable as error:
                self._metrics.log_failures.inc()
                self._conditions.begin(
                    "log_unwritable", f"{error}: upstream is held until the log can be written"
                )
                await asyncio.sleep(RETRY_S)
            except JetstreamError:
                raise
            except Exception as error:  # what the log has is not known: a source must not go on
                logger.exception("log: a batch was not stored, by an error of the server itself")
                raise NotStored(f"a batch was not stored: {error!r}") from error
            else:
                break
        self._unstored = None
        self._metrics.commit.observe(self._clock() - began)
        self._conditions.end("log_unwritable")
        self._metrics.count_events(batch)
