"""The gaps that were found in repositories: rows of one table, by the time at which each was found.

They are trimmed with the events. Their number is bounded: when there are more, the oldest go.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from jetstream.eventlog import Gap
from jetstream.eventlog.sqlite.connection import Transaction

GAP_BYTES: Final = 200  # of an ordinary row, generously


def insert_gaps(connection: sqlite3.Connection, gaps: Sequence[Gap]) -> None:
    """Add gaps, inside a transaction. One that is there already is not added again.

    A gap that was found again with another cause replaces the one with the same time, DID and rev.
    """
    connection.executemany("INSERT OR REPLACE INTO gap VALUES (?, ?, ?, ?, ?)", gaps)


def read_gaps(connection: sqlite3.Connection, since_us: int, count_max: int) -> list[Gap]:
    """Return the oldest gaps since a time, rising: up to a number, and those of the same time as the last.

    `since_us` is a time in unix microseconds, and `count_max` at least 1.
    """
    rows = connection.execute(
        "SELECT time_us, did, after_rev, rev, cause FROM gap WHERE time_us >= ?1 AND time_us <="
        " ifnull((SELECT time_us FROM gap WHERE time_us >= ?1 ORDER BY time_us LIMIT 1 OFFSET ?2), time_us)"
        " ORDER BY time_us",
        (since_us, count_max - 1),
    )
    return [Gap(*row) for row in rows]


def count_gaps(connection: sqlite3.Connection) -> int:
    """Return the number of gaps that are kept."""
    return int(connection.execute("SELECT count(*) FROM gap").fetchone()[0])


def drop_gaps_before(connection: sqlite3.Connection, floor: int) -> None:
    """Delete gaps that were found before the oldest event that is kept, inside a transaction."""
    connection.execute("DELETE FROM gap WHERE time_us < ?", (floor,))


def drop_oldest_gaps(connection: sqlite3.Connection, rows_max: int) -> int:
    """Delete the oldest gaps above a number of rows; return how many there are now.

    An exclusive step of upkeep. All gaps of one time go together, so there may be fewer than `rows_max`
    left.
    """
    with Transaction(connection):
        connection.execute(
            "DELETE FROM gap WHERE time_us <="
            " (SELECT time_us FROM gap ORDER BY time_us DESC LIMIT 1 OFFSET ?)",
            (rows_max,),
        )
    return count_gaps(connection)
