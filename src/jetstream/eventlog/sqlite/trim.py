"""Trimming: deleting the oldest events, and giving free pages back to the file system.

Whole segments are deleted, in transactions that are short enough for an append to wait for. When all segments
that end before a position are deleted, rows of the tail that do are next. The floor moves in the same
transaction, so a reader that the floor admits never misses an event.

Each step returns before an append has waited for long; upkeep repeats it while there is more to do.

A deleted page joins SQLite's list of free pages, and is used again. The file becomes smaller only when pages
at its end are freed (PRAGMA incremental_vacuum), a MiB at a time.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from jetstream.eventlog.sqlite import ages
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.damage import is_damage, next_key, next_readable
from jetstream.eventlog.sqlite.gaps import drop_gaps_before
from jetstream.eventlog.sqlite.reader import FileReader

_PAGES: Final = "SELECT * FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
# The compressed size of each segment, without reading it: SQLite knows the length of a value from its header.
_SIZES: Final = (
    "SELECT last_us, length(did_bits) + length(accounts) + length(times) + length(kinds)"
    " + length(dids) + length(collections) + length(rkeys) + length(revs) + length(cids) + length(bodies)"
    " FROM segment WHERE last_us >= ? ORDER BY last_us"
)


def trim(reader: FileReader, floor: int, before_us: int) -> tuple[int, int] | None:
    """Delete some segments, or rows of the tail, that end before a position; None if there are none.

    Returns how many events were deleted, and the new floor. A segment that cannot be deleted, because its
    pages are damaged, stays, and the floor moves over it.

    An exclusive step. `before_us` is a position: what ends below it may go. If a transaction meets
    damage, it is tried with one segment, and then nothing is deleted and the floor moves over that one.
    """
    for segments in (reader.limits.trim_segments, 1):
        try:
            return _trim(reader.connection, floor, before_us, segments)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            damage = error.with_traceback(None)  # whose frames refer to it: a cycle
    return _skip(reader, floor, before_us, damage)


def _trim(
    connection: sqlite3.Connection, low: int, before_us: int, segments_max: int
) -> tuple[int, int] | None:
    """Delete up to so many segments, or all rows of the tail that are old enough, and move the floor.

    The tail is touched only when no segment is old enough. `low` is the floor: what is below it could not
    be deleted.
    """
    with Transaction(connection):
        rows = (
            connection.execute(
                "SELECT last_us, events FROM segment WHERE last_us >= ? AND last_us < ?"
                " ORDER BY last_us LIMIT ?",
                (low, before_us, segments_max),
            ).fetchall()
            or connection.execute(
                "SELECT last_us, events FROM tail WHERE last_us < ? ORDER BY last_us", (before_us,)
            ).fetchall()
        )
        if not rows:
            return None
        removed, floor = sum(events for _, events in rows), rows[-1][0] + 1
        connection.execute("DELETE FROM segment WHERE last_us >= ? AND last_us < ?", (low, floor))
        connection.execute("DELETE FROM tail WHERE last_us < ?", (floor,))
        _move_floor(connection, floor, removed)
    return removed, floor


def _skip(reader: FileReader, low: int, before_us: int, damage: sqlite3.DatabaseError) -> tuple[int, int]:
    """Move the floor over the next segment, or over keys that are lost, without deleting anything."""
    connection, removed = reader.connection, 0
    try:
        key = next_key(connection, low)
        floor = before_us if key is None else key + 1
        rows = connection.execute("SELECT events FROM segment WHERE last_us = ?", (key,))
        removed = sum(events for (events,) in rows)
    except sqlite3.DatabaseError:
        floor = min(next_readable(connection, low), before_us)
    reader.note_damage(low, floor - 1, damage)
    with Transaction(connection):
        _move_floor(connection, floor, removed)
    return removed, floor


def _move_floor(connection: sqlite3.Connection, floor: int, removed: int) -> None:
    """Raise the floor, inside a transaction, and delete what only concerns events below it."""
    connection.execute(
        "UPDATE state SET floor_us = max(floor_us, ?), removed = removed + ?", (floor, removed)
    )
    ages.drop_before(connection, floor)
    drop_gaps_before(connection, floor)


def position_within(reader: FileReader, floor: int, bytes_max: int) -> int:
    """Return the position below which segments must go for the files to take `bytes_max`; 0 for none.

    Room for two write-ahead logs is left: for the write-ahead log, and for the tail.

    The sizes of segments are subtracted from the oldest on, until the rest fits. `floor` is where the log
    begins.
    """
    pages, free, page_bytes = reader.connection.execute(_PAGES).fetchone()
    excess = (pages - free) * page_bytes + 2 * reader.limits.wal_bytes - bytes_max
    position = 0
    try:
        for last_us, size in reader.connection.execute(_SIZES, (floor,)):
            if excess <= 0:
                break
            excess -= size
            position = last_us + 1
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        # What cannot be measured goes too.
        position = next_readable(reader.connection, max(position, floor))
    return position


def should_shrink(reader: FileReader, bytes_max: int | None, low_on_space: bool) -> bool:
    """Tell whether free pages should go: too many, a file that is too large, or a disk that is low.

    `bytes_max` is `--retention-bytes`, None without it. `free_pages` and `free_share` bound what is free
    otherwise: pages that will be used again are kept.
    """
    limits = reader.limits
    pages, free, page_bytes = reader.connection.execute(_PAGES).fetchone()
    is_large = bytes_max is not None and pages * page_bytes + 2 * limits.wal_bytes > bytes_max
    has_many = free > max(limits.free_pages, limits.free_share * pages)
    return bool(has_many or (free and (low_on_space or is_large)))


def shrink(reader: FileReader) -> None:
    """Give `shrink_pages` free pages back to the file system.

    An exclusive step, of a MiB by default. Pages at the end of the file are moved into free ones for it.
    """
    reader.connection.execute(f"PRAGMA incremental_vacuum({reader.limits.shrink_pages})").fetchall()
