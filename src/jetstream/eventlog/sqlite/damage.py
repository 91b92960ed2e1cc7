"""Damaged parts of the file: recognising them, and finding what is readable behind them.

There are two kinds:

    a value   does not match its checksum: its row is lost, and the next row is read as usual
    a page    of SQLite's tree is unreadable: all keys on it are lost, and `next_readable` searches for the
              first position behind them

A `FileReader` collects what is damaged and skips it, unless it is strict. Then it raises.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.reader import POSITION_MAX
from jetstream.eventlog.sqlite.schema import for_each_table

# Behind a damaged page, keys are searched for in steps of a second, which has few segments.
GRAIN_US: Final = 1_000_000

# The file was changed, or the disk no longer returns it. Other errors, such as a lack of memory, are passing.
_UNREADABLE: Final = {
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
}
# The first row of a table that ends at or after a position.
_NEXT_KEY: Final = for_each_table("SELECT last_us FROM %s WHERE last_us >= ? ORDER BY last_us LIMIT 1")


def is_damage(error: Exception) -> bool:
    """Tell whether an error means that something is damaged."""
    code = getattr(error, "sqlite_errorcode", 0)
    return isinstance(error, Damaged) or code & 0xFF == sqlite3.SQLITE_CORRUPT or code in _UNREADABLE


def next_key(connection: sqlite3.Connection, position: int, table: str = "segment") -> int | None:
    """Return the key of the first row of a table that ends at or after `position`, None if there is none.

    Raises sqlite3.DatabaseError where the keys themselves are damaged.
    """
    row = connection.execute(_NEXT_KEY[table], (position,)).fetchone()
    return None if row is None else int(row[0])


def next_readable(connection: sqlite3.Connection, position: int, table: str = "segment") -> int:
    """Return a position behind damaged keys from which keys can be read, exact to `GRAIN_US`.

    A galloping search, in steps that double, then a binary one. Returns POSITION_MAX if no later key can be
    read.
    """
    step = GRAIN_US
    while position + step < POSITION_MAX and not _is_readable(connection, position + step, table):
        step *= 2
    low, high = position, min(position + step, POSITION_MAX)
    while high - low > GRAIN_US:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_readable(connection, middle, table) else (middle, high)
    return high


def _is_readable(connection: sqlite3.Connection, position: int, table: str) -> bool:
    """Tell whether the first key at or after a position can be read, or that there is none."""
    try:
        next_key(connection, position, table)
    except sqlite3.DatabaseError:
        return False
    return True
