"""Trimming: deleting the oldest events, and giving free pages back to the file system.

Whole segments are deleted, in transactions that are short enough for an append to wait for. When all segments
that end before a position are deleted, rows of the tail that do are next. The floor moves in the same
transaction, so a reader that the floor admits never misses an event.

A deleted page joins SQLite's list of free pages, and is used again. The file becomes smaller only when pages
at its end are freed (PRAGMA incremental_vacuum), a MiB at a time.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from jetstream.eventlog.sqlite import ages
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.damage import Damage, damage_problem, next_key, next_readable
from jetstream.limits import LogLimits

# The compressed size of each segment, without reading it: SQLite knows the length of a value from its header.
_SIZES: Final = (
    "SELECT last_us, length(did_bits) + length(accounts) + length(times) + length(kinds)"
    " + length(dids) + length(collections) + length(rkeys) + length(revs) + length(cids) + length(bodies)"
    " FROM segment WHERE last_us >= ? ORDER BY last_us"
)


class Trimmed(NamedTuple):
    """The result of one step."""

    events: int  # that were deleted
    floor: int  # the new one


class Trimmer:
    """Trims and shrinks the file through the upkeep connection, in short steps.

    Each step returns before an append has waited for long; the caller repeats it while there is more to do.
    """

    def __init__(
        self, connection: sqlite3.Connection, floor: int, limits: LogLimits, damage: list[Damage]
    ) -> None:
        # Upkeep's connection, used by its thread.
        self._connection = connection
        self._limits = limits
        # Damage that is found is added; the owner of the list takes it from there.
        self._damage = damage
        # Segments below this position were deleted, or cannot be. Only rises.
        self.trimmed_to = floor

    def trim(self, before_us: int) -> Trimmed | None:
        """Delete some segments, or rows of the tail, that end before a position; None if there are none.

        A segment that cannot be deleted, because its pages are damaged, stays, and the floor moves over it.
        """
        for segments in (self._limits.trim_segments, 1):
            try:
                return self._trim(before_us, segments)
            except sqlite3.DatabaseError as error:
                if damage_problem(error) is None:
                    raise
                problem = str(error)
        return self._skip(before_us, problem)

    def _trim(self, before_us: int, segments_max: int) -> Trimmed | None:
        """Delete up to so many segments, or all rows of the tail that are old enough, and move the floor."""
        low = self.trimmed_to
        with Transaction(self._connection):
            rows = (
                self._connection.execute(
                    "SELECT last_us, events FROM segment WHERE last_us >= ? AND last_us < ?"
                    " ORDER BY last_us LIMIT ?",
                    (low, before_us, segments_max),
                ).fetchall()
                or self._connection.execute(
                    "SELECT last_us, events FROM tail WHERE last_us < ? ORDER BY last_us", (before_us,)
                ).fetchall()
            )
            if not rows:
                return None
            removed, floor = sum(events for _, events in rows), rows[-1][0] + 1
            self._connection.execute("DELETE FROM segment WHERE last_us >= ? AND last_us < ?", (low, floor))
            self._connection.execute("DELETE FROM tail WHERE last_us < ?", (floor,))
            self._move_floor(floor, removed)
        self.trimmed_to = floor
        return Trimmed(removed, floor)

    def _skip(self, before_us: int, problem: str) -> Trimmed:
        """Move the floor over the next segment, or over keys that are lost, without deleting anything."""
        low, removed = self.trimmed_to, 0
        try:
            key = next_key(self._connection, low)
            floor = before_us if key is None else key + 1
            (removed,) = self._connection.execute(
                "SELECT events FROM segment WHERE last_us = ?", (key,)
            ).fetchone() or (0,)
        except sqlite3.DatabaseError:
            floor = min(next_readable(self._connection, low), before_us)
        self._damage.append(Damage(low, floor - 1, problem))
        with Transaction(self._connection):
            self._move_floor(floor, removed)
        self.trimmed_to = floor
        return Trimmed(removed, floor)

    def _move_floor(self, floor: int, removed: int) -> None:
        """Raise the floor, inside a transaction, and delete what only concerns events below it."""
        self._connection.execute(
            "UPDATE state SET floor_us = max(floor_us, ?), removed = removed + ?", (floor, removed)
        )
        ages.drop_before(self._connection, floor)

    def position_within(self, bytes_max: int) -> int:
        """Return the position below which segments must go for the files to take `bytes_max`; 0 for none.

        Room for two write-ahead logs is left: for the write-ahead log, and for the tail.
        """
        excess = self._used_bytes() + 2 * self._limits.wal_bytes - bytes_max
        position = 0
        try:
            for last_us, size in self._connection.execute(_SIZES, (self.trimmed_to,)):
                if excess <= 0:
                    break
                excess -= size
                position = last_us + 1
        except sqlite3.DatabaseError as error:
            if damage_problem(error) is None:
                raise
            # What cannot be measured goes too.
            position = next_readable(self._connection, max(position, self.trimmed_to))
        return position

    def should_shrink(self, bytes_max: int | None, low_on_space: bool) -> bool:
        """Tell whether free pages should go: too many, a file that is too large, or a disk that is low."""
        free, pages = self._pragma("freelist_count"), self._pragma("page_count")
        if free and low_on_space:
            return True
        size = pages * self._pragma("page_size") + 2 * self._limits.wal_bytes
        if bytes_max is not None and free and size > bytes_max:
            return True
        return free > max(self._limits.free_pages, self._limits.free_share * pages)

    def shrink(self) -> None:
        """Give `shrink_pages` free pages back to the file system."""
        self._connection.execute(f"PRAGMA incremental_vacuum({self._limits.shrink_pages})").fetchall()

    def _used_bytes(self) -> int:
        """Return the size of the database without its free pages."""
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        """Read one of SQLite's settings or counters that is a number."""
        value: int = self._connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value
