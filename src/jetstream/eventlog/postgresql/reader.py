"""Reading the database: the statements of a scan, and the threads in which scans run.

`eventlog.reader` has what a scan does. It runs in a thread, since zstd takes milliseconds; each of its
statements is run by the event loop, for which the thread waits. Each statement is a snapshot of its own.
What sealing moves between two of them is noticed: every segment and row names the position that it follows,
and a scan that finds something missing raises Hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import asyncpg

from jetstream.eventlog.postgresql.connection import CONNECT_S, connect, translated, whole
from jetstream.eventlog.postgresql.schema import SEALED, read_row
from jetstream.eventlog.reader import Hole, Index, Row, Scan, StoredReader, measured
from jetstream.eventlog.segment_cache import Loaded
from jetstream.limits import LogLimits

Result = TypeVar("Result")

# A session may read from another replica than the one before, which may be behind it. So each statement says
# which erasures it has seen.
_REVISION: Final = "(SELECT revision FROM state)"
_INDEXES: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN $1::boolean THEN did_bits END, follows_us,"
    f" {_REVISION} FROM segment WHERE last_us >= $2 ORDER BY last_us LIMIT $3"
)
_COLUMNS: Final = (
    f"SELECT {_REVISION}, events, times, kinds, dids, collections, rkeys, revs, cids, bodies"
    " FROM segment WHERE last_us = $1"
)
_DIDS: Final = "SELECT dids FROM segment WHERE last_us = $1"
_ACCOUNTS: Final = "SELECT accounts FROM segment WHERE last_us = $1"
_KEYS: Final = (
    "SELECT dids, collections, rkeys, revs, accounts FROM segment WHERE last_us = $1 AND events > 0"
)
_NEWEST: Final = (
    "SELECT last_us, did_bits FROM segment WHERE last_us < $1 AND events > 0 ORDER BY last_us DESC LIMIT $2"
)
_OLDEST: Final = "SELECT last_us FROM segment WHERE last_us >= $1 AND first_us < $2 ORDER BY last_us LIMIT $3"
# Rows of the tail that cover a part of a range, and are not sealed. A row covers what is between the row
# before it and its end.
_TAIL: Final = (
    f"SELECT last_us, first_us, events, data, follows_us, {_REVISION} FROM tail"
    " WHERE last_us >= $1 AND follows_us < $2::bigint - 1 AND first_us <= last_us"
    f" AND last_us > {SEALED} ORDER BY last_us LIMIT $3"
)
# Indexes that the statements of one scan read. The first segment is most often the one that is wanted.
_STEPS: Final = (1, 7)
_TAIL_ROWS: Final = 64


class DatabaseReader(StoredReader):
    """Reads through `fetch`, which returns the rows of a statement, as of `revision` at least."""

    def __init__(self, fetch: Callable[..., list[Any]], limits: LogLimits, revision: int) -> None:
        super().__init__(limits)
        self._fetch = fetch
        self._revision = revision

    def indexes(self, position: int, *, with_dids: bool) -> Iterable[Index]:
        """Return the next segments that end at or after a position."""
        left = self.limits.scan_segments
        steps = [*_STEPS, left]
        for step in steps:
            count = min(step, left)
            rows = self._fetch(_INDEXES, with_dids, position, count)
            for *index, revision in rows:
                self._require(revision, position)
                yield Index(*index)
            left -= count
            if len(rows) < count or not left:
                return
            position = rows[-1][0] + 1

    def dids(self, last_us: int) -> bytes:
        """Return the DIDs of a segment, compressed."""
        return self._value(_DIDS, last_us)

    def accounts(self, last_us: int) -> bytes:
        """Return the events without a collection of a segment, compressed."""
        return self._value(_ACCOUNTS, last_us)

    def columns(self, last_us: int) -> Sequence[Any] | None:
        """Return the number of events of a segment, and its columns. Raises Hole if it was trimmed."""
        rows = self._fetch(_COLUMNS, last_us)
        if not rows:
            raise Hole(last_us)
        revision, *columns = tuple(rows[0])
        self._require(revision, last_us)
        return columns

    def load_measured(self, last_us: int) -> Loaded | None:
        """Read the events of a segment; None if all of them were erased. Raises Hole if it was trimmed."""
        columns = self.columns(last_us)
        return measured(*columns) if columns and columns[0] else None

    def keys_of(self, last_us: int) -> Sequence[bytes] | None:
        """Return what makes the keys of a segment, compressed."""
        rows = self._fetch(_KEYS, last_us)
        return tuple(rows[0]) if rows else None

    def newest(self, below: int) -> Sequence[tuple[int, bytes]]:
        """Return the keys and Bloom filters of segments below a key, newest first."""
        return [tuple(row) for row in self._fetch(_NEWEST, below, self.limits.scan_segments)]

    def oldest(self, position: int, stop: int) -> Sequence[int]:
        """Return the keys of segments with events in a range, oldest first."""
        return [row[0] for row in self._fetch(_OLDEST, position, stop, self.limits.scan_segments)]

    def tail_rows(self, position: int, stop: int) -> Iterator[Row]:
        """Yield the rows of the tail that are not sealed and cover a part of `[position, stop)`, in order."""
        while position < stop:
            rows = self._fetch(_TAIL, position, stop, _TAIL_ROWS)
            for *stored, revision in rows:
                self._require(revision, position)
                yield read_row(stored)
            if len(rows) < _TAIL_ROWS:
                return
            position = rows[-1][0] + 1

    def _end_of_tail(self, position: int, stop: int) -> Scan:
        """Raise Hole where the tail ends below what was shown: what is missing was moved."""
        if position < stop:
            raise Hole(position)
        return stop, None

    def _value(self, statement: str, last_us: int) -> bytes:
        rows = self._fetch(statement, last_us)
        if not rows:
            raise Hole(last_us)
        value: bytes = rows[0][0]
        return value

    def _require(self, revision: int, position: int) -> None:
        """Raise Hole for an answer from before the newest erasure that was seen."""
        if revision < self._revision:
            raise Hole(position)


class ReaderPool:
    """Runs work that reads the database in threads, each with a connection."""

    def __init__(self, address: str, limits: LogLimits, *, primary: bool = False) -> None:
        # The database, whether it must be the primary, and how many threads and connections there are at
        # most.
        self._address, self._primary = address, primary
        self._limits = limits
        self._threads = ThreadPoolExecutor(limits.reader_threads, thread_name_prefix="log-reader")
        # Made by `open`. Connections that were not used for a minute are closed.
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Prepare connections: each is made when it is needed."""
        address, primary = self._address, self._primary
        self._pool = await asyncpg.create_pool(
            address,
            min_size=0,
            max_size=self._limits.reader_threads,
            max_inactive_connection_lifetime=60.0,
            connect=lambda *_, **__: connect(address, writes=primary),
        )

    async def run(self, work: Callable[[DatabaseReader], Result], revision: int = 0) -> Result:
        """Call `work` in a thread, with a reader. Raises Hole, LogError or LogUnreachable."""
        with translated(self._address):
            return await whole(self._run(work, revision))

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of one statement. Raises LogError or LogUnreachable."""
        assert self._pool is not None
        with translated(self._address):
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                rows: list[Any] = await connection.fetch(statement, *values)
                return rows

    async def _run(self, work: Callable[[DatabaseReader], Result], revision: int) -> Result:
        assert self._pool is not None
        loop = asyncio.get_running_loop()
        async with self._pool.acquire() as connection:

            def fetch(statement: str, *values: object) -> list[Any]:
                rows: list[Any] = asyncio.run_coroutine_threadsafe(
                    connection.fetch(statement, *values), loop
                ).result()
                return rows

            reader = DatabaseReader(fetch, self._limits, revision)
            return await loop.run_in_executor(self._threads, work, reader)

    async def close(self) -> None:
        """Wait for the threads, and close the connections."""
        if self._pool is not None:
            self._pool.terminate()
        await asyncio.to_thread(self._threads.shutdown)
