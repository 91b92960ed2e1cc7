"""Moving positions that are ahead of the clock back to where they would be, had it been right: offline.

An event's new position is the moment at which it was stored, as far as that is known (see `ages`), at most
now, and below the next one's. So the order stays, positions rise strictly, and all that is not ahead stays
where it is, unless it is in the way. One transaction does it all: a process that is killed half-way leaves
the log as it was.
"""

from __future__ import annotations

import os
import sqlite3
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from jetstream.eventlog.columns import read_times, write_times
from jetstream.eventlog.segment import Block, block_times, retimed
from jetstream.eventlog.sqlite.reader import Row
from jetstream.eventlog.sqlite.repair import existing
from jetstream.eventlog.sqlite.reservation import reserve
from jetstream.eventlog.sqlite.schema import (
    DATABASE,
    DELETE_ROW,
    ROW,
    explained,
    open_writer,
    store_block,
    store_row,
    take_lock,
    transaction,
)
from jetstream.eventlog.sqlite.space import Space

_KEYS: Final = {
    "block": "SELECT last_us FROM block ORDER BY last_us DESC",
    "tail": "SELECT last_us FROM tail ORDER BY last_us DESC",
}
_TIMES: Final = {
    "block": "SELECT times FROM block WHERE last_us = ?",
    "tail": "SELECT times FROM tail WHERE last_us = ?",
}


class Rebased(NamedTuple):
    """What was done: how many events have new positions, and the newest position before and after."""

    events: int
    tip_before_us: int
    tip_us: int


class _Piece(NamedTuple):
    """A block, or a row of the tail, by its key; all its new positions are below `ceiling`."""

    table: str
    key: int
    ceiling: int


@dataclass
class _Moved:
    """Positions outside of events: old ones that are still to be mapped, rising, and what others became."""

    pending: list[int]
    found: dict[int, int] = field(default_factory=dict)

    def note(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Map what is at or below the last of some events: each to the first event at or above it."""
        while self.pending and self.pending[0] <= old[-1]:
            position = self.pending.pop(0)
            self.found[position] = min(position, new[bisect_left(old, position)])


def rebase(directory: Path, now_us: int) -> Rebased:
    """Move the positions that are above `now_us`; do nothing when none is. No server may be running.

    Raises LogLocked while one is, LogCorrupt when the log is damaged, LogUnwritable.
    """
    path = existing(directory)
    with ExitStack() as stack:
        stack.callback(os.close, take_lock(directory))
        Space(directory).release()
        with explained(path), closing(open_writer(directory / DATABASE)) as connection:
            return _rebase(directory, connection, now_us)


def _rebase(directory: Path, connection: sqlite3.Connection, now_us: int) -> Rebased:
    tip_us, floor_us = connection.execute("SELECT tip_us, floor_us FROM extent").fetchone()
    if tip_us <= now_us:
        return Rebased(0, tip_us, tip_us)
    gone = [before for (before,) in connection.execute("SELECT before_us FROM gone")]
    moved = _Moved(sorted({floor_us, *gone}))
    events = 0
    with transaction(connection):
        stored = connection.execute("SELECT last_us, at_us FROM stored ORDER BY last_us").fetchall()
        for piece in reversed(list(_pieces(connection, stored, now_us))):
            events += _move(connection, piece, stored, moved)
        new_tip_us = min(tip_us, now_us)
        refer = moved.found | {position: min(position, new_tip_us + 1) for position in moved.pending}
        connection.execute("UPDATE state SET tip_us = ?, floor_us = ?", (new_tip_us, refer[floor_us]))
        connection.execute("UPDATE cursor SET tip_us = min(tip_us, ?)", (new_tip_us,))
        connection.executemany(
            "UPDATE gone SET before_us = ? WHERE before_us = ?",
            [(refer[old], old) for old in gone if old in refer],
        )
        connection.execute("DELETE FROM stored WHERE last_us > ?", (now_us,))
        # Else a log that another boot opens would go on from there.
        reserve(directory, new_tip_us)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return Rebased(events, tip_us, new_tip_us)


def _pieces(connection: sqlite3.Connection, stored: list[tuple[int, int]], now_us: int) -> Iterator[_Piece]:
    """Yield what has to move, from the newest on, down to what is in nobody's way."""
    ceiling = now_us + 1
    for table in ("tail", "block"):
        for (key,) in connection.execute(_KEYS[table]).fetchall():
            if key < ceiling:
                return
            yield _Piece(table, key, ceiling)
            ceiling = _new_times(_old_times(connection, table, key), ceiling, stored)[0]


def _old_times(connection: sqlite3.Connection, table: str, key: int) -> list[int]:
    (times,) = connection.execute(_TIMES[table], (key,)).fetchone()
    return read_times(times) if table == "tail" else block_times(times)


def _new_times(old: Sequence[int], ceiling: int, stored: list[tuple[int, int]]) -> list[int]:
    """Return the new positions of events: the highest that rise and are below `ceiling`."""
    new, above = [], ceiling
    for time in reversed(old):
        at = bisect_left(stored, (time, 0))
        limit = time if at == len(stored) else stored[at][1]
        above = min(time, limit, above - 1)
        new.append(above)
    new.reverse()
    return new


def _move(connection: sqlite3.Connection, piece: _Piece, stored: list[tuple[int, int]], moved: _Moved) -> int:
    """Rewrite a piece; those before it are rewritten already, so that no two have the same key."""
    old = _old_times(connection, piece.table, piece.key)
    new = _new_times(old, piece.ceiling, stored)
    moved.note(old, new)
    row = connection.execute(ROW[piece.table], (piece.key,)).fetchone()
    connection.execute(DELETE_ROW[piece.table], (piece.key,))
    if piece.table == "block":
        store_block(connection, retimed(Block(*row), new))
    else:
        columns = Row.read(row).columns._replace(times=write_times(new))
        store_row(connection, new[0], new[-1], columns)
    return len(new)
