"""Damaged parts of the file: recognising them, remembering them, and finding what is readable behind them.

Every segment and every row of the tail has checksums, so damage is found when it is read, and never reaches a
reader. It costs only the range of positions that it affects: readers skip that range, and everything else is
served. There are two kinds:

    a value   does not match its checksum: its row is lost, and the next row is read as usual
    a page    of SQLite's tree is unreadable: all keys on it are lost, and `next_readable` searches for the
              first position behind them

A `FileReader` collects what is damaged and skips it, unless it is strict. Then it raises.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from jetstream.clock import iso
from jetstream.conditions import Conditions
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.reader import POSITION_MAX
from jetstream.eventlog.sqlite.schema import for_each_table
from jetstream.logging_setup import Throttled

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


class Damage(NamedTuple):
    """A range of positions, both ends included, of which nothing can be read, and the reason."""

    first_us: int
    last_us: int
    problem: str


class DamageRecord:
    """The damage that was found since the log was opened.

    While it is not empty, the condition `damage` holds. Used by the event loop's thread only.
    """

    def __init__(self, path: Path, conditions: Conditions, ranges_max: int) -> None:
        # Where to report: the database, for messages; the conditions; the log lines, throttled because a bad
        # disk may damage many ranges.
        self._path = path
        self._conditions = conditions
        self._logger = Throttled(structlog.get_logger(__name__))
        # Ranges that are remembered at most; a forgotten one is found again by the next reader.
        self._ranges_max = ranges_max
        # Each range by its `last_us`, oldest finding first. A range is dropped when the floor has passed it.
        self.by_end: dict[int, Damage] = {}
        # Different ranges found so far; never falls.
        self.count = 0

    def add(self, found: list[Damage]) -> None:
        """Remember ranges that cannot be read, and log those that are new."""
        for damage in found:
            if damage.last_us in self.by_end:
                continue
            self.count += 1
            if len(self.by_end) >= self._ranges_max:
                del self.by_end[next(iter(self.by_end))]
            self.by_end[damage.last_us] = damage
            self._logger.warning("log: skipped a damaged part", **damage._asdict())
            self._update_condition()

    def skip(self, position: int) -> int:
        """Return `position`, or the first one behind the damaged range that it is in."""
        for damage in self.by_end.values():
            if damage.first_us <= position <= damage.last_us:
                return damage.last_us + 1
        return position

    def drop_before(self, floor: int) -> None:
        """Drop the ranges that were trimmed."""
        self.by_end = {end: damage for end, damage in self.by_end.items() if end >= floor}
        self._update_condition()

    def _update_condition(self) -> None:
        """Begin, renew or end the condition `damage`."""
        if not self.by_end:
            self._conditions.end("damage")
            return
        first = min(self.by_end.values())
        self._conditions.begin(
            "damage",
            f"{self._path} has {len(self.by_end)} damaged part(s), the first from position {first.first_us}"
            f" to {first.last_us} ({iso(first.first_us)}): {first.problem}; readers skip them;"
            f" stop the server and run `jetstream log repair`, or wait until retention has trimmed them",
        )


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
    try:
        next_key(connection, position, table)
    except sqlite3.DatabaseError:
        return False
    return True
