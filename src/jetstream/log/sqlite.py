"""The log in one SQLite file, for one machine.

A batch is committed as one row of `tail`, in the transaction that moves the upstream's cursor. The newest
events are in memory as well (`recent`); older ones are read from the file by threads of their own, each with
its own read-only connection, so the event loop waits for nothing but its own commit: 30 to 170 us of writing
into the page cache, less than it costs to hand the commit to a thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Final, TypeVar

from jetstream.errors import LogError, LogUnwritable
from jetstream.events import Batch
from jetstream.filters import Filter
from jetstream.log import LogStatistics, UpstreamCursor
from jetstream.log.columns import Columns
from jetstream.log.database import (
    DATABASE,
    bytes_on_disk,
    explained,
    open_reader,
    open_writer,
    take_lock,
    transaction,
)
from jetstream.log.recent import Recent
from jetstream.log.stored import find

# Readers wait for the disk and for zstd, both without the interpreter lock; more would only compete for it.
READERS: Final = 2

Result = TypeVar("Result")


class SqliteLog:
    """A `Log` in one directory; see there for what each method promises."""

    def __init__(self, directory: Path, lock: int, writer: sqlite3.Connection) -> None:
        self._path = directory / DATABASE
        self._lock = lock
        self._writer = writer
        self._writing = asyncio.Lock()
        self._maintainer = open_writer(self._path)
        self._maintenance = ThreadPoolExecutor(1, thread_name_prefix="log-maintenance")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="log-reader")
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        self._writable = True
        self._grown: asyncio.Future[None] | None = None
        tip, floor, events, origin, seq = writer.execute(
            "SELECT tip_us, floor_us, events, origin, seq FROM state"
        ).fetchone()
        self._tip: int = tip
        self._floor: int = floor
        self._events: int = events
        self._oldest = _oldest(writer)
        self._upstream = None if origin is None else UpstreamCursor(origin, seq)
        self._recent = Recent(tip + 1)

    @classmethod
    async def open(cls, directory: Path) -> SqliteLog:
        """Open the log in `directory`, or begin one there.

        Raises LogLocked when another process writes it, LogCorrupt when the file is not what was written,
        LogUnwritable when the directory cannot be written.
        """
        return await asyncio.to_thread(cls._open, directory)

    @classmethod
    def _open(cls, directory: Path) -> SqliteLog:
        lock = take_lock(directory)
        try:
            with explained(directory / DATABASE):
                return cls(directory, lock, open_writer(directory / DATABASE))
        except LogError:
            os.close(lock)
            raise

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""
        return self._floor

    @property
    def tip(self) -> int:
        """The highest position that was ever given out; 0 if none was."""
        return self._tip

    @property
    def upstream(self) -> UpstreamCursor | None:
        """The cursor of the last append."""
        return self._upstream

    async def append(self, batch: Batch, upstream: UpstreamCursor) -> None:
        """Store events and the upstream's cursor together, or neither."""
        assert not len(batch) or batch.first > self._tip
        async with self._writing:
            try:
                with explained(self._path), transaction(self._writer):
                    self._store(batch, upstream)
            except LogUnwritable:
                self._writable = False
                raise
            self._writable = True
            self._upstream = upstream
            if len(batch):
                self._publish(batch)

    def _store(self, batch: Batch, upstream: UpstreamCursor) -> None:
        tip = self._tip
        if len(batch):
            tip = batch.last
            columns = Columns.of(batch)
            self._writer.execute(
                "INSERT INTO tail VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (tip, batch.first, len(batch), columns.checksum(), *columns),
            )
        self._writer.execute(
            "UPDATE state SET tip_us = ?, events = events + ?, origin = ?, seq = ?",
            (tip, len(batch), *upstream),
        )

    def _publish(self, batch: Batch) -> None:
        self._tip = batch.last
        self._events += len(batch)
        if self._oldest is None:
            self._oldest = batch.first
        self._recent.append(batch)
        if self._grown is not None:
            self._grown.set_result(None)
            self._grown = None

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        position = max(position, self._floor)
        stop = min(stop, self._tip + 1)
        while position < stop:
            start = self._recent.start
            if position >= start:
                return self._recent.at(position, stop)
            batch = await self._read_stored(position, min(stop, start), wanted)
            if batch is not None:
                return batch
            position = start
        return None

    async def _read_stored(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        def run() -> Batch | None:
            with explained(self._path, LogError):
                connection = self._reader()
                try:
                    return find(connection, position, stop, wanted)
                finally:
                    self._idle.put(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def _reader(self) -> sqlite3.Connection:
        try:
            return self._idle.get_nowait()
        except Empty:
            return open_reader(self._path)

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been appended."""
        while self._tip < position:
            if self._grown is None:
                self._grown = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._grown)

    async def trim(self, before_us: int) -> int:
        """Forget events older than `before_us`, in whole blocks; return how many went."""
        async with self._writing:
            gone, floor = await self._maintain(lambda: self._trim(before_us))
            self._events -= gone
            self._floor = floor
            self._oldest = await self._maintain(lambda: _oldest(self._maintainer))
            self._recent.drop_before(floor)
        return gone

    def _trim(self, before_us: int) -> tuple[int, int]:
        """Return how many events went, and the new floor."""
        with explained(self._path), transaction(self._maintainer):
            last, gone = self._maintainer.execute(
                "SELECT max(last_us), ifnull(sum(events), 0) FROM tail WHERE last_us < ?", (before_us,)
            ).fetchone()
            if last is None:
                return 0, self._floor
            floor = last + 1
            self._maintainer.execute("DELETE FROM tail WHERE last_us < ?", (floor,))
            self._maintainer.execute("UPDATE state SET floor_us = ?, events = events - ?", (floor, gone))
        return gone, floor

    async def _maintain(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._maintenance, work)

    def statistics(self) -> LogStatistics:
        """Say what the log holds."""
        newest = None if self._oldest is None else self._tip
        return LogStatistics(self._events, bytes_on_disk(self._path), self._oldest, newest, self._writable)

    async def close(self) -> None:
        """Write what is pending and give the files back."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._readers.shutdown()
        self._maintenance.shutdown()
        while not self._idle.empty():
            self._idle.get_nowait().close()
        self._maintainer.close()
        self._writer.close()
        os.close(self._lock)


def _oldest(connection: sqlite3.Connection) -> int | None:
    row = connection.execute("SELECT first_us FROM tail ORDER BY last_us LIMIT 1").fetchone()
    return None if row is None else row[0]
