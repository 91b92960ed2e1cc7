"""The writer of the log: stamps what upstream delivers, stores it, and waits until more may come.

This is the only place where events enter the log. Each call stores one batch and the cursors that belong to
it in one transaction. Backpressure ends here: the call returns when the readers that follow the log are ready
for more, and upstream decodes nothing before it returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from jetstream.conditions import Conditions
from jetstream.errors import LogUnwritable
from jetstream.eventlog import Changes, LogWriter, SourceCursor
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.upstream.pipeline import DecodedBatch

RETRY_S: Final = 1.0  # between two attempts while the disk refuses


class Stamper:
    """Gives events unique, strictly rising times in unix microseconds: now, but above the one before.

    While the clock is below the newest time, times continue from there, one microsecond apart, until the
    clock has caught up. `clock` gives unix microseconds.
    """

    def __init__(self, last: int, clock: Callable[[], int]) -> None:
        self._last = last  # the newest time that was given, by this process or an earlier one; only rises
        self._clock = clock

    @property
    def next_us(self) -> int:
        """The lowest time that the next event may have."""
        return max(self._clock(), self._last + 1)

    def stamp(self, events: Sequence[Event]) -> Batch:
        """Return the events as a batch, in their order."""
        first = self.next_us
        times = range(first, first + len(events))
        if times:
            self._last = times[-1]
        return Batch.of(events, times)


class Ingest:
    """Stores what one source delivers. The log then has the cursor of this source, and of no other.

    `source` is the name of its cursor, `host:port`. The condition `log_unwritable` holds while the disk
    refuses a commit.
    """

    def __init__(
        self, log: LogWriter, source: str, stamper: Stamper, metrics: Metrics, conditions: Conditions
    ) -> None:
        self._log = log
        self._source = source
        self._stamper = stamper
        self._metrics = metrics
        self._conditions = conditions

    async def store(self, decoded: DecodedBatch, received_at: float) -> None:
        """Return once the events and the cursor are on disk, and more may come.

        There is no deadline: a full disk and slow followers are waited for. `received_at` is when the oldest
        of the events was received, in monotonic seconds.
        """
        if decoded.seq is not None:
            cursors = {self._source: SourceCursor(decoded.seq, decoded.provisional, decoded.fell_from)}
            if decoded.events or cursors != self._log.cursors:
                await self._append(self._stamper.stamp(decoded.events), Changes(cursors), received_at)
        await self._log.followers.wait()

    async def admit(
        self, events: Sequence[Event], changes: Callable[[int], Changes], received_at: float | None
    ) -> None:
        """Do what `store` does, with judged events and what belongs to them.

        `changes` is given the position of the first event; those of the others follow without a gap.
        """
        batch = self._stamper.stamp(events)
        first_us = batch.times[0] if len(batch) else self._stamper.next_us
        await self._append(batch, changes(first_us), received_at)
        await self._log.followers.wait()

    async def _append(self, batch: Batch, changes: Changes, received_at: float | None) -> None:
        while True:
            try:
                await self._log.append(batch, changes, received_at)
            except LogUnwritable as error:
                self._metrics.log_failures.inc()
                self._conditions.begin(
                    "log_unwritable", f"{error}: upstream is held until the log can be written"
                )
                await asyncio.sleep(RETRY_S)
            else:
                break
        self._conditions.end("log_unwritable")
        self._metrics.count_events(batch)
