"""Moving positions that are ahead of the clock back to the present, while no server runs.

The new position of an event is the time at which it was stored, as far as that is known (see `ages`), at most
now, and below the next event's. So the order stays, positions rise strictly, and events that are not ahead
keep their positions unless others need the room:

    before   ── a ── b ── c ─────────┼──────── d ── e ── f ──▶      now: ┼
    after    ── a ── b ── c ── d e f ┼
                               the highest positions that rise strictly up to now

Segments and rows of the tail are rewritten from the oldest to the newest, so that no two have the same key at
any time. The floor and the tombstones refer to events by position, and move with them. All happens in one
transaction: a process that is killed leaves the log as it was.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from jetstream.eventlog.columns import read_times, write_times
from jetstream.eventlog.segment import Segment, unpack_times, with_times
from jetstream.eventlog.sqlite.connection import Transaction, TranslatedErrors, open_writer
from jetstream.eventlog.sqlite.lock import offline
from jetstream.eventlog.sqlite.reader import Row
from jetstream.eventlog.sqlite.reservation import Reservation
from jetstream.eventlog.sqlite.schema import DELETE_ROW, ROW, insert_row, insert_segment

# The keys of a table, newest first, and the times of one row.
_KEYS: Final = {
    "segment": "SELECT last_us FROM segment ORDER BY last_us DESC",
    "tail": "SELECT last_us FROM tail ORDER BY last_us DESC",
}
_TIMES: Final = {
    "segment": "SELECT times FROM segment WHERE last_us = ?",
    "tail": "SELECT times FROM tail WHERE last_us = ?",
}


class Rebased(NamedTuple):
    """The result: how many events have new positions, and the newest position before and after."""

    events: int
    tip_before_us: int
    tip_us: int


class _Piece(NamedTuple):
    """A segment or a row of the tail, by its key. All its new positions are below `ceiling`."""

    table: str
    key: int
    ceiling: int


@dataclass
class _References:
    """Positions that refer to events: the floor and the tombstones."""

    # Old positions that are not mapped yet, rising. `map` removes them.
    pending: list[int]
    # The new position of each that is.
    found: dict[int, int] = field(default_factory=dict)

    def map(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Map the positions at or below the last of some events: each to the first event at or above it."""
        while self.pending and self.pending[0] <= old[-1]:
            position = self.pending.pop(0)
            self.found[position] = min(position, new[bisect_left(old, position)])


def rebase(directory: Path, now_us: int, reservation: Reservation | None = None) -> Rebased:
    """Move the positions that are above `now_us`; change nothing if there are none.

    Raises LogLocked while a server runs, LogCorrupt if the log is damaged, LogUnwritable.
    """
    with offline(directory) as path, TranslatedErrors(path), closing(open_writer(path)) as connection:
        return _rebase(reservation or Reservation(directory), connection, now_us)


def _rebase(reservation: Reservation, connection: sqlite3.Connection, now_us: int) -> Rebased:
    tip_us, floor_us = connection.execute("SELECT tip_us, floor_us FROM extent").fetchone()
    if tip_us <= now_us:
        return Rebased(0, tip_us, tip_us)
    tombstones = dict(connection.execute("SELECT did, before_us FROM tombstone"))
    references = _References(sorted({floor_us, *tombstones.values()}))
    events = 0
    with Transaction(connection):
        stored = connection.execute("SELECT last_us, at_us FROM stored ORDER BY last_us").fetchall()
        for piece in reversed(list(_pieces(connection, stored, now_us))):
            events += _move(connection, piece, stored, references)
        new_tip_us = min(tip_us, now_us)
        mapped = references.found | {old: min(old, new_tip_us + 1) for old in references.pending}
        connection.execute("UPDATE state SET tip_us = ?, floor_us = ?", (new_tip_us, mapped[floor_us]))
        connection.execute("UPDATE cursor SET tip_us = min(tip_us, ?)", (new_tip_us,))
        connection.executemany(
            "UPDATE tombstone SET before_us = ? WHERE did = ?",
            [(mapped[old], did) for did, old in tombstones.items()],
        )
        connection.execute("DELETE FROM stored WHERE last_us > ?", (now_us,))
        # Otherwise a log that is opened after another boot would continue above the old positions.
        reservation.write(new_tip_us)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return Rebased(events, tip_us, new_tip_us)


def _pieces(connection: sqlite3.Connection, stored: list[tuple[int, int]], now_us: int) -> Iterator[_Piece]:
    """Yield what must move, the newest first."""
    ceiling = now_us + 1
    for table in ("tail", "segment"):
        for (key,) in connection.execute(_KEYS[table]).fetchall():
            if key < ceiling:
                return
            yield _Piece(table, key, ceiling)
            ceiling = _new_times(_old_times(connection, table, key), ceiling, stored)[0]


def _old_times(connection: sqlite3.Connection, table: str, key: int) -> list[int]:
    """Read the positions of a segment or of a row of the tail. Raises Damaged for a segment."""
    (times,) = connection.execute(_TIMES[table], (key,)).fetchone()
    return read_times(times) if table == "tail" else unpack_times(times)


def _new_times(old: Sequence[int], ceiling: int, stored: list[tuple[int, int]]) -> list[int]:
    """Return the new positions of events: the highest that rise strictly and are below `ceiling`.

    Each is at most the old one, and at most the time in the first row of `stored` at or above it.
    """
    new, above = [], ceiling
    for time in reversed(old):
        at = bisect_left(stored, (time, 0))
        limit = time if at == len(stored) else stored[at][1]
        above = min(time, limit, above - 1)
        new.append(above)
    new.reverse()
    return new


def _move(
    connection: sqlite3.Connection, piece: _Piece, stored: list[tuple[int, int]], references: _References
) -> int:
    """Rewrite a piece; return how many events it has.

    Older pieces come first, so that no two have the same key. Only the times change, and what depends on
    them: the copies of account events in a segment, the checksum of a row.
    """
    old = _old_times(connection, piece.table, piece.key)
    new = _new_times(old, piece.ceiling, stored)
    references.map(old, new)
    row = connection.execute(ROW[piece.table], (piece.key,)).fetchone()
    connection.execute(DELETE_ROW[piece.table], (piece.key,))
    if piece.table == "segment":
        insert_segment(connection, with_times(Segment(*row), new))
    else:
        columns = Row.read(row).columns._replace(times=write_times(new))
        insert_row(connection, new[0], new[-1], columns)
    return len(new)
