"""When events were stored, where their positions do not say it.

A position is the moment at which its event was stored, as long as the clock is right. It is not when the
clock was wrong: positions go on above the highest one for as long as that is ahead of the clock, and after a
clock that was behind has been set, older positions are too low. Only then the table `stored` has rows:

    (last_us, at_us)    what is at or below position `last_us`, and above the row before, was stored by
    `at_us`

For an event between two rows its position counts, but not as earlier than the first row's `at_us`, nor as
later than the second's. `at_us` rises with `last_us`. Retention by time trims by this, not by positions
alone.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from jetstream.eventlog.sqlite.schema import oldest

# Rows made at once when the clock has stepped ahead: as finely as retention by a day then trims, a minute and
# a half.
STEP_ROWS: Final = 1_000
# Between two rows there is this share of the retention: as many rows there are at most, beside those of a
# step.
SHARE: Final = 1_000
EVERY_US_MIN: Final = 1_000_000


def position_stored_before(connection: sqlite3.Connection, before_us: int) -> int:
    """Return the position up to which, exclusively, every event was stored before `before_us`."""
    (passed,) = connection.execute("SELECT max(last_us) FROM stored WHERE at_us < ?", (before_us,)).fetchone()
    (later,) = connection.execute("SELECT min(last_us) FROM stored WHERE at_us >= ?", (before_us,)).fetchone()
    by_position = before_us if later is None else min(before_us, later + 1)
    return by_position if passed is None else max(passed + 1, by_position)


def note(connection: sqlite3.Connection, position: int, now_us: int) -> None:
    """Note that everything up to `position` was stored by now."""
    connection.execute("UPDATE stored SET at_us = ?1 WHERE at_us > ?1", (now_us,))
    connection.execute("INSERT OR REPLACE INTO stored VALUES (?, ?)", (position, now_us))


def shift(connection: sqlite3.Connection, by_us: int, tip_us: int, now_us: int) -> None:
    """Keep every event's age although the clock was set, by more than it drifts."""
    connection.execute("UPDATE stored SET at_us = min(at_us + ?, ?)", (by_us, now_us))
    if by_us > 0:
        _note_all(connection, by_us, tip_us, now_us)


def _note_all(connection: sqlite3.Connection, by_us: int, tip_us: int, now_us: int) -> None:
    """Note of all events above the rows there are that they were stored later than their positions say."""
    (above,) = connection.execute("SELECT ifnull(max(last_us), -1) FROM stored").fetchone()
    ends = [end for (end,) in connection.execute("SELECT last_us FROM block WHERE last_us > ?", (above,))]
    first = oldest(connection)
    if first is not None and above < 0:
        ends.insert(0, first - 1)
    every = max(1, len(ends) // STEP_ROWS)
    rows = {end: min(end + by_us, now_us) for end in [*ends[::every], *ends[-1:], tip_us] if end > above}
    connection.executemany("INSERT OR REPLACE INTO stored VALUES (?, ?)", sorted(rows.items()))


def drop_before(connection: sqlite3.Connection, floor: int) -> None:
    """Delete the rows that matter to no event at or above `floor`: all below it but the last."""
    connection.execute(
        "DELETE FROM stored WHERE last_us < (SELECT max(last_us) FROM stored WHERE last_us < ?)", (floor,)
    )
