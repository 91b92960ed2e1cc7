"""Which log a server has, by its settings: the one that it writes, or one that another process writes."""

from __future__ import annotations

from collections.abc import Callable

from jetstream.conditions import Conditions
from jetstream.eventlog.sqlite.edge import EdgeLog
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.settings import Settings


async def open_log(
    settings: Settings, clock: Callable[[], int], conditions: Conditions, limits: LogLimits
) -> SqliteLog:
    """Open the log for the roles that write it, or create one. `clock` gives unix microseconds.

    Raises LogLocked, LogCorrupt, LogUnwritable or SettingError: see `SqliteLog.open`.
    """
    return await SqliteLog.open(
        settings.log_dir,
        retention_s=settings.retention,
        retention_bytes=settings.retention_bytes,
        erase=frozenset(settings.forget.split(",")) - {"none"},
        clock=clock,
        conditions=conditions,
        limits=limits,
    )


async def open_edge_log(
    settings: Settings, conditions: Conditions, limits: LogLimits, on_read: Callable[[Batch], None]
) -> EdgeLog:
    """Open the log for an edge, and wait for it if there is none yet. See `EdgeLog.open`."""
    return await EdgeLog.open(settings.log_dir, conditions=conditions, limits=limits, on_read=on_read)
