"""Which log a server has, by its settings: the one that it writes, or one that another process writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jetstream.conditions import Conditions
from jetstream.errors import SettingError
from jetstream.eventlog.sqlite.edge import EdgeLog
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.settings import Settings

if TYPE_CHECKING:
    from jetstream.eventlog.postgresql.store import PostgresLog


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
        erase=erased_statuses(settings),
        mirrors=settings.mirrored is not None,
        clock=clock,
        conditions=conditions,
        limits=limits,
    )


async def open_edge_log(
    settings: Settings, conditions: Conditions, limits: LogLimits, on_read: Callable[[Batch], None]
) -> EdgeLog:
    """Open the log for an edge, and wait for it if there is none yet. See `EdgeLog.open`."""
    return await EdgeLog.open(settings.log_dir, conditions=conditions, limits=limits, on_read=on_read)


async def open_database(
    address: str,
    conditions: Conditions,
    limits: LogLimits,
    on_read: Callable[[Batch], None],
    *,
    writes: bool,
) -> PostgresLog:
    """Open a log in PostgreSQL, to read it. Waits for the database, and without `writes` for its tables.

    Raises SettingError without the driver, LogFormat for tables of another version.
    """
    require_driver()
    # asyncpg takes memory and time: only servers that use it load it.
    from jetstream.eventlog.postgresql.leading import await_tables  # noqa: PLC0415
    from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions  # noqa: PLC0415

    if writes:
        await await_tables(address)
    options = PostgresOptions(
        limits=limits,
        poll_s=limits.poll_s,
        fresh_s=limits.fresh_s,
        primary=writes,
        conditions=conditions,
        on_read=on_read,
    )
    return await PostgresLog.open(address, options, wait=True)


def require_driver() -> None:
    """Raise SettingError if asyncpg is not installed."""
    try:
        import asyncpg  # noqa: F401, PLC0415
    except ImportError as error:
        problem = "needs the driver asyncpg: pip install 'jetstream-server[postgresql]'"
        raise SettingError("--log", "postgresql://", problem) from error


def erased_statuses(settings: Settings) -> frozenset[str]:
    """Return the statuses of account events that erase the account's records."""
    return frozenset(settings.forget.split(",")) - {"none"}
