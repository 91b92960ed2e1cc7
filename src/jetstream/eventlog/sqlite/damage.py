"""What of a log cannot be read, and finding what can be read beyond it.

Every block and every row of the tail has checksums, so damage is met when it is read, and never given to a
reader. It costs what it is in: readers pass over that range, and the rest is served.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from jetstream.clock import iso
from jetstream.conditions import Conditions
from jetstream.eventlog.columns import Damaged
from jetstream.logging_setup import Throttled

FAR_US: Final = 2**63 - 1
# Ranges remembered, so that none is read again for each reader; beyond that they are read again.
REMEMBERED_MAX: Final = 1_000
# Beyond a damaged page the next key is looked for in steps of a second, in which there are few blocks.
GRAIN_US: Final = 1_000_000

# The file is not what was written, or the disk gives it back no more. Errors such as a lack of memory pass.
_UNREADABLE: Final = {
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
}
_NEXT_KEY: Final = "SELECT last_us FROM block WHERE last_us >= ? ORDER BY last_us LIMIT 1"


class Damage(NamedTuple):
    """Positions from `first_us` to `last_us` of which nothing can be read, and why."""

    first_us: int
    last_us: int
    problem: str


class Damages:
    """The damage that was met since the log was opened.

    `by_end` has each range by its `last_us`; a range goes when the floor has passed it. `count` is how many
    different ones were met. While there is one, the condition `damage` holds.
    """

    def __init__(self, path: Path, conditions: Conditions) -> None:
        self._path = path
        self._conditions = conditions
        self._log = Throttled(structlog.get_logger(__name__))
        self.by_end: dict[int, Damage] = {}
        self.count = 0

    def note(self, damage: Damage) -> None:
        """Remember a range that cannot be read."""
        if damage.last_us in self.by_end:
            return
        self.count += 1
        if len(self.by_end) >= REMEMBERED_MAX:
            del self.by_end[next(iter(self.by_end))]
        self.by_end[damage.last_us] = damage
        self._log.warning(
            "log: damaged, passed over",
            first_us=damage.first_us,
            last_us=damage.last_us,
            problem=damage.problem,
        )
        self._tell()

    def beyond(self, position: int) -> int:
        """Return the first position at or after this one that is in no damaged range."""
        for damage in self.by_end.values():
            if damage.first_us <= position <= damage.last_us:
                return damage.last_us + 1
        return position

    def drop_before(self, floor: int) -> None:
        """Let go of what was trimmed."""
        passed = [end for end in self.by_end if end < floor]
        for end in passed:
            del self.by_end[end]
        if passed:
            self._tell()

    def _tell(self) -> None:
        if not self.by_end:
            self._conditions.end("damage")
            return
        first = min(self.by_end.values())
        self._conditions.begin(
            "damage",
            f"{self._path} has {len(self.by_end)} damaged part(s), the first from position {first.first_us}"
            f" to {first.last_us} ({iso(first.first_us)}): {first.problem}; readers pass over them;"
            f" stop the server and run `jetstream log repair`, or wait until retention has trimmed them",
        )


def problem(error: Exception) -> str | None:
    """Say what is damaged, if an error means damage; None for any other error."""
    if isinstance(error, Damaged):
        return str(error)
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_CORRUPT or code in _UNREADABLE:
        return str(error)
    return None


def next_block(connection: sqlite3.Connection, position: int) -> int | None:
    """Return the key of the first block that ends at or after a position, None for none.

    Raises sqlite3.DatabaseError where the keys themselves are damaged.
    """
    row = connection.execute(_NEXT_KEY, (position,)).fetchone()
    return None if row is None else int(row[0])


def reachable(connection: sqlite3.Connection, position: int) -> int:
    """Return a position, to the second, from which keys can be read again; `FAR_US` if there is none."""
    step = GRAIN_US
    while position + step < FAR_US and not _reads(connection, position + step):
        step *= 2
    low, high = position, min(position + step, FAR_US)
    while high - low > GRAIN_US:
        middle = (low + high) // 2
        low, high = (low, middle) if _reads(connection, middle) else (middle, high)
    return high


def _reads(connection: sqlite3.Connection, position: int) -> bool:
    try:
        next_block(connection, position)
    except sqlite3.DatabaseError:
        return False
    return True
