"""The PostgreSQL log, as the suite of all engines uses it."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from jetstream.clock import unix_us
from jetstream.eventlog.postgresql.leading import Candidate, create_tables, lead
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.trimming import Retention
from jetstream.eventlog.postgresql.upkeep import Upkeep
from jetstream.limits import LogLimits


class Leading:
    """A log that this process leads, with its upkeep."""

    def __init__(self, term: Term, upkeep: Upkeep) -> None:
        self.term = term
        self.upkeep = upkeep

    def __getattr__(self, name: str) -> Any:
        return getattr(self.term, name)

    async def maintain(self) -> None:
        await self.upkeep.run()

    async def abandon(self) -> None:
        """Leave everything as a process does that is killed."""
        for task in self.upkeep._tasks:
            task.cancel()
        await asyncio.gather(*self.upkeep._tasks, return_exceptions=True)
        await self.upkeep._transactions.cut()
        await self.term._appender.disconnect()
        await self.term.log.close()


class PostgresEngine:
    """A log in a schema of its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def open(
        self,
        *,
        limits: LogLimits = LogLimits(),
        erase: frozenset[str] = frozenset({"deleted"}),
        retention_s: float | None = None,
        retention_bytes: int | None = None,
        clock: Any = unix_us,
        **candidate: Any,
    ) -> Leading:
        candidate = {"takeover_s": 0.0, "erase": erase, **candidate}
        options = PostgresOptions(limits=limits, primary=True)
        await create_tables(self.address)
        log = await PostgresLog.open(self.address, options)
        try:
            term = await lead(log, Candidate(**candidate))
        except BaseException:
            await log.close()
            raise
        return Leading(term, Upkeep(term, Retention(retention_s, retention_bytes, clock)))

    async def abandon(self, log: Leading) -> None:
        await log.abandon()

    async def settle(self, log: Leading) -> None:
        await log.maintain()
        while await log.log.fetch("SELECT 1 FROM tombstone"):
            await log.maintain()

    async def trim(self, log: Leading, before_us: int) -> int:
        events: int = log.statistics().events
        await log.upkeep.trim(before_us)
        return events - int(log.statistics().events)

    def forget(self, log: Leading) -> None:
        log.log.hot_tail.drop_before(log.log.tip + 1)

    async def execute(self, statement: str, *values: object) -> list[Any]:
        """Run a statement as somebody else."""
        connection = await asyncpg.connect(self.address)
        try:
            rows: list[Any] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()


async def new_engine(address: str, name: str) -> PostgresEngine:
    """Return a log in a new schema of a database."""
    connection = await asyncpg.connect(address)
    try:
        await connection.execute(f"CREATE SCHEMA {name}")
    finally:
        await connection.close()
    return PostgresEngine(f"{address}?search_path={name}")
