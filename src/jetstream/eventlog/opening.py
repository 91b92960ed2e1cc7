"""Which log a server has, by its settings: the one that it writes, or one that another process writes.

    a directory   writes it         open_log         SqliteLog
    a directory   an edge           open_edge_log    EdgeLog
    a database    reads or leads    open_database    PostgresLog; `terms` leads it

`app` calls one of the three. The commands of `jetstream log` use the modules of the engines themselves.
"""

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

    `conditions` is told of `damage`, `wal` and `disk_low`.
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
    """Open the log for an edge, and wait for it if there is none yet. See `EdgeLog.open`.

    `on_read` is called with events of the other process as the edge reads them. Raises LogCorrupt.
    """
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

    With `writes`, the tables are created if there are none, and the primary is read, as what may lead
    needs it. `address` has the password; it is not logged. `on_read` is called with events that another
    process has stored.
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
    """Return the statuses of account events that erase the account's records.

    They are those of `--forget`, a list with commas. `none` is a setting without any: the result is empty
    then, and nothing is erased.
    """
    return frozenset(settings.forget.split(",")) - {"none"}
