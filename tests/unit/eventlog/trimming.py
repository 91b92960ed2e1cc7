"""Trimming a log to a position that a test names, which in a server only retention does."""

from __future__ import annotations

from jetstream.eventlog.sqlite.store import SqliteLog


async def trim(log: SqliteLog, before_us: int) -> int:
    """Delete events older than `before_us`, in whole segments; return how many were deleted."""
    events = log.statistics().events
    async with log._upkeep._running:
        await log._upkeep._trim(before_us)
    return events - log.statistics().events
