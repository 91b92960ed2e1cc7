"""The event log in one SQLite file, for one machine.

    append ──▶ (journal) ──▶ tail (a row per batch) ──seal──▶ segment (4,000 events) ──trim──▶ deleted
       └─────▶ hot tail (in memory)

A batch is committed as one row of `tail`, in the transaction that moves the cursors, on the event loop's
thread: a commit writes 30 to 170 us into the page cache, less than handing it to a thread costs. Small
batches are written to the journal first, and many of them become one row (see `journal`). Everything that
waits for the disk happens elsewhere: reading in the threads of `ReaderPool`, and everything else in the
thread of `upkeep`. Each write holds `LogState.writing`, for no longer than one short transaction takes.

A reader gives a position and gets the batch that follows:

    floor                              start of the hot tail         tip
      │ segment │ segment │ … │ rows of the tail │ batches in memory │
      └───── scan and load, in a reader thread ──┴─ returned at once ┘

Batches are shared. The hot tail hands out the batch that is still growing, and the segment cache hands out
each loaded segment to all readers that ask for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from jetstream.clock import boot_id, unix_us
from jetstream.conditions import Conditions
from jetstream.errors import LogError, LogUnwritable, SettingError
from jetstream.eventlog import Changes, Cursors, Gap, lookup
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.cursors import cursor_row
from jetstream.eventlog.erase import Tombstones, find_tombstones
from jetstream.eventlog.sqlite.connection import Transaction, TranslatedErrors, bytes_on_disk, wal_bytes
from jetstream.eventlog.sqlite.gaps import GAP_BYTES, insert_gaps
from jetstream.eventlog.sqlite.heartbeat import Beat, write_beat
from jetstream.eventlog.sqlite.journal import Entry, store_entries
from jetstream.eventlog.sqlite.recovery import LogState, SqliteOptions, open_log
from jetstream.eventlog.sqlite.repos import PAGE_BYTES, insert_changes
from jetstream.eventlog.sqlite.reservation import Machine
from jetstream.eventlog.sqlite.schema import (
    Totals,
    commit_row,
    count_erasure,
    insert_row,
    read_accounts,
    store_accounts,
    store_cursors,
)
from jetstream.eventlog.sqlite.stored import StoredEvents
from jetstream.eventlog.sqlite.upkeep import Upkeep
from jetstream.eventlog.states import RECORD_BYTES
from jetstream.eventlog.watermark import beat_after
from jetstream.limits import LogLimits
from jetstream.logging_setup import Throttled
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.scheduling import Notifier, short_switch_interval
from jetstream.status import LogStatistics

ERASE_DELETED: Final = frozenset({"deleted"})


class SqliteLog:
    """A log in one directory. `LogReader` and `LogWriter` say what the methods promise; `open` makes one.

    Every method belongs to the event loop's thread. An append runs on it from end to end, except for a
    new reservation of positions; `read` leaves it only for what is not in the hot tail.
    """

    def __init__(self, state: LogState, erase: frozenset[str]) -> None:
        """Begin upkeep and the heartbeat. `state` is open and recovered; `close` closes it.

        Needs a running event loop.
        """
        # The open files, and what is in them. Upkeep changes it as well.
        self._state = state
        # Statuses of account events that erase the account's records. A mirror adds those of its upstream.
        self.erases = erase
        # Tells the lowest position that the next append may have. Set by what stamps events.
        self.next_position: Callable[[], int] = lambda: state.tip + 1
        # The readers that the writer waits for. They join and leave by themselves.
        self.followers = Followers()
        # Wakes those in `wait` after each append.
        self._appended = Notifier()
        # Where events that are not in the hot tail are read, and those that were.
        self._stored = StoredEvents(state.path, state.damages, state.limits)
        # What seals, trims and checkpoints in the background.
        self._upkeep = Upkeep(state, self._stored.segments.drop)
        # Says to other processes that this one is alive, until `close`.
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        self._logger = Throttled(structlog.get_logger(__name__))

    @classmethod
    async def open(  # noqa: PLR0913 - what a log may be opened with
        cls,
        directory: Path,
        *,
        retention_s: float | None = None,
        retention_bytes: int | None = None,
        erase: frozenset[str] = ERASE_DELETED,
        mirrors: bool = False,
        clock: Callable[[], int] = unix_us,
        conditions: Conditions | None = None,
        limits: LogLimits = LogLimits(),
        machine: Machine | None = None,
    ) -> SqliteLog:
        """Open the log in `directory`, or create one.

        Events are kept for `retention_s`, and while the files take `retention_bytes`; None is without limit.
        Accounts that become inactive with a status in `erase` have their records erased. A log that `mirrors`
        another one goes on after its newest event also after a loss of power: what was lost comes again with
        the same positions. `clock` gives unix microseconds; it should not follow short steps of the machine's
        clock. `conditions` is told of `damage` and `wal`.

        Raises LogLocked if another process writes the log, LogCorrupt if the file is not what was written,
        LogUnwritable if the directory cannot be written, SettingError for a bound that cannot be kept.
        """
        if retention_bytes is not None and retention_bytes < limits.retention_bytes_min:
            raise SettingError("--retention-bytes", retention_bytes, f"is below {limits.retention_bytes_min}")
        machine, conditions = machine or Machine(boot_id()), conditions or Conditions()
        options = SqliteOptions(retention_s, retention_bytes, clock, conditions, limits, machine, mirrors)
        return cls(await asyncio.to_thread(open_log, directory, options), erase)

    @property
    def clock_offset_us(self) -> int | None:
        """By how much this boot's clock was trusted to be ahead of the time since boot; None if unknown."""
        return self._state.ages.stored_offset_us

    # Writing

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""
        return self._state.floor

    @property
    def tip(self) -> int:
        """The highest position that may have been given out; 0 if none was."""
        return self._state.tip

    @property
    def newest(self) -> int:
        """The tip: nobody else appends."""
        return self._state.tip

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future."""
        return self.newest + 1

    @property
    def watermark(self) -> int:
        """The position below which nothing more comes: the next event has at least this one."""
        return self.next_position()

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept; None: the log is empty."""
        return self._state.oldest_us

    @property
    def cursors(self) -> Cursors:
        """The cursors as of the last append."""
        return self._state.cursors

    async def append(self, batch: Batch, changes: Changes, received_at: float | None = None) -> None:
        """Store events and all changes together, or neither.

        Raises LogUnwritable, or LogCorrupt if upkeep has found the tail damaged.

        The order of the steps matters. Room and positions are taken first, so that a refusal leaves
        nothing behind. Then comes the write, to the journal or to the database. Memory follows last, and
        without an await: no reader sees an event that is not stored, and none sees a half of an append.
        """
        state, count = self._state, len(batch)
        assert not count or batch.first > state.tip
        self._upkeep.raise_failure()
        tombstones = find_tombstones(batch, self.erases)
        async with state.writing:
            if changes.repos and state.repos.is_overfull:
                self._upkeep.wake()
                raise LogUnwritable(state.path, "too many states of repositories wait to be written")
            try:
                columns = Columns.of(batch) if count else None
                size = _size(columns, changes)
                if state.space.spend(size):
                    self._upkeep.wake()
                if count and batch.last > state.reservation.until_us:
                    await self._reserve(batch.last)
                with TranslatedErrors(state.path):
                    if tombstones or not self._write_ahead(batch, columns, changes, size):
                        self._commit(batch, columns, changes, tombstones)
            except LogUnwritable:
                state.writable = False
                state.space.full = True
                self._upkeep.wake()
                raise
            state.writable = True
            state.cursors = changes.cursors
            state.gaps += len(changes.gaps)
            if changes.repos:
                state.repos.add(changes.repos)
                if state.repos.is_due:
                    self._upkeep.wake()
            if columns is not None:
                self._publish(batch, columns.text_bytes, tombstones, received_at)

    async def _reserve(self, position: int) -> None:
        """Reserve positions above `position`. The append waits for it, so the thread gets the GIL quickly.

        Upkeep reserves ahead, so this runs only for the first append and after a jump of positions.
        """
        with short_switch_interval(), TranslatedErrors(self._state.path):
            await asyncio.to_thread(self._state.reservation.extend, position)

    def _write_ahead(self, batch: Batch, columns: Columns | None, changes: Changes, size: int) -> bool:
        """Write one append to the journal; return False if it is none for it: large, or with rare changes.

        While the database cannot be written, none is: so a disk that refuses is noticed at the next append.

        `size` is what `_size` returned. With True, the append is stored as surely as by a commit.
        """
        state = self._state
        if size > state.limits.journaled_bytes or state.space.full or changes.gaps or changes.accounts:
            return False
        moved = self._moved(changes.cursors)
        if moved is None or sum(len(each.unstored) for each in moved.values()) > state.limits.journaled_seqs:
            return False
        first, last = (batch.first, batch.last) if columns is not None else (state.tip + 1, state.tip)
        return state.journal.append(
            Entry(first, last, columns, moved, changes.repos), state.commits, state.tip
        )

    def _moved(self, cursors: Cursors) -> Cursors | None:
        """Return the cursors that have moved, at least one if there is any; None for other sources.

        Of hundreds, one or two have.
        """
        before = self._state.cursors
        if cursors.keys() != before.keys():
            return None
        if len(cursors) == 1:
            return cursors
        moved = {source: each for source, each in cursors.items() if before[source] != each}
        return moved or dict(islice(cursors.items(), 1))

    def _commit(
        self, batch: Batch, columns: Columns | None, changes: Changes, tombstones: Tombstones
    ) -> None:
        """Write one append, and what is in the journal before it, to the database.

        Raises sqlite3.DatabaseError with nothing stored and the journal as it was. The journal is emptied
        only after the commit, in memory; its old entries in the file do not count any more, since
        `commits` has risen.
        """
        state, journal = self._state, self._state.journal
        totals = Totals(
            state.tip if columns is None else batch.last, state.appended + len(batch), state.commits + 1
        )
        moved = self._moved(changes.cursors)
        if not (journal.entries or tombstones) and self._commit_row(batch, columns, changes, moved, totals):
            state.commits += 1
            return
        row_id = None
        with Transaction(state.writer):
            if journal.entries:
                row_id = store_entries(state.writer, journal.entries, state.appended, totals.commits)
            row_id = self._store(batch, columns, changes, moved, tombstones, totals) or row_id
        state.commits += 1
        state.repos.note_row(row_id)
        journal.clear()

    def _commit_row(
        self, batch: Batch, columns: Columns | None, changes: Changes, moved: Cursors | None, totals: Totals
    ) -> bool:
        """Commit an append that is one row of the tail and one cursor; return False if it is not.

        Nearly all are, since states of repositories come with `--verify full` only.

        Raises sqlite3.DatabaseError with nothing stored.
        """
        state = self._state
        if columns is None or len(columns.bodies) > state.limits.batch_bytes:
            return False
        if changes.repos or changes.gaps or changes.accounts:
            return False
        if moved is None or len(moved) != 1:
            return False
        ((source, cursor),) = moved.items()
        commit_row(state.writer, batch.first, columns, cursor_row(source, cursor), totals)
        return True

    def _store(
        self,
        batch: Batch,
        columns: Columns | None,
        changes: Changes,
        moved: Cursors | None,
        tombstones: Tombstones,
        totals: Totals,
    ) -> int | None:
        """Write one append, inside a transaction: rows of the tail, tombstones, changes.

        `moved` is what `_moved` has returned. Returns the row of the states of repositories, if some have
        changed.
        """
        state = self._state
        writer, batch_bytes = state.writer, state.limits.batch_bytes
        if columns is not None:
            if len(columns.bodies) <= batch_bytes:
                insert_row(writer, batch.first, batch.last, columns)
            else:  # in parts, so that no reader must take more into memory at once
                for part in batch.parts(batch_bytes):
                    insert_row(writer, part.first, part.last, Columns.of(part))
        if tombstones:
            writer.executemany("INSERT OR REPLACE INTO tombstone VALUES (?, ?)", tombstones.items())
            count_erasure(writer)
        if moved is None:
            store_cursors(writer, changes.cursors, totals, same_sources=False)
        else:
            store_cursors(writer, moved, totals, same_sources=True)
        if changes.gaps:
            insert_gaps(writer, changes.gaps)
        if changes.accounts:
            store_accounts(writer, changes.accounts)
        return insert_changes(writer, changes.repos) if changes.repos else None

    def _publish(
        self, batch: Batch, text_bytes: int, tombstones: Tombstones, received_at: float | None
    ) -> None:
        """Let memory follow what was committed, and wake readers and, if there is a segment, upkeep.

        The hot tail takes the events before it is cleaned by `tombstones`, since a record of the same
        batch may be older than the end of its account.
        """
        state, count = self._state, len(batch)
        state.tip = batch.last
        state.appended += count
        state.events += count
        state.tail_events += count
        if state.oldest_us is None:
            state.oldest_us = batch.first
        state.hot_tail.append(batch, text_bytes)
        if tombstones:
            state.hot_tail.erase(tombstones)
        # Enough for a segment: upkeep need not wait for its second.
        if state.tail_events >= state.limits.segment_events:
            self._upkeep.wake()
        self.followers.append(state.tip, received_at)
        self._appended.notify()

    def repo(self, did: bytes) -> bytes | None:
        """Return the state of a repository by its compact DID; None if it is not known."""
        with TranslatedErrors(self._state.path, LogError):
            return self._state.repos.get(did)

    def accounts(self) -> Mapping[tuple[str, str], bytes]:
        """Return what is stored of accounts, by source and DID."""
        with TranslatedErrors(self._state.path, LogError):
            return read_accounts(self._state.writer)

    # Reading

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        state = self._state
        position = max(position, state.floor)
        stop = min(stop, state.tip + 1)
        while position < stop:
            start = state.hot_tail.start
            if position >= start:
                return state.hot_tail.at(position, stop)
            if state.journal.starts_below(start):
                await self._empty_journal()
            position, batch = await self._stored.find(position, min(stop, start), wanted)
            if batch is not None:
                return batch
        return None

    async def _empty_journal(self) -> None:
        """Let the database have all that was appended. Raises LogUnwritable.

        Reading from the database needs it where an event below the hot tail is only in the journal: the
        hot tail has dropped it within a second.
        """
        async with self._state.writing:
            with TranslatedErrors(self._state.path):
                self._state.empty_journal()

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position."""
        hot_tail, start = self._state.hot_tail, self._state.hot_tail.start
        found = lookup.in_batches(hot_tail.newest_first(), keys)
        if missing := set(keys) - found.keys():
            stored, problem = await self._stored.readers.run(
                lambda reader: lookup.in_store(reader, missing, start)
            )
            found |= stored
            if problem is not None:
                self._logger.warning(
                    "log: a part cannot be searched, its events may be delivered again", problem=problem
                )
        return found

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`.

        Includes events that are only in the journal. Raises LogError.
        """
        position = max(position, self._state.floor)
        # Before the database: an append moves in that direction.
        journaled = lookup.keys_within(self._state.journal.batches(), position, stop)
        readers = self._stored.readers
        return journaled | await readers.run(lambda reader: lookup.keys_from(reader, position, stop))

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return await self._stored.gaps(since_us, count_max)

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been appended."""
        while self._state.tip < position:
            await self._appended.wait()

    def statistics(self) -> LogStatistics:
        """Return what the log holds.

        Asks the file system for sizes, which takes some microseconds. `events` counts what is kept.
        """
        state = self._state
        return LogStatistics(
            events=state.events,
            bytes_on_disk=bytes_on_disk(state.path),
            oldest_us=state.oldest_us,
            newest_us=None if state.oldest_us is None else state.tip,
            writable=state.writable,
            wal_bytes=wal_bytes(state.path),
            damaged=state.damages.count,
            disk_free_bytes=state.space.free_or_none(),
        )

    async def look(self) -> None:
        """Return: this process has written all that there is."""

    # Upkeep

    async def _beat(self) -> None:
        """Write the heartbeat, until cancelled.

        The first line is written at once. A line that cannot be written is left out: see `write_beat`.
        """
        beat = 0
        while True:
            beat = beat_after(beat, self.next_position())
            write_beat(self._state.lock, Beat(os.getpid(), beat, self._state.tip))
            await asyncio.sleep(self._state.limits.heartbeat_s)

    async def maintain(self) -> None:
        """Do all upkeep that is due now, which otherwise happens within a second. See `Upkeep.run`."""
        await self._upkeep.run()

    async def close(self) -> None:
        """Copy everything into the database, durably, and close it.

        Reads that run in threads are waited for. What cannot be written is not an error here: it stays in
        the journal or in the write-ahead log, from which the next process recovers it.
        """
        self._beating.cancel()
        await self._upkeep.close()
        with suppress(LogError):  # what cannot be written stays in the journal
            await self._empty_journal()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        """Close the connections, the last one with a checkpoint, and reserve no more than was given out.

        Runs in a thread, since the last checkpoint waits for the disk. The lock is released at the end,
        so that no other process can write meanwhile.
        """
        self._stored.close()
        self._state.journal.close()
        self._state.writer.close()
        with suppress(LogError), TranslatedErrors(self._state.path):
            self._state.checkpointer.close()
            self._state.reservation.write(self._state.tip)
        os.close(self._state.lock)


def _size(columns: Columns | None, changes: Changes) -> int:
    """Return about how many bytes an append writes, beside some pages as a whole.

    For `Space.spend`, and to choose between the journal and a transaction.
    """
    events = 0 if columns is None else columns.size
    gaps, accounts = GAP_BYTES * len(changes.gaps), PAGE_BYTES * len(changes.accounts)
    return events + RECORD_BYTES * len(changes.repos) + gaps + accounts
