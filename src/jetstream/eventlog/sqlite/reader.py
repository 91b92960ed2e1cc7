"""Reading the file, and the threads that do so.

`eventlog.reader` has what a scan does. Here are its statements, and what is done about damage: it is
collected and skipped. A strict reader raises Damaged or sqlite3.DatabaseError instead.

Reading waits for the disk and for zstd, so the event loop leaves it to the threads of a `ReaderPool`. A scan
is bounded, and is a snapshot of its own, so that a reader who wants little does not hold back checkpoints.
In WAL mode, readers see the last commit and block nobody.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

from jetstream.errors import LogError
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.damage import Damage, DamageRecord
from jetstream.eventlog.reader import Collected, Index, Row, Scan, StoredReader
from jetstream.eventlog.sqlite.connection import TranslatedErrors, open_reader, snapshot
from jetstream.eventlog.sqlite.damage import is_damage, next_key, next_readable
from jetstream.eventlog.sqlite.schema import read_row
from jetstream.limits import LogLimits
from jetstream.model.filter import Filter

Result = TypeVar("Result")

# `did_bits` is most of an index, and is read only for a filter with DIDs.
_INDEXES: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN ? THEN did_bits END FROM segment"
    " WHERE last_us >= ? ORDER BY last_us LIMIT ?"
)
# Columns of one segment: its first position, its exact DIDs, its events without a collection, all its events,
# what makes its keys.
_FIRST: Final = "SELECT first_us FROM segment WHERE last_us = ?"
_DIDS: Final = "SELECT dids FROM segment WHERE last_us = ?"
_ACCOUNTS: Final = "SELECT accounts FROM segment WHERE last_us = ?"
_COLUMNS: Final = (
    "SELECT events, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM segment WHERE last_us = ?"
)
_KEYS: Final = "SELECT dids, collections, rkeys, revs, accounts FROM segment WHERE last_us = ?"
# Segments, newest first, with their Bloom filters; segments in a range, oldest first.
_NEWEST: Final = "SELECT last_us, did_bits FROM segment WHERE last_us < ? ORDER BY last_us DESC LIMIT ?"
_OLDEST: Final = "SELECT last_us FROM segment WHERE last_us >= ? AND first_us < ? ORDER BY last_us LIMIT ?"
# Rows of the tail that overlap a range.
_TAIL: Final = "SELECT * FROM tail WHERE last_us >= ? AND first_us < ? ORDER BY last_us"


class FileReader(StoredReader):
    """Reads through one connection. If it is `strict`, damage is raised and not skipped."""

    errors = (Damaged, sqlite3.DatabaseError)

    def __init__(self, connection: sqlite3.Connection, limits: LogLimits, *, strict: bool = False) -> None:
        """Read through `connection`, which the caller closes."""
        super().__init__(limits, strict=strict)
        # For the modules that read in their own way; used by one thread at a time.
        self.connection = connection

    def indexes(self, position: int, *, with_dids: bool) -> Iterable[Index]:
        """Return the next segments that end at or after a position.

        A `first_us` that is no number, in a damaged row, counts as -1, so that the scan does not end
        there.
        """
        for last_us, first_us, *index in self.connection.execute(
            _INDEXES, (with_dids, position, self.limits.scan_segments)
        ):
            yield Index(last_us, first_us if isinstance(first_us, int) else -1, *index)

    def dids(self, last_us: int) -> bytes:
        """Return the DIDs of a segment, compressed."""
        (dids,) = self.connection.execute(_DIDS, (last_us,)).fetchone()
        return dids  # type: ignore[no-any-return]

    def accounts(self, last_us: int) -> bytes:
        """Return the events without a collection of a segment, compressed."""
        (packed,) = self.connection.execute(_ACCOUNTS, (last_us,)).fetchone()
        return packed  # type: ignore[no-any-return]

    def columns(self, last_us: int) -> Sequence[Any] | None:
        """Return the number of events of a segment, and its columns."""
        return self.connection.execute(_COLUMNS, (last_us,)).fetchone()  # type: ignore[no-any-return]

    def keys_of(self, last_us: int) -> Sequence[bytes] | None:
        """Return what makes the keys of a segment, compressed."""
        return self.connection.execute(_KEYS, (last_us,)).fetchone()  # type: ignore[no-any-return]

    def newest(self, below: int) -> Sequence[tuple[int, bytes]]:
        """Return the keys and Bloom filters of segments below a key, newest first."""
        return self.connection.execute(_NEWEST, (below, self.limits.scan_segments)).fetchall()

    def oldest(self, position: int, stop: int) -> Sequence[int]:
        """Return the keys of segments with events in a range, oldest first."""
        rows = self.connection.execute(_OLDEST, (position, stop, self.limits.scan_segments)).fetchall()
        return [last_us for (last_us,) in rows]

    def tail_rows(self, position: int, stop: int) -> Iterator[Row]:
        """Yield the rows of the tail with events in `[position, stop)`, in order.

        A row that does not match its checksum is noted and left out. Raises sqlite3.DatabaseError.
        """
        for stored in self.connection.execute(_TAIL, (position, stop)):
            try:
                yield read_row(stored)
            except Damaged as error:
                last_us, first_us, *_ = stored
                self.note_damage(min(first_us, last_us), last_us, error)

    def snapshot(self) -> AbstractContextManager[None]:
        """Let all statements inside read the same commit. Sealing could move events between two of them."""
        return snapshot(self.connection)

    def is_damage(self, error: Exception) -> bool:
        """Tell whether an error means that something is damaged."""
        return is_damage(error)

    def _scan_segments(self, found: Collected, wanted: Filter) -> Scan | None:
        """Scan segments. One whose index is damaged is found as one to load."""
        try:
            return super()._scan_segments(found, wanted)
        except sqlite3.DatabaseError as error:
            if self._strict or not is_damage(error):
                raise
            return found.end() or self._scan_damage(found.position, found.stop)

    def _scan_damage(self, position: int, stop: int) -> Scan:
        """Continue where the index of the next segment cannot be read: with that one, or behind lost keys.

        A key that can be read is of a segment whose index is damaged, and its events may be whole. Where
        keys are lost, the range up to the next readable one is noted as damage.
        """
        try:
            key = next_key(self.connection, position)
        except sqlite3.DatabaseError as error:
            behind = min(next_readable(self.connection, position), stop)
            self.note_damage(position, behind - 1, error)
            return behind, None
        return (stop, None) if key is None else (key + 1, key)

    def first_us(self, last_us: int) -> int:
        """Return where a damaged segment starts, or its end if its row does not tell."""
        try:
            (first_us,) = self.connection.execute(_FIRST, (last_us,)).fetchone() or (last_us,)
        except sqlite3.DatabaseError:
            return last_us
        return min(first_us, last_us) if isinstance(first_us, int) else last_us


class ReaderPool:
    """Runs work that reads the database in threads, so that the event loop does not wait for disk or zstd."""

    def __init__(self, path: Path, damages: DamageRecord, limits: LogLimits) -> None:
        """Prepare `limits.reader_threads` threads, which begin when there is work. Nothing is opened yet."""
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
        """Call `work` in a thread, with a reader of the file. Raises LogError.

        Work waits for a thread in the order of the calls. What it raises of SQLite's errors becomes
        LogCorrupt or LogError; a cancelled caller leaves the work to its end in the thread.
        """
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
        """Open the file again for all work that begins from now on: another one has taken its place.

        Called on the event loop's thread, when an edge has noticed that `jetstream log repair` has run.
        """
        idle, self._idle = self._idle, []
        self._file += 1
        for connection in idle:
            connection.close()

    def close(self) -> None:
        """Wait for the threads, and close their connections.

        Blocks until work that has begun is done.
        """
        self._threads.shutdown()
        for connection in self._idle:
            connection.close()
