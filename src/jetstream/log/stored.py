"""Reading what is in the file: pure SQL, in whatever thread has a connection."""

from __future__ import annotations

import sqlite3
from typing import Final

from jetstream.events import Batch
from jetstream.filters import Filter
from jetstream.log.columns import Columns, Damaged

# As many as a batch in memory has.
TAIL_READ_EVENTS: Final = 1_000

_TAIL: Final = (
    "SELECT last_us, events, crc, times, kinds, dids, collections, rkeys, revs, cids, bodies"
    " FROM tail WHERE last_us >= ? AND first_us < ? ORDER BY last_us"
)


def find(connection: sqlite3.Connection, position: int, stop: int, wanted: Filter) -> Batch | None:
    """Return the stored batch with the first wanted event in `[position, stop)`, or None."""
    while position < stop:
        batch = read_tail(connection, position, stop)
        if batch is None:
            return None
        if wanted.select(batch, batch.index(position), batch.index(stop)):
            return batch
        position = batch.last + 1
    return None


def read_tail(connection: sqlite3.Connection, position: int, stop: int) -> Batch | None:
    """Return some of the unsealed events in `[position, stop)`, from the first on; None if there are none."""
    runs: list[Columns] = []
    count = 0
    for last_us, events, crc, *row in connection.execute(_TAIL, (position, stop)):
        columns = Columns(*row)
        if columns.checksum() != crc:
            raise Damaged(f"the checksum of the row at {last_us} does not agree")
        runs.append(columns)
        count += events
        if count >= TAIL_READ_EVENTS:
            break
    return Columns.joined(runs).batch() if runs else None
