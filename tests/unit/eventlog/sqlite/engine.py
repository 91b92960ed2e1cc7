"""The SQLite log, as the suite of all engines uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.logs.copying import copied
from tests.unit.eventlog.trimming import trim

from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.store import SqliteLog


class SqliteEngine:
    """A log in a directory. What a killed process leaves is a copy of its files, in another directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._generation = 0

    @property
    def files(self) -> Path:
        return self._directory / str(self._generation)

    async def open(self, **options: Any) -> SqliteLog:
        return await SqliteLog.open(self.files, **options)

    async def abandon(self, log: SqliteLog) -> None:
        old = self.files
        self._generation += 1
        # While no checkpoint is under way: what it has copied is on the disk, and cannot be cut off.
        async with log._upkeep._running, log._state.writing:
            copied(old, self.files)
        await log.close()

    async def settle(self, log: SqliteLog) -> None:
        await log.maintain()
        while read_tombstones(log._state.writer):
            await log.maintain()

    async def trim(self, log: SqliteLog, before_us: int) -> int:
        return await trim(log, before_us)

    def forget(self, log: SqliteLog) -> None:
        log._state.hot_tail.drop_before(log.tip + 1)
