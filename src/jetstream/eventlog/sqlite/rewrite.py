"""Putting what was rewritten in the place of the old, in short transactions, for which appends wait.

`eventlog.rewrite` seals and erases in memory. What is erased is overwritten with zeros.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from jetstream.eventlog.erase import Tombstones
from jetstream.eventlog.rewrite import Rewritten
from jetstream.eventlog.segment import Segment
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.schema import DELETE_ROW, count_erasure, count_removed, insert


def store_segment(connection: sqlite3.Connection, segment: Segment) -> int:
    """Put a segment in the place of its rows of the tail; return how many events of damaged rows are lost.

    An exclusive step. Rows that were damaged when the segment was compressed are not in it, and are
    deleted with the others: only here is it known how many events they had.
    """
    with Transaction(connection):
        insert(connection, segment)
        rows = connection.execute("DELETE FROM tail WHERE last_us <= ? RETURNING events", (segment.last_us,))
        lost: int = sum(events for (events,) in rows) - segment.events
        if lost:
            count_removed(connection, lost)
    return lost


def read_tombstones(connection: sqlite3.Connection) -> dict[bytes, int]:
    """Return the tombstones whose records are not all erased yet.

    By DID: the position below which its records go. A pass that ends deletes those that it began with.
    """
    return dict(connection.execute("SELECT did, before_us FROM tombstone"))


def replace(connection: sqlite3.Connection, rewritten: Iterable[Rewritten], done: Tombstones) -> None:
    """Put what was rewritten in the place of the old, and delete the tombstones of which all is erased.

    An exclusive step; `done` has the tombstones of a pass that ends. A row of which nothing is left is
    deleted. PRAGMA secure_delete makes SQLite write zeros over what is deleted, which takes room in the
    write-ahead log as well. So it is on only here.
    """
    connection.execute("PRAGMA secure_delete = ON")  # overwrites with zeros
    try:
        with Transaction(connection):
            for table, last_us, erased, left in rewritten:
                connection.execute(DELETE_ROW[table], (last_us,))
                if left is not None:
                    insert(connection, left)
                count_removed(connection, erased)
            count_erasure(connection)
            # A later account event may have moved a tombstone meanwhile: that one stays.
            connection.executemany("DELETE FROM tombstone WHERE did = ? AND before_us = ?", done.items())
    finally:
        connection.execute("PRAGMA secure_delete = OFF")
