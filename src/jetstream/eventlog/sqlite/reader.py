"""Reading the file: which segment or which rows of the tail come next, and their events.

A reader alternates two calls. `scan` reads the indexes of the next segments, and finds the first one that may
have wanted events; `load` reads that one's events. They are apart so that a loaded segment can come from the
cache, which all readers share.

A scan skips a segment by its index: the set of its collections, a Bloom filter of its DIDs, and copies of its
events without a collection. So a reader of a rare collection, or of these kinds alone, reads a few kilobytes
of each segment, and no other events. A scan is bounded, and is a snapshot of its own, so that a reader who
wants little does not hold back checkpoints.

A `FileReader` is synchronous, and has a connection that no other thread uses at the same time. Damage is
collected and skipped. A strict reader raises Damaged or sqlite3.DatabaseError instead.

Reading waits for the disk and for zstd, so the event loop leaves it to the threads of a `ReaderPool`. In WAL
mode, readers see the last commit and block nobody.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from jetstream.errors import LogError
from jetstream.eventlog.columns import Columns, Damaged, read_times
from jetstream.eventlog.segment import (
    holds_collection,
    holds_did,
    may_hold_did,
    text_bytes,
    unpack_accounts,
    unseal,
)
from jetstream.eventlog.segment_cache import Loaded
from jetstream.eventlog.sqlite.connection import TranslatedErrors, open_reader, snapshot
from jetstream.eventlog.sqlite.damage import Damage, DamageRecord, is_damage, next_key, next_readable
from jetstream.eventlog.sqlite.schema import Row
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch, memory_bytes
from jetstream.model.filter import Filter

Result = TypeVar("Result")

_NOTHING: Final = Columns(*[b""] * 8)

# `did_bits` is most of an index, and is read only for a filter with DIDs.
_INDEXES: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN ? THEN did_bits END FROM segment"
    " WHERE last_us >= ? ORDER BY last_us LIMIT ?"
)
# Columns of one segment: its first position, its exact DIDs, its events without a collection, all its events.
_FIRST: Final = "SELECT first_us FROM segment WHERE last_us = ?"
_DIDS: Final = "SELECT dids FROM segment WHERE last_us = ?"
_ACCOUNTS: Final = "SELECT accounts FROM segment WHERE last_us = ?"
_COLUMNS: Final = (
    "SELECT events, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM segment WHERE last_us = ?"
)
# Rows of the tail that overlap a range.
_TAIL: Final = "SELECT * FROM tail WHERE last_us >= ? AND first_us < ? ORDER BY last_us"


# The result of a scan: where to scan next, and the only thing below that which may be wanted: the key of a
# segment to load, a batch, or None.
Scan = tuple[int, int | Batch | None]


class FileReader:
    """Reads through one connection. If it is `strict`, damage is raised and not skipped."""

    def __init__(self, connection: sqlite3.Connection, limits: LogLimits, *, strict: bool = False) -> None:
        # For the modules that read in their own way; used by one thread at a time.
        self.connection = connection
        self.limits = limits
        # What was skipped. The owner of the reader takes it from here.
        self.damage: list[Damage] = []
        self._strict = strict

    def scan(self, position: int, stop: int, wanted: Filter) -> Scan:
        """Find the first stored events in `[position, stop)` that `wanted` may want.

        Gives up after `scan_segments` segments without any. Events without a collection, of segments that
        have no other wanted events, are collected into one batch. A segment whose index is damaged is found
        as one to load.
        """
        with snapshot(self.connection):
            seen = count = size = 0
            start = position
            accounts: list[Columns] = []  # of the segments so far that have no wanted commits
            try:
                for last_us, first_us, collection_set, did_bits in self.connection.execute(
                    _INDEXES, (wanted.names_dids, position, self.limits.scan_segments)
                ):
                    if isinstance(first_us, int) and stop <= first_us <= last_us:
                        break
                    seen += 1
                    run = self._accounts_unless_wanted(last_us, collection_set, did_bits, wanted)
                    if run is None:
                        return (position, _batch(accounts)) if accounts else (last_us + 1, last_us)
                    if run.times and any(start <= time < stop for time in read_times(run.times)):
                        accounts.append(run)
                        count, size = count + run.events, size + run.size
                    position = last_us + 1
                    if count >= self.limits.batch_events or size >= self.limits.batch_bytes:
                        break
            except sqlite3.DatabaseError as error:
                if self._strict or not is_damage(error):
                    raise
                if not accounts:
                    return self._scan_damage(position, stop)
            if accounts or seen == self.limits.scan_segments:
                return position, _batch(accounts) if accounts else None
            return self._scan_tail(position, stop, wanted)

    def note_damage(self, first_us: int, last_us: int, error: Exception) -> None:
        """Note a range that cannot be read. Raises the error again if it is no damage, or if strict."""
        if self._strict or not is_damage(error):
            raise error
        self.damage.append(Damage(first_us, last_us, str(error)))

    def load(self, last_us: int) -> Batch | None:
        """Read the events of a segment, all of them, whatever the scan wanted.

        Returns None if it was trimmed since the scan, or is damaged.
        """
        loaded = self.load_measured(last_us)
        return None if loaded is None else loaded.batch

    def load_measured(self, last_us: int) -> Loaded | None:
        """Do so, and tell how much memory they take. Counting the bytes of all values takes 0.3 ms."""
        try:
            row = self.connection.execute(_COLUMNS, (last_us,)).fetchone()
            if row is None:
                return None
            events, times, *texts = row
            return Loaded(unseal(events, times, texts), memory_bytes(events, text_bytes(events, texts)))
        except (Damaged, sqlite3.DatabaseError) as error:
            self.note_damage(self._first_us(last_us), last_us, error)
            return None

    def tail_rows(self, position: int, stop: int) -> Iterator[Row]:
        """Yield the rows of the tail with events in `[position, stop)`, in order."""
        for stored in self.connection.execute(_TAIL, (position, stop)):
            try:
                yield Row.read(stored)
            except Damaged as error:
                last_us, first_us, *_ = stored
                self.note_damage(min(first_us, last_us), last_us, error)

    def tail_run(self, position: int, stop: int, events: int, body_bytes: int) -> tuple[list[Row], bool]:
        """Read rows of the tail in a range until they have so many events or bytes; tell if they have."""
        rows: list[Row] = []
        for row in self.tail_rows(position, stop):
            rows.append(row)
            events -= row.events
            body_bytes -= len(row.columns.bodies)
            if events <= 0 or body_bytes <= 0:
                return rows, True
        return rows, False

    def _scan_damage(self, position: int, stop: int) -> Scan:
        """Continue where the index of the next segment cannot be read: with that one, or behind lost keys."""
        try:
            key = next_key(self.connection, position)
        except sqlite3.DatabaseError as error:
            behind = min(next_readable(self.connection, position), stop)
            self.note_damage(position, behind - 1, error)
            return behind, None
        return (stop, None) if key is None else (key + 1, key)

    def _first_us(self, last_us: int) -> int:
        """Return where a damaged segment starts, or its end if its row does not tell."""
        try:
            (first_us,) = self.connection.execute(_FIRST, (last_us,)).fetchone() or (last_us,)
        except sqlite3.DatabaseError:
            return last_us
        return min(first_us, last_us) if isinstance(first_us, int) else last_us

    def _accounts_unless_wanted(
        self, last_us: int, collection_set: bytes, did_bits: bytes, wanted: Filter
    ) -> Columns | None:
        """Return None for a segment to load, else its events without a collection, as far as wanted."""
        try:
            if wanted.names_dids and not self._holds_did(last_us, did_bits, wanted):
                return _NOTHING
            if holds_collection(collection_set, wanted):
                return None
            if not wanted.wants_collection(b""):
                return _NOTHING
            (packed,) = self.connection.execute(_ACCOUNTS, (last_us,)).fetchone()
            return unpack_accounts(packed) or _NOTHING
        except (Damaged, sqlite3.DatabaseError) as error:
            if not is_damage(error):
                raise
            return None  # the events are stored apart from the index, and may be undamaged

    def _holds_did(self, last_us: int, did_bits: bytes, wanted: Filter) -> bool:
        """Test the Bloom filter, and for a positive answer the column of DIDs, which is exact."""
        if not may_hold_did(did_bits, wanted):
            return False
        (dids,) = self.connection.execute(_DIDS, (last_us,)).fetchone()
        return holds_did(dids, wanted)

    def _scan_tail(self, position: int, stop: int, wanted: Filter) -> Scan:
        """Find the first batch of the tail that has wanted events."""
        limits = self.limits
        while rows := self.tail_run(position, stop, limits.batch_events, limits.batch_bytes)[0]:
            batch = _batch(row.columns for row in rows)
            if wanted.select(batch, batch.index(position), batch.index(stop)):
                return batch.last + 1, batch
            position = batch.last + 1
        return stop, None


class ReaderPool:
    """Runs work that reads the database in threads, so that the event loop does not wait for disk or zstd."""

    def __init__(self, path: Path, damages: DamageRecord, limits: LogLimits) -> None:
        # The database, the limits of reading, and the record of damage: what a thread finds is added to it
        # afterwards, on the event loop's thread.
        self._path = path
        self._limits = limits
        self._damages = damages
        self._threads = ThreadPoolExecutor(limits.reader_threads, thread_name_prefix="log-reader")
        # Connections that no thread uses, at most one for each thread. The last one used is taken first: its
        # page cache is warm.
        self._idle: list[sqlite3.Connection] = []
        # Counts the files that were read in turn; connections to an earlier one are closed after their use.
        self._file = 0

    async def run(self, work: Callable[[FileReader], Result]) -> Result:
        """Call `work` in a thread, with a reader of the file. Raises LogError."""
        with TranslatedErrors(self._path, LogError):
            result, damage = await asyncio.get_running_loop().run_in_executor(self._threads, self._work, work)
        self._damages.add(damage)
        return result

    def _work(self, work: Callable[[FileReader], Result]) -> tuple[Result, list[Damage]]:
        """Do the work, in a thread. Returns the damage that was found as well."""
        file = self._file
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = open_reader(self._path)
        reader = FileReader(connection, self._limits)
        try:
            return work(reader), reader.damage
        finally:
            if file == self._file:
                self._idle.append(connection)
            else:
                connection.close()

    def renew(self) -> None:
        """Open the file again for all work that begins from now on: another one has taken its place."""
        idle, self._idle = self._idle, []
        self._file += 1
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Wait for the threads, and close their connections."""
        self._threads.shutdown()
        for connection in self._idle:
            connection.close()


def _batch(runs: Iterable[Columns]) -> Batch:
    """Make one batch of runs of columns that follow each other."""
    return Columns.joined(runs).batch()
