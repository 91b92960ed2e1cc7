"""Erasing the records of deleted accounts from the file, by rewriting what holds some.

1. A tombstone is committed with the account event that causes it. The hot tail is cleaned at once.
2. Upkeep passes over the segments, with the tombstones that exist at the start. The Bloom filter of each
   segment tells which ones to load; those that have erased records are rewritten.
3. At the end of the segments, rows of the tail are rewritten, and the tombstones of this pass are deleted in
   the same transaction. So an interrupted pass is repeated after a restart.

Each is read and compressed beside appends, and then replaced in one short transaction. The old data is
overwritten with zeros.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from jetstream.eventlog.columns import Columns
from jetstream.eventlog.erase import Tombstones, without_erased
from jetstream.eventlog.segment import Segment, seal
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.schema import DELETE_ROW, count_removed, insert_row, insert_segment
from jetstream.model.filter import Filter


class Rewritten(NamedTuple):
    """A segment or a row of the tail without the erased records; `left` is None if no event is left."""

    last_us: int
    erased: int  # events
    left: Segment | Columns | None


def read_tombstones(connection: sqlite3.Connection) -> dict[bytes, int]:
    """Return the tombstones whose records are not all erased yet."""
    return dict(connection.execute("SELECT did, before_us FROM tombstone"))


def next_rewritten(reader: FileReader, tombstones: Tombstones, position: int) -> Rewritten | int | None:
    """Rewrite, in memory, the next segment from `position` on that has erased records.

    Returns the position at which to continue if one scan finds none, and None at the end of the segments.
    """
    stop = max(tombstones.values())
    after, key = reader.scan(position, stop, Filter(dids=frozenset(tombstones)))
    if not isinstance(key, int):
        return None if after >= stop else after
    batch = reader.load(key)
    kept = None if batch is None else without_erased(batch, tombstones)
    if batch is None or kept is None:
        return after
    return Rewritten(key, len(batch) - len(kept), seal(Columns.of(kept), key) if len(kept) else None)


def replace_segment(connection: sqlite3.Connection, rewritten: Rewritten) -> None:
    """Put a rewritten segment in the place of the old one."""
    with _overwriting(connection), Transaction(connection):
        connection.execute(DELETE_ROW["segment"], (rewritten.last_us,))
        if isinstance(rewritten.left, Segment):
            insert_segment(connection, rewritten.left)
        count_removed(connection, rewritten.erased)


def rewritten_rows(reader: FileReader, tombstones: Tombstones) -> list[Rewritten]:
    """Rewrite, in memory, the rows of the tail that have erased records."""
    rows = []
    for row in reader.tail_rows(0, max(tombstones.values())):
        batch = row.columns.batch()
        kept = without_erased(batch, tombstones)
        if kept is not None:
            left = Columns.of(kept) if len(kept) else None
            rows.append(Rewritten(row.last_us, len(batch) - len(kept), left))
    return rows


def replace_rows(connection: sqlite3.Connection, rows: Iterable[Rewritten], tombstones: Tombstones) -> None:
    """Put rewritten rows in the place of the old ones, and delete the tombstones: all is erased."""
    with _overwriting(connection), Transaction(connection):
        for last_us, erased, left in rows:
            first_us = connection.execute(
                "DELETE FROM tail WHERE last_us = ? RETURNING first_us", (last_us,)
            ).fetchone()[0]
            if isinstance(left, Columns):
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
