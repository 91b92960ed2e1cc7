"""An edge's log: the log in a directory that another process writes.

    jetstream.db      ──snapshot──▶ floor, tip, revision, rows of the tail ┐
    jetstream.journal ──entries───▶ what was appended since ───────────────┴▶ hot tail ─▶ readers near the tip
    jetstream.db      ──segments, rows of the tail, in threads ─────────────────────────▶ all other readers
    jetstream.lock    ──a line a second──▶ whether the writer is alive, and how far it is

The edge's tip is the position up to which it has read, so it never shows what it has not read back. It looks
at the files when inotify says that they have changed, and four times a second in any case.

A snapshot is complete: whatever the writer has committed up to its tip is in it, as rows of the tail or in
segments. So the edge never steps over a hole. Where the tail begins after the edge's own position, the events
between are in segments by now. Then the hot tail is dropped, and all that it had is read from the file.

What is erased. The revision in the database rises when an account's records are to be erased, and with each
step that has rewritten some. Then the hot tail and all loaded segments are dropped, and with them what was
rendered of them. What is read again is without the records that are still to be erased. Nothing is returned
of a log at which the edge has not looked for a second: it might have missed an erasure.

One thread of the event loop does all of this but reading the file for readers that are behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog import Gap
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.erase import without_erased
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.sqlite.connection import TranslatedErrors, bytes_on_disk, wal_bytes
from jetstream.eventlog.sqlite.damage import DamageRecord
from jetstream.eventlog.sqlite.journal import FILE as JOURNAL
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.space import free_bytes
from jetstream.eventlog.sqlite.stored import StoredEvents
from jetstream.eventlog.sqlite.tailing import DatabaseReader, JournalReader, Snapshot, awaited_database
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
# No log has this revision. No entry of a journal continues this number of commits and this tip.
NO_REVISION: Final = -1
NOWHERE: Final = (-1, -1)

logger = structlog.get_logger(__name__)


class EdgeLog:
    """A log that is read only: see `LogReader`. `open` makes one, and `run` follows the writer."""

    def __init__(
        self,
        directory: Path,
        database: DatabaseReader,
        conditions: Conditions,
        limits: LogLimits,
        on_read: Callable[[Batch], None],
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._path = directory / DATABASE
        self._limits = limits
        self._conditions = conditions
        # Called with the events that were read, of the newest.
        self._on_read = on_read
        self._clock = clock
        self._logger = Throttled(structlog.get_logger(__name__))
        # Reads what is new; another one takes its place when the file is replaced.
        self._database = database
        self._journal = JournalReader(directory)
        # Reads what is not in memory any more.
        self._damages = DamageRecord(self._path, conditions, limits.damage_ranges)
        self._events = StoredEvents(self._path, self._damages, limits, self._without_erased)
        # The newest events, and the position up to which they are there: below the tip only for a moment.
        # Another one takes its place when it is dropped.
        self._hot_tail = HotTail(0, limits)
        self._hot_to = 0
        # The position up to which the edge has read, and up to which all is in the database. They rise.
        self.tip = 0
        self._stored_to = 0
        # As of the last snapshot: the lowest position, the oldest event, how many there are, the revision of
        # what is erased, and what is still to be erased.
        self.floor = 0
        self.oldest_us: int | None = None
        self._stored = 0
        self._erasures = NO_REVISION
        self._tombstones: Mapping[bytes, int] = {}
        # Which commits and which tip the journal continues, and how many events it has.
        self._continued = NOWHERE
        self._journaled = 0
        # Whether the first snapshot was taken; whether the last one was not whole, or could not be taken.
        self._is_open = self._behind = False
        # Whether another file has taken the place of the database, and could not be opened yet.
        self._must_reopen = False
        # When the edge has last looked at the files without an error, and the error since then.
        self._looked_at = clock()
        self._problem = ""
        # Whether the writer is alive, and how far it is.
        self._writer = WriterWatch(directory, limits.writer_gone_s, clock)
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
    def newest(self) -> int:
        """The position of the newest event that the log was known to have: all of it is read."""
        return self.tip

    @property
    def is_current(self) -> bool:
        """Whether the edge has looked at the log twice as recently as it has to."""
        return self._clock() - self._looked_at <= self._limits.fresh_s / 2

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        stop = min(stop, self.tip + 1)
        while (position := max(position, self.floor)) < stop:
            if self._clock() - self._looked_at > self._limits.fresh_s or self._hot_to < self.tip:
                await self._until_fresh()
                continue
            if position >= self._hot_tail.start:
                return self._hot_tail.at(position, stop)
            if position > self._stored_to:  # it is in the journal only, for a second at most
                await self._until_stored(position)
                continue
            revision, end = self._erasures, min(stop, self._hot_tail.start, self._stored_to + 1)
            try:
                after, batch = await self._events.find(position, end, wanted)
                self._step(database=True)  # what was found may have been trimmed or erased meanwhile
            except LogCorrupt:
                raise
            except LogError as error:
                self._note_problem(error)
                await asyncio.sleep(self._limits.poll_s)
                continue
            if revision != self._erasures:
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
        return await self._events.gaps(since_us, count_max)

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return LogStatistics(
            events=self._stored + self._journaled,
            bytes_on_disk=bytes_on_disk(self._path),
            oldest_us=self.oldest_us,
            newest_us=None if self.oldest_us is None else self.tip,
            writable=True,
            wal_bytes=wal_bytes(self._path),
            damaged=self._damages.count,
            disk_free_bytes=free_bytes(self._directory),
        )

    def status(self, position: int) -> EdgeStatus:
        """Return where the edge stands, if its subscribers have been sent all below `position`."""
        unread_s = self._clock() - self._looked_at
        return EdgeStatus(
            lag_s=self._writer.lag_s(min(position, self.tip + 1)),
            writer_silent_s=self._writer.silent_s,
            writer_alive=self._writer.is_alive,
            unread_s=unread_s,
            readable=unread_s <= self._limits.fresh_s,
        )

    def _without_erased(self, batch: Batch) -> Batch | None:
        """Return a batch of the file without the records that are still to be erased there."""
        if not self._tombstones:
            return batch
        kept = without_erased(batch, self._tombstones)
        return batch if kept is None else kept if len(kept) else None

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
        """Wait until the writer has moved a part of the journal to the database. Raises LogCorrupt."""
        await asyncio.sleep(self._limits.poll_s)
        if self._stored_to < position:
            await self._until_fresh()

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
        """Look at the log and at the heartbeat. An error that may pass is noted. Raises LogCorrupt."""
        try:
            if self._must_reopen or self._database.is_replaced:
                self._reopen()
            await self.look()
        except LogCorrupt:
            raise
        except LogError as error:
            self._note_problem(error)
        self._look_at_writer()

    def _on_change(self, names: Collection[str]) -> None:
        """Read what has come, at once. What is left, and errors, are for `run`. Called by the watch."""
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
        tip, self._again = self.tip, None
        self._attempts += 1
        self._step_or_wake(database=True)
        if self.tip == tip:
            self._look_again()

    def _step_or_wake(self, *, database: bool) -> None:
        try:
            whole = self._step(database=database)
        except LogError:
            whole = False
        if not whole:
            self._due.set()

    def _step(self, *, database: bool) -> bool:
        """Read some of what is new, also of the database; return whether it was all. Raises LogError."""
        tip = self.tip
        try:
            with TranslatedErrors(self._path, LogError):
                self._take_entries()
                if database and (self._database.changed() or self._behind):
                    self._behind = True  # also if this fails
                    self._behind = not self._take(self._snapshot())
                    self._take_entries()
                    self._refuse_set_back()
        finally:
            if self.tip > tip:
                self.followers.append(self.tip, self._clock())
                self._appended.notify()
        if database:
            self._looked_at, self._problem = self._clock(), ""
        return not self._behind

    def _take_entries(self) -> None:
        """Take what has come in the journal, or all of it again for a hot tail that was dropped."""
        for tip, columns in self._journal.read():
            if columns is not None:
                batch = columns.batch()
                self._journaled += len(batch)
                if batch.last > self._hot_to:
                    self._hot_tail.append(batch.since(self._hot_to + 1))
                if batch.last > self.tip:
                    self._on_read(batch.since(self.tip + 1))
            self._hot_to = max(self._hot_to, tip)
            self.tip = max(self.tip, tip)
            self._writer.note_life()

    def _snapshot(self) -> Snapshot:
        found = self._database.snapshot(self.tip if self._is_open else -1)
        self._damages.add(self._database.take_damage())
        return found

    def _take(self, found: Snapshot) -> bool:
        """Take what a snapshot has; return whether that is all up to its tip."""
        erased = found.erasures != self._erasures
        self._erasures, self._tombstones = found.erasures, found.tombstones
        self._move_floor(found)
        self._stored, self._stored_to = found.events, found.tip
        batches = [batch.since(self.tip + 1) for batch in self._read_rows(found)]
        for batch in batches:
            self._on_read(batch)
        if not self._is_open:
            self._is_open = True
            self._hot_tail = HotTail(max(found.floor, found.sealed_us + 1), self._limits)
        else:
            self._writer.note_life()
            if erased:
                self._events.segments.clear()
            if erased or found.sealed_us > self.tip:
                self._drop_hot_tail(found)
                return True
        for batch in batches:
            self._hot_tail.append(batch)
        self.tip = self._hot_to = max(self.tip, found.tip if found.whole else found.rows[-1].last_us)
        if not found.whole:
            self._follow_journal(NOWHERE)  # what it has now is in the database as well
        elif (found.commits, found.tip) != self._continued:
            self._follow_journal((found.commits, found.tip))
        return found.whole

    def _drop_hot_tail(self, found: Snapshot) -> None:
        """Have everything read from the file, and from the journal again, that was read before."""
        self._hot_tail, self._hot_to = HotTail(found.tip + 1, self._limits), found.tip
        self.tip = max(self.tip, found.tip)
        self._follow_journal((found.commits, found.tip))

    def _follow_journal(self, continued: tuple[int, int]) -> None:
        self._continued, self._journaled = continued, 0
        self._journal.follow(*continued)

    def _refuse_set_back(self) -> None:
        """Raise LogCorrupt for a log that ends before what was read of it."""
        if not self._behind and self._journal.tip < self.tip:
            self._behind = True  # so that it is found again
            raise LogCorrupt(
                self._path,
                f"ends at {self._journal.tip}, and was read up to {self.tip} before: it was set back, or"
                " another log has taken its place; start this edge again",
            )

    def _read_rows(self, found: Snapshot) -> Iterator[Batch]:
        for row in found.rows:
            batch = self._without_erased(row.columns.batch())
            if batch is not None and batch.last > self.tip:
                yield batch

    def _move_floor(self, found: Snapshot) -> None:
        self.oldest_us = found.oldest_us
        if found.floor > self.floor:
            self.floor = found.floor
            self._hot_tail.drop_before(found.floor)
            self._damages.drop_before(found.floor)

    def _reopen(self) -> None:
        """Read another file that has taken the place of this one. Raises LogError."""
        self._must_reopen = True
        self._events.readers.renew()
        self._erasures, self._behind = NO_REVISION, True
        with TranslatedErrors(self._path, LogError):
            self._database.close()
            self._database = DatabaseReader(self._path, self._limits)
            if not self._database.has_tables():
                raise LogError(self._path, "has no tables yet")
        self._must_reopen = False
        logger.info("log: another file has taken its place, and is read now", path=str(self._path))

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
        self._events.close()
        self._journal.close()
        self._database.close()
