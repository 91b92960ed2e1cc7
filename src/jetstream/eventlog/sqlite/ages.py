"""When events were stored, where their positions do not tell.

A position is the time at which its event was stored, as long as the clock is right. It is not when the clock
was wrong: while the highest position is ahead of the clock, positions continue above it; and after a clock
that was behind has been set, older positions are too low. Only then the table `stored` has rows:

    (last_us, at_us)    events at or below position `last_us`, and above the row before, were stored by
    `at_us`

For an event between two rows its position counts, but as no earlier than the first row's `at_us` and no later
than the second's. `at_us` rises with `last_us`. Retention by time goes by this, not by positions alone.

The table `clock` has the offset between the wall clock and the time since boot. A later process of the same
boot compares it with its own, and so notices that the clock was set while no process ran.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from jetstream.clock import STEP_US
from jetstream.eventlog.sqlite.connection import Transaction
from jetstream.eventlog.sqlite.reservation import Machine
from jetstream.eventlog.sqlite.schema import oldest_us

# Rows that a step of the clock writes, and rows beside those: each covers one part in so many of the
# retention, so that retention by a day is exact to a minute and a half.
ROWS_MAX: Final = 1_000
INTERVAL_US_MIN: Final = 1_000_000  # between two rows
DRIFT_US: Final = 1_000_000  # an offset that changed by less is not stored again


class Ages:
    """Watches the clock, and writes what keeps the ages of events right, through upkeep's connection."""

    def __init__(
        self, connection: sqlite3.Connection, machine: Machine, now_us: int, retention_s: float | None
    ) -> None:
        """Take over the offset of an earlier process of this boot, if there was one.

        `now_us` is the time in unix microseconds. `retention_s` sets how far apart rows of `stored` are;
        None: a second.
        """
        # Upkeep's connection, and the boot that is written beside the offset.
        self._connection = connection
        self._boot = machine.boot
        # Microseconds between two rows that are written because positions are ahead.
        self._interval_us = max(INTERVAL_US_MIN, int((retention_s or 0) * 1_000_000) // ROWS_MAX)
        # The offset in the table `clock`, if this boot wrote it; None until it has.
        self.stored_offset_us: int | None = None
        # The offset of the last write, or of the start: a step of the clock is a difference from it.
        self._offset_us = now_us - machine.elapsed_us()
        for boot, offset_us in connection.execute("SELECT boot, offset_us FROM clock"):  # one row at most
            if not machine.has_booted_since(boot):
                self.stored_offset_us = self._offset_us = offset_us
        # The last row that was written because positions were ahead of the clock: its position and its time.
        self._row = (0, 0)

    def is_due(self, now_us: int, offset_us: int, tip_us: int) -> bool:
        """Tell whether the clock was set or has drifted, or positions are ahead of it.

        Upkeep asks about once a second. `offset_us` is the clock minus the time since boot, and `tip_us`
        the newest position.
        """
        return (
            self.stored_offset_us is None
            or abs(offset_us - self._offset_us) > DRIFT_US
            or self._is_ahead(now_us, tip_us)
        )

    def _is_ahead(self, now_us: int, tip_us: int) -> bool:
        """Tell whether positions are so far above the clock that a row is due, and none is new enough."""
        position, at_us = self._row
        return tip_us > now_us + STEP_US and tip_us > position and abs(now_us - at_us) >= self._interval_us

    def write(self, now_us: int, offset_us: int, tip_us: int) -> None:
        """Write what is due, in one transaction.

        An exclusive step of upkeep, with the same three values as `is_due`. Memory follows the commit.
        Raises sqlite3.DatabaseError.
        """
        connection = self._connection
        step_us, is_ahead = offset_us - self._offset_us, self._is_ahead(now_us, tip_us)
        with Transaction(connection):
            if abs(step_us) > STEP_US:
                _shift(connection, step_us, tip_us, now_us)
            connection.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?)", (self._boot, offset_us))
            if is_ahead:
                connection.execute("UPDATE stored SET at_us = ?1 WHERE at_us > ?1", (now_us,))
                connection.execute("INSERT OR REPLACE INTO stored VALUES (?, ?)", (tip_us, now_us))
        self.stored_offset_us = self._offset_us = offset_us
        if is_ahead:
            self._row = (tip_us, now_us)


def position_stored_before(connection: sqlite3.Connection, before_us: int) -> int:
    """Return the position below which every event was stored before `before_us`.

    `before_us` is in unix microseconds. Without rows in `stored`, that is the position: all positions are
    right.
    """
    (passed,) = connection.execute("SELECT max(last_us) FROM stored WHERE at_us < ?", (before_us,)).fetchone()
    (later,) = connection.execute("SELECT min(last_us) FROM stored WHERE at_us >= ?", (before_us,)).fetchone()
    by_position = before_us if later is None else min(before_us, later + 1)
    return by_position if passed is None else max(passed + 1, by_position)


def drop_before(connection: sqlite3.Connection, floor: int) -> None:
    """Delete the rows that concern no event at or above `floor`: all below it but the last."""
    connection.execute(
        "DELETE FROM stored WHERE last_us < (SELECT max(last_us) FROM stored WHERE last_us < ?)", (floor,)
    )


def _shift(connection: sqlite3.Connection, by_us: int, tip_us: int, now_us: int) -> None:
    """Keep the age of every event although the clock was set.

    A clock that was set back makes every `at_us` smaller by as much. One that was set ahead makes older
    events look older than they are: rows are written for them, at most `ROWS_MAX`, each at the end of a
    segment.
    """
    connection.execute("UPDATE stored SET at_us = min(at_us + ?, ?)", (by_us, now_us))
    if by_us <= 0:
        return
    # All events above the existing rows are younger than their positions say.
    (above,) = connection.execute("SELECT ifnull(max(last_us), -1) FROM stored").fetchone()
    ends = [end for (end,) in connection.execute("SELECT last_us FROM segment WHERE last_us > ?", (above,))]
    first = oldest_us(connection)
    if first is not None and above < 0:
        ends.insert(0, first - 1)
    every = max(1, len(ends) // ROWS_MAX)
    rows = {end: min(end + by_us, now_us) for end in [*ends[::every], *ends[-1:], tip_us] if end > above}
    connection.executemany("INSERT OR REPLACE INTO stored VALUES (?, ?)", sorted(rows.items()))
