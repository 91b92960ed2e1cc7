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
    """What one edge has, of its present process.

    Changed by what the edge tells (`open`, `taken`), by `Passing` (`passed`, `untaken`), and by
    `Acceptor`.
    """

    # Whether it takes connections: from the message `ready` until it leaves or ends.
    ready: bool = False
    # Until when it is worth waiting for it to be ready, in monotonic seconds. Without end before the
    # first process of the place is ready; 0 once one is.
    expected_until: float = inf
    # Connections that it has, as it said last. `taken` is from the same message.
    open: int = 0
    # How many it had taken so far when it said so. It only rises.
    taken: int = 0
    # How many were passed to it so far. It only rises, and is never below `taken`.
    passed: int = 0
    # How many were passed to it that it has not confirmed yet; changed by `Passing`.
    untaken: int = 0
    # When the oldest of those was passed, in monotonic seconds; 0 without any.
    untaken_since: float = 0.0

    @property
    def total(self) -> int:
        """Its connections, with those that it has not counted yet.

        What was passed and is not in `taken` was not in `open` either.
        """
        return self.open + self.passed - self.taken

    def stalls(self, now: float, limits: SupervisorLimits) -> bool:
        """Tell whether it has not taken a connection for too long: its event loop is too busy."""
        return self.untaken > 0 and now - self.untaken_since > limits.stalled_s


def choose(
    loads: Collection[Load], waiting: int, waited_s: float, now: float, limits: SupervisorLimits
) -> Load | None:
    """Return the edge that gets a connection, of `waiting` ones, which has waited for so long.

    None: none can have it now, or one that is emptier than those that can will soon. An edge that
    stalls gets one only if all do.

    All times are in monotonic seconds. The share counts what waits as well: it is what each edge would
    have if all were spread evenly over the edges that run and those that are expected. An edge below
    its share may have more at once, whatever the others do.
    """
    ready = [each for each in loads if each.ready]
    lively = [each for each in ready if not each.stalls(now, limits)] or ready
    able = [each for each in lively if each.untaken < limits.untaken_max]
    if not able:
        return None
    found = min(able, key=lambda each: each.total)
    # Edges that are being replaced. With none of them, and room in all, nothing is held back.
    expected = sum(not each.ready and now < each.expected_until for each in loads)
    if waited_s >= limits.hold_s or (not expected and len(able) == len(lively)):
        return found
    share = (sum(each.total for each in lively) + waiting) / (len(lively) + expected)
    return found if found.total < share else None
