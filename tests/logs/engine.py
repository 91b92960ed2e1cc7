"""What the tests of the log need of an engine, so that one suite runs against SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any, Protocol

from jetstream.eventlog import ReadWriteLog


class AnyLog(ReadWriteLog, Protocol):
    """A log that this process reads and writes."""

    async def maintain(self) -> None:
        """Do all upkeep that is due now."""

    async def close(self) -> None:
        """Close it in good order."""


class Engine(Protocol):
    """One log, which is opened again and again."""

    async def open(self, **options: Any) -> Any:
        """Open the log, or create it: an `AnyLog`. Options are those of `SqliteLog.open`."""

    async def abandon(self, log: Any) -> None:
        """Leave the log as a process does that is killed."""

    async def settle(self, log: Any) -> None:
        """Let upkeep erase all that is to be erased."""

    async def trim(self, log: Any, before_us: int) -> int:
        """Delete events older than a position, in whole segments; return how many were deleted."""

    def forget(self, log: Any) -> None:
        """Drop the newest events from memory, as if many more had come."""
