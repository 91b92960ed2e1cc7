"""Sealing: compressing the oldest rows of the tail into a segment.

It takes two steps. `next_segment` reads and compresses, beside appends; that takes about 20 ms. Then
`replace_rows` writes the segment and deletes its rows in one transaction, for which appends wait. Only upkeep
deletes rows of the tail, so the rows are the same in both steps.
"""

from __future__ import annotations

import sqlite3

from jetstream.eventlog.columns import Columns
from jetstream.eventlog.segment import Segment, seal
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.reader import FileReader
from jetstream.eventlog.sqlite.schema import POSITION_MAX, count_removed, insert_segment


def next_segment(reader: FileReader) -> Segment | None:
    """Compress the oldest rows of the tail; None if they are not enough for a segment."""
    runs: list[Columns] = []
    events = size = 0
    for row in reader.tail_rows(0, POSITION_MAX):
        runs.append(row.columns)
        events += row.events
        size += len(row.columns.bodies)
        if events >= reader.limits.segment_events or size >= reader.limits.segment_bytes:
            return seal(Columns.joined(runs), row.last_us)
    return None


def replace_rows(connection: sqlite3.Connection, segment: Segment) -> int:
    """Put a segment in the place of its rows of the tail; return how many events of damaged rows are lost."""
    with Transaction(connection):
        insert_segment(connection, segment)
        rows = connection.execute(
            "DELETE FROM tail WHERE last_us <= ? RETURNING events", (segment.last_us,)
        ).fetchall()
        lost: int = sum(events for (events,) in rows) - segment.events
        if lost:
            count_removed(connection, lost)
    return lost
