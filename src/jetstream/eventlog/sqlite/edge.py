"""An edge's log: the log in a directory that another process writes.

    jetstream.db      ──snapshot──▶ floor, tip, revision, rows of the tail ┐
    jetstream.journal ──entries───▶ what was appended since ───────────────┴▶ hot tail ─▶ readers near the tip
    jetstream.db      ──segments, rows of the tail, in threads ─────────────────────────▶ all other readers
    jetstream.lock    ──a line a second──▶ whether the writer is alive, and how far it is

The edge's tip is the position up to which it has read, so it never shows what it has not read back. It looks
at the files when inotify says that they have changed, and four times a second in any case.

`following` keeps what was read in memory, and never steps over a hole.

What is erased. The revision in the database rises when an account's records are to be erased, and with each
step that has rewritten some. Then the hot tail and all loaded segments are dropped, and with them what was
rendered of them. What is read again is without the records that are still to be erased. Nothing is returned
of a log at which the edge has not looked for a second: it might have missed an erasure.

One thread of the event loop does all of this but reading the file for readers that are behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog import Gap
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.sqlite.connection import bytes_on_disk, wal_bytes
from jetstream.eventlog.sqlite.following import FollowedLog
from jetstream.eventlog.sqlite.journal import FILE as JOURNAL
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.space import free_bytes
from jetstream.eventlog.sqlite.stored import StoredEvents
from jetstream.eventlog.sqlite.tailing import DatabaseReader, awaited_database
from jetstream.eventlog.sqlite.watch import Watch
from jetstream.eventlog.sqlite.writer_watch import WriterWatch
from jetstream.limits import LogLimits
from jetstream.logging_setup import Throttled
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter
from jetstream.scheduling import Notifier
from jetstream.status import EdgeStatus, LogStatistics

_WAL: Final = f"{DATABASE}-wal"
# A commit is visible some microseconds after its last write to the write-ahead log, and nothing tells of
# that. So the edge looks again after so many seconds, if it has found nothing.
_AGAIN_S: Final = (0.001, 0.004, 0.016)


class EdgeLog:
    """A log that is read only: see `LogReader`. `open` makes one, and `run` follows the writer.

    It never writes, and takes no lock but those of SQLite for a read. All methods belong to the event
    loop's thread.
    """

    def __init__(
        self,
        directory: Path,
        database: DatabaseReader,
        conditions: Conditions,
        limits: LogLimits,
        on_read: Callable[[Batch], None],
        clock: Callable[[], float],
    ) -> None:
        """Take over `database`, which is open, and is closed with this object. Nothing is read yet."""
        self._directory = directory
        self._path = directory / DATABASE
        self._limits = limits
        self._conditions = conditions
        # Gives monotonic seconds. Nothing here depends on the wall clock.
        self._clock = clock
        self._logger = Throttled(structlog.get_logger(__name__))
        # Whether the writer is alive, and how far it is.
        self._writer = WriterWatch(directory, limits.writer_gone_s, clock)
        # What is in memory, and what is not any more.
        self._damages = DamageRecord(self._path, conditions, limits.damage_ranges)
        self._log = FollowedLog(
            directory, database, self._damages, limits, on_read, self._forget, self._writer.note_life
        )
        self._stored = StoredEvents(self._path, self._damages, limits, self._log.without_erased)
        # When the edge has last looked at the files without an error, and the error since then.
        self._looked_at = clock()
        self._problem = ""
        # The edge's own publisher joins these. Nobody waits for it.
        self.followers = Followers()
        # Wakes those in `wait`.
        self._appended = Notifier()
        # Wakes `run` when there is more to read, or an error to raise.
        self._due = asyncio.Event()
        # Looks again after a commit that was not visible yet: the timer, and how often it has.
        self._again: asyncio.TimerHandle | None = None
        self._attempts = 0

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        conditions: Conditions | None = None,
        limits: LogLimits = LogLimits(),
        on_read: Callable[[Batch], None] = lambda _batch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> EdgeLog:
        """Open the log in `directory`. Waits for the process that writes it, if there is none yet.

        `conditions` is told of `damage`, `writer_gone` and `log_unreadable`. `on_read` is called with events
        as the edge learns of them, to count them. `clock` gives monotonic seconds. Raises LogCorrupt for what
        is no log of this version.
        """
        database = await awaited_database(directory, limits)
        log = cls(directory, database, conditions or Conditions(), limits, on_read, clock)
        try:
            await log.look()
        except BaseException:
            log._close()
            raise
        return log

    # Reading

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing, as of the last look."""
        return self._log.floor

    @property
    def tip(self) -> int:
        """The position up to which the edge has read. What is above it, the edge does not show."""
        return self._log.tip

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept; None: the log is empty."""
        return self._log.oldest_us

    @property
    def newest(self) -> int:
        """The position of the newest event that the log was known to have: all of it is read."""
        return self.tip

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future."""
        return self.newest + 1

    @property
    def watermark(self) -> int:
        """The position below which nothing more comes, as the writer has told it; 0: not known."""
        return self._writer.watermark(self.tip)

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want.

        Nothing is served of a log that was not looked at lately. Then, from the newest events to the
        oldest: the hot tail returns at once; what only the journal has is waited for; everything else is
        read from the database, and the revision is compared again after that. Raises LogCorrupt; any
        other error is waited out.
        """
        stop = min(stop, self.tip + 1)
        while (position := max(position, self.floor)) < stop:
            if self._clock() - self._looked_at > self._limits.fresh_s or self._log.hot_to < self.tip:
                await self._until_fresh()
                continue
            if position >= self._log.hot_tail.start:
                return self._log.hot_tail.at(position, stop)
            if position > self._log.stored_to:  # it is in the journal only, for a second at most
                await self._until_stored(position)
                continue
            revision, end = self._log.revision, min(stop, self._log.hot_tail.start, self._log.stored_to + 1)
            try:
                after, batch = await self._stored.find(position, end, wanted)
                self._step(database=True)  # what was found may have been trimmed or erased meanwhile
            except LogCorrupt:
                raise
            except LogError as error:
                self._note_problem(error)
                await asyncio.sleep(self._limits.poll_s)
                continue
            if revision != self._log.revision:
                continue
            position = after
            if batch is not None:
                return batch
        return None

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been read."""
        while self.tip < position:
            await self._appended.wait()

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return await self._stored.gaps(since_us, count_max)

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return LogStatistics(
            events=self._log.events,
            bytes_on_disk=bytes_on_disk(self._path),
            oldest_us=self.oldest_us,
            newest_us=None if self.oldest_us is None else self.tip,
            writable=True,
            wal_bytes=wal_bytes(self._path),
            damaged=self._damages.count,
            disk_free_bytes=free_bytes(self._directory),
        )

    def status(self, position: int) -> EdgeStatus:
        """Return where the edge stands, if its subscribers have been sent all below `position`.

        For `/ready`, `/health` and metrics. All times are of this process's monotonic clock.
        """
        unread_s = self._clock() - self._looked_at
        return EdgeStatus(
            lag_s=self._writer.lag_s(min(position, self.tip + 1)),
            writer_silent_s=self._writer.silent_s,
            writer_alive=self._writer.is_alive,
            unread_s=unread_s,
            readable=unread_s <= self._limits.fresh_s,
        )

    async def _until_fresh(self) -> None:
        """Return once the edge has looked at the log, however long that takes. Raises LogCorrupt."""
        while True:
            try:
                await self.look()
            except LogCorrupt:
                raise
            except LogError:
                await asyncio.sleep(self._limits.poll_s)
            else:
                return

    async def _until_stored(self, position: int) -> None:
        """Wait until the writer has moved a part of the journal to the database. Raises LogCorrupt.

        `position` is below the hot tail and above what the last snapshot had.
        """
        await asyncio.sleep(self._limits.poll_s)
        if self._log.stored_to < position:
            await self._until_fresh()

    def _forget(self) -> None:
        """Drop the segments that were read.

        Called by `FollowedLog` when the revision of what is erased has changed.
        """
        self._stored.segments.clear()

    # Following the writer

    async def run(self) -> None:
        """Follow the writer until cancelled. Raises LogCorrupt: also for a log that was set back."""
        watch = Watch(self._directory, (JOURNAL, _WAL), self._on_change)
        try:
            while True:
                await self._look_at_all()
                self._due.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.poll_s):
                        await self._due.wait()
        finally:
            watch.close()
            if self._again is not None:
                self._again.cancel()

    async def look(self) -> None:
        """Read all that the log has by now. Raises LogError."""
        while not self._step(database=True):  # noqa: ASYNC110 - each step reads some, and others have a turn
            await asyncio.sleep(0)

    async def _look_at_all(self) -> None:
        """Look at the log and at the heartbeat. An error that may pass is noted. Raises LogCorrupt.

        Another file in the place of the database is opened first: that one is read from then on.
        """
        try:
            if self._log.is_replaced:
                self._stored.readers.renew()
                self._log.reopen()
            await self.look()
        except LogCorrupt:
            raise
        except LogError as error:
            self._note_problem(error)
        self._look_at_writer()

    def _on_change(self, names: Collection[str]) -> None:
        """Read what has come, at once. What is left, and errors, are for `run`. Called by the watch.

        `names` has the files that have changed. A change of the journal alone costs one read of it; the
        database is looked at if that has brought nothing. An error is found again by `run`, which raises
        or notes it.
        """
        tip = self.tip
        self._attempts = 0
        if _WAL not in names:
            self._step_or_wake(database=False)
        if self.tip == tip:  # the next entry may follow a commit
            self._step_or_wake(database=True)
        if self.tip == tip:
            self._look_again()

    def _look_again(self) -> None:
        """Look at the database in a moment, if that is not due already."""
        if self._again is None and self._attempts < len(_AGAIN_S):
            delay_s = _AGAIN_S[self._attempts]
            self._again = asyncio.get_running_loop().call_later(delay_s, self._look_once_more)

    def _look_once_more(self) -> None:
        """Look at the database after a delay; plan the next, longer one if nothing has come."""
        tip, self._again = self.tip, None
        self._attempts += 1
        self._step_or_wake(database=True)
        if self.tip == tip:
            self._look_again()

    def _step_or_wake(self, *, database: bool) -> None:
        """Read what is new; leave an error, or what is too much for one step, to `run`."""
        try:
            whole = self._step(database=database)
        except LogError:
            whole = False
        if not whole:
            self._due.set()

    def _step(self, *, database: bool) -> bool:
        """Read some of what is new, also of the database; return whether it was all. Raises LogError.

        Followers and waiting readers are told also if the step failed after it had read something.
        """
        tip = self.tip
        try:
            whole = self._log.step(database=database)
        finally:
            if self.tip > tip:
                self.followers.append(self.tip, self._clock())
                self._appended.notify()
        if database:
            self._looked_at, self._problem = self._clock(), ""
        return whole

    def _note_problem(self, error: LogError) -> None:
        """Note that the log could not be read."""
        self._problem = error.problem
        self._logger.warning("log: cannot be read, trying again", problem=error.problem)

    def _look_at_writer(self) -> None:
        """Read the writer's heartbeat, and tell whether it is alive and the log can be read."""
        self._writer.look(self.tip)
        self._conditions.set("writer_gone", self._writer.reason)
        unread_s = self._clock() - self._looked_at
        unreadable = f"{self._path} was last read {unread_s:.0f} s ago: {self._problem}; no events are served"
        self._conditions.set("log_unreadable", unreadable if unread_s > self._limits.fresh_s else None)

    async def close(self) -> None:
        """Close the files."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Close what was opened, in a thread: reads that run are waited for."""
        self._stored.close()
        self._log.close()
