"""Which edge gets the next connection: the one with the fewest. Pure.

An edge says now and then how many connections it has, and how many it has taken so far. Those that were
passed to it and are not in that count yet are added. So many connections that come at once are spread, too.

While an edge is being replaced, its clients connect again. To give all of them to the others would leave
the new one empty for hours. So what is above the others' share waits for it, but not for long. The same holds
for an edge that is slow to take what it was given.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from jetstream.limits import SupervisorLimits


@dataclass(slots=True)
class Load:
    """What one edge has, of its present process."""

    ready: bool = False  # whether it takes connections
    expected_until: float = inf  # until when it is worth waiting for it to be ready, in monotonic seconds
    open: int = 0  # connections, as it said last
    taken: int = 0  # that it had taken when it said so
    passed: int = 0  # that were passed to it
    untaken: int = 0  # that were passed to it, and that it has not confirmed yet
    untaken_since: float = 0.0  # when the oldest of those was passed, in monotonic seconds

    @property
    def total(self) -> int:
        """Its connections, with those that it has not counted yet."""
        return self.open + self.passed - self.taken

    def stalls(self, now: float, limits: SupervisorLimits) -> bool:
        """Tell whether it has not taken a connection for too long."""
        return self.untaken > 0 and now - self.untaken_since > limits.stalled_s


def choose(
    loads: Collection[Load], waiting: int, waited_s: float, now: float, limits: SupervisorLimits
) -> Load | None:
    """Return the edge that gets a connection, of `waiting` ones, which has waited for so long.

    None: none can have it now, or one that is emptier than those that can will soon. An edge that stalls gets
    one only if all do.
    """
    ready = [each for each in loads if each.ready]
    lively = [each for each in ready if not each.stalls(now, limits)] or ready
    able = [each for each in lively if each.untaken < limits.untaken_max]
    if not able:
        return None
    found = min(able, key=lambda each: each.total)
    expected = sum(not each.ready and now < each.expected_until for each in loads)
    if waited_s >= limits.hold_s or (not expected and len(able) == len(lively)):
        return found
    share = (sum(each.total for each in lively) + waiting) / (len(lively) + expected)
    return found if found.total < share else None
