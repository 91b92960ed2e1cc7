"""The threads that read the file, each with a connection of its own.

Reading waits for the disk and for zstd, so it does not run on the event loop. In WAL mode, readers see the
last commit and block nobody. A connection is used by one thread at a time, for one short piece of work.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, LifoQueue
from typing import TypeVar

from jetstream.errors import LogError
from jetstream.eventlog.sqlite.connection import TranslatedErrors, open_reader
from jetstream.eventlog.sqlite.damage import Damage, DamageRecord
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.limits import LogLimits

Result = TypeVar("Result")


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
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()

    async def run(self, work: Callable[[FileReader], Result]) -> Result:
        """Call `work` in a thread, with a reader of the file. Raises LogError."""
        found: list[Damage] = []
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._threads, self._work, work, found)
        self._damages.add(found)
        return result

    def _work(self, work: Callable[[FileReader], Result], found: list[Damage]) -> Result:
        """Do the work, in a thread."""
        with TranslatedErrors(self._path, LogError):
            try:
                connection = self._idle.get_nowait()
            except Empty:
                connection = open_reader(self._path)
            try:
                return work(FileReader(connection, self._limits, found))
            finally:
                self._idle.put(connection)

    def close(self) -> None:
        """Wait for the threads, and close their connections."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get_nowait().close()
