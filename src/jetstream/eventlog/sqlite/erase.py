"""Erasing the records of deleted accounts from the file, by rewriting what holds some.

A tombstone is committed with the account event that causes it. It stays until all segments and the tail were
rewritten, so an interrupted pass is repeated after a restart. Rewritten data is overwritten with zeros.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jetstream.eventlog.columns import Columns
from jetstream.eventlog.erase import Tombstones, without_erased
from jetstream.eventlog.segment import Segment, seal
from jetstream.eventlog.sqlite.connection import transaction
from jetstream.eventlog.sqlite.damage import Damage
from jetstream.eventlog.sqlite.reader import load, scan, tail_rows
from jetstream.eventlog.sqlite.schema import count_removed, insert_row, insert_segment
from jetstream.limits import LogLimits
from jetstream.model.filter import Filter


class RewrittenSegment(NamedTuple):
    """A segment without the erased records; `segment` is None if no event is left."""

    last_us: int
    erased: int  # events
    segment: Segment | None


class RewrittenRow(NamedTuple):
    """A row of the tail without the erased records; `columns` is None if no event is left."""

    last_us: int
    erased: int  # events
    columns: Columns | None


def read_tombstones(connection: sqlite3.Connection) -> dict[bytes, int]:
    """Return the tombstones whose records are not all erased yet."""
    return dict(connection.execute("SELECT did, before_us FROM tombstone"))


def next_rewritten(
    connection: sqlite3.Connection,
    tombstones: Tombstones,
    position: int,
    limits: LogLimits,
    damage: list[Damage],
) -> RewrittenSegment | int | None:
    """Rewrite, in memory, the next segment from `position` on that has erased records.

    Returns the position at which to continue if one scan finds none, and None at the end of the segments.
    """
    stop = max(tombstones.values())
    found = scan(connection, position, stop, Filter(dids=frozenset(tombstones)), limits, damage)
    if not isinstance(found.found, int):
        return None if found.position >= stop else found.position
    batch = load(connection, found.found, damage)
    kept = None if batch is None else without_erased(batch, tombstones)
    if batch is None or kept is None:
        return found.position
    last_us = found.found
    segment = seal(Columns.of(kept), last_us) if len(kept) else None
    return RewrittenSegment(last_us, len(batch) - len(kept), segment)


def replace_segment(connection: sqlite3.Connection, rewritten: RewrittenSegment) -> None:
    """Put a rewritten segment in the place of the old one."""
    with _overwriting(connection), transaction(connection):
        connection.execute("DELETE FROM segment WHERE last_us = ?", (rewritten.last_us,))
        if rewritten.segment is not None:
            insert_segment(connection, rewritten.segment)
        count_removed(connection, rewritten.erased)


def rewritten_rows(
    connection: sqlite3.Connection, tombstones: Tombstones, damage: list[Damage]
) -> list[RewrittenRow]:
    """Rewrite, in memory, the rows of the tail that have erased records."""
    rows = []
    for row in tail_rows(connection, 0, max(tombstones.values()), damage):
        batch = row.columns.batch()
        kept = without_erased(batch, tombstones)
        if kept is not None:
            left = Columns.of(kept) if len(kept) else None
            rows.append(RewrittenRow(row.last_us, len(batch) - len(kept), left))
    return rows


def replace_rows(
    connection: sqlite3.Connection, rows: Iterable[RewrittenRow], tombstones: Tombstones
) -> None:
    """Put rewritten rows in the place of the old ones, and delete the tombstones: all is erased."""
    with _overwriting(connection), transaction(connection):
        for last_us, erased, left in rows:
            first_us = connection.execute(
                "DELETE FROM tail WHERE last_us = ? RETURNING first_us", (last_us,)
            ).fetchone()[0]
            if left is not None:
                insert_row(connection, first_us, last_us, left)
            count_removed(connection, erased)
        # A later account event may have moved a tombstone meanwhile: that one stays.
        connection.executemany("DELETE FROM tombstone WHERE did = ? AND before_us = ?", tombstones.items())


@contextmanager
def _overwriting(connection: sqlite3.Connection) -> Iterator[None]:
    """Overwrite what is deleted inside with zeros."""
    connection.execute("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA secure_delete = OFF")
