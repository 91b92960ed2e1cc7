"""Damaged parts of a log: remembering them, and reporting them.

Every segment and every row of the tail has checksums, so damage is found when it is read, and never reaches a
reader. It costs only the range of positions that it affects: readers skip that range, and everything else is
served.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import structlog

from jetstream.clock import iso
from jetstream.conditions import Conditions
from jetstream.logging_setup import Throttled

_REPAIR: Final = "stop the server and run `jetstream log repair`"


class Damage(NamedTuple):
    """A range of positions, both ends included, of which nothing can be read, and the reason.

    The ends are known only as exactly as the damage allows: for a lost page, to a second.
    """

    first_us: int
    last_us: int
    problem: str


class DamageRecord:
    """The damage that was found since the log was opened.

    While it is not empty, the condition `damage` holds. Its reason has `remedy`, which is what an operator
    can do. Used by the event loop's thread only.
    """

    def __init__(
        self, place: Path | str, conditions: Conditions, ranges_max: int, remedy: str = _REPAIR
    ) -> None:
        """Begin without damage. `place` is the file or the database in messages, without a password."""
        # Where to report: the file or the database, for messages; the conditions; the log lines, throttled
        # because a bad disk may damage many ranges.
        self._place = place
        self._remedy = remedy
        self._conditions = conditions
        self._logger = Throttled(structlog.get_logger(__name__))
        # Ranges that are remembered at most; a forgotten one is found again by the next reader.
        self._ranges_max = ranges_max
        # Each range by its `last_us`, oldest finding first. A range is dropped when the floor has passed it.
        self.by_end: dict[int, Damage] = {}
        # Different ranges found so far; never falls.
        self.count = 0

    def add(self, found: list[Damage]) -> None:
        """Remember ranges that cannot be read, and log those that are new.

        Called after each use of a reader, with what that has skipped. A range is new if no known one has
        the same end. Above `ranges_max`, the one that was found first is forgotten; the count stays.
        """
        for damage in found:
            if damage.last_us in self.by_end:
                continue
            self.count += 1
            if len(self.by_end) >= self._ranges_max:
                del self.by_end[next(iter(self.by_end))]
            self.by_end[damage.last_us] = damage
            self._logger.warning("log: skipped a damaged part", **damage._asdict())
            self._update_condition()

    def skip(self, position: int) -> int:
        """Return `position`, or the first one behind the damaged range that it is in.

        So a reader need not search the same range again, which takes many reads on a lost page.
        """
        for damage in self.by_end.values():
            if damage.first_us <= position <= damage.last_us:
                return damage.last_us + 1
        return position

    def drop_before(self, floor: int) -> None:
        """Drop the ranges that were trimmed."""
        self.by_end = {end: damage for end, damage in self.by_end.items() if end >= floor}
        self._update_condition()

    def _update_condition(self) -> None:
        """Begin, renew or end the condition `damage`.

        The reason names the lowest range, and how many there are.
        """
        if not self.by_end:
            self._conditions.end("damage")
            return
        first = min(self.by_end.values())
        self._conditions.begin(
            "damage",
            f"{self._place} has {len(self.by_end)} damaged part(s), the first from position {first.first_us}"
            f" to {first.last_us} ({iso(first.first_us)}): {first.problem}; readers skip them;"
            f" {self._remedy}, or wait until retention has trimmed them",
        )
