"""Moving positions that are ahead of the clock back to the present, while no server runs.

The new position of an event is the time at which it was stored, as far as that is known (see `ages`), at
most now, and below the next event's. So the order stays, positions rise strictly, and events that are not
ahead keep their positions unless others need the room:

    before   ── a ── b ── c ─────────┼──────── d ── e ── f ──▶      now: ┼
    after    ── a ── b ── c ── d e f ┼
                               the highest positions that rise strictly up to now

Segments and rows of the tail are rewritten from the oldest to the newest, so that no two have the same
key at any time. The floor, the tombstones and the gaps refer to events by position, and move with them.
All happens in one transaction: a process that is killed leaves the log as it was.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from jetstream.eventlog.columns import read_times, write_times
from jetstream.eventlog.segment import Segment, unpack_times, with_times
from jetstream.eventlog.sqlite.connection import Transaction, TranslatedErrors, open_writer
from jetstream.eventlog.sqlite.journal import recover
from jetstream.eventlog.sqlite.lock import offline
from jetstream.eventlog.sqlite.reservation import Reservation
from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.schema import DELETE_ROW, ROW, for_each_table, insert, insert_row, read_row

# The keys of a table, newest first, and the times of one row.
_KEYS: Final = for_each_table("SELECT last_us FROM %s ORDER BY last_us DESC")
_TIMES: Final = for_each_table("SELECT times FROM %s WHERE last_us = ?")


class Rebased(NamedTuple):
    """The result: how many events have new positions, and the newest position before and after."""

    events: int
    tip_before_us: int
    tip_us: int


def rebase(directory: Path, now_us: int, reservation: Reservation | None = None) -> Rebased:
    """Move the positions that are above `now_us`; change nothing if there are none.

    Raises LogLocked while a server runs, LogCorrupt if the log is damaged, LogUnwritable.

    `now_us` is in unix microseconds. What is in the journal is stored first, and moves as well.
    """
    reservation = reservation or Reservation(directory)
    with offline(directory) as path, TranslatedErrors(path), closing(open_writer(path)) as connection:
        recover(directory, connection)
        tip_us, floor_us = connection.execute("SELECT tip_us, floor_us FROM extent").fetchone()
        if tip_us <= now_us:
            return Rebased(0, tip_us, tip_us)
        tombstones = read_tombstones(connection)
        gaps = [time_us for (time_us,) in connection.execute("SELECT DISTINCT time_us FROM gap")]
        with Transaction(connection):
            events, moved = _move_events(connection, now_us, sorted({floor_us, *tombstones.values(), *gaps}))
            connection.execute("UPDATE state SET tip_us = ?, floor_us = ?", (now_us, moved[floor_us]))
            connection.execute("UPDATE cursor SET tip_us = min(tip_us, ?)", (now_us,))
            connection.executemany(
                "UPDATE tombstone SET before_us = ? WHERE did = ?",
                [(moved[old], did) for did, old in tombstones.items()],
            )
            # The oldest come first: none is moved to where another one is still to be moved from.
            connection.executemany(
                "UPDATE OR REPLACE gap SET time_us = ? WHERE time_us = ?",
                [(moved[old], old) for old in sorted(gaps)],
            )
            connection.execute("DELETE FROM stored WHERE last_us > ?", (now_us,))
            # Otherwise a log that is opened after another boot would continue above the old positions.
            reservation.write(now_us)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return Rebased(events, tip_us, now_us)


def _move_events(
    connection: sqlite3.Connection, now_us: int, references: list[int]
) -> tuple[int, dict[int, int]]:
    """Move all events that must move; return how many they are, and the new position of each of `references`.

    Those are positions that refer to events, rising: each refers to the first event at or above it, or to
    none yet.
    """
    stored = connection.execute("SELECT last_us, at_us FROM stored ORDER BY last_us").fetchall()
    events, moved = 0, dict[int, int]()
    # Older ones come first, so that no two have the same key.
    for table, key, ceiling in reversed(list(_pieces(connection, stored, now_us))):
        old = _old_times(connection, table, key)
        new = _new_times(old, ceiling, stored)
        while references and references[0] <= old[-1]:
            position = references.pop(0)
            moved[position] = min(position, new[bisect_left(old, position)])
        _move(connection, table, key, new)
        events += len(new)
    return events, moved | {position: min(position, now_us + 1) for position in references}


def _pieces(
    connection: sqlite3.Connection, stored: list[tuple[int, int]], now_us: int
) -> Iterator[tuple[str, int, int]]:
    """Yield what must move, the newest first: a table, a key in it, and what its new positions are below."""
    ceiling = now_us + 1
    for table in ("tail", "segment"):
        for (key,) in connection.execute(_KEYS[table]).fetchall():
            if key < ceiling:
                return
            yield table, key, ceiling
            ceiling = _new_times(_old_times(connection, table, key), ceiling, stored)[0]


def _old_times(connection: sqlite3.Connection, table: str, key: int) -> list[int]:
    """Read the positions of a segment or of a row of the tail. Raises Damaged for a segment."""
    (times,) = connection.execute(_TIMES[table], (key,)).fetchone()
    return read_times(times) if table == "tail" else unpack_times(times)


def _new_times(old: Sequence[int], ceiling: int, stored: list[tuple[int, int]]) -> list[int]:
    """Return the new positions of events: the highest that rise strictly and are below `ceiling`.

    Each is at most the old one, and at most the time in the first row of `stored` at or above it.

    `stored` has the rows of that table, rising. A binary search for each event: this is for rare, offline
    use.
    """
    new, above = [], ceiling
    for time in reversed(old):
        at = bisect_left(stored, (time, 0))
        limit = time if at == len(stored) else stored[at][1]
        above = min(time, limit, above - 1)
        new.append(above)
    new.reverse()
    return new


def _move(connection: sqlite3.Connection, table: str, key: int, times: list[int]) -> None:
    """Rewrite a segment or a row of the tail with new times.

    Only they change, and what depends on them: the copies of account events in a segment, the checksum of a
    row.
    """
    stored = connection.execute(ROW[table], (key,)).fetchone()
    connection.execute(DELETE_ROW[table], (key,))
    if table == "segment":
        insert(connection, with_times(Segment(*stored), times))
    else:
        columns = read_row(stored).columns._replace(times=write_times(times))
        insert_row(connection, times[0], times[-1], columns)
