"""Lanes: those at the tip are written to in a few parts, one after another, each up to the newest event.

Were all written to in one go, an event would wait for that to end, and then for its place in the next one.
So it waits for its reader's lane to come, and what is stored meanwhile is with whichever lane is next.
"""

from __future__ import annotations

from typing import Final

from jetstream.delivery.index import Groups

LANES_MAX: Final = 4
LANE_SUBSCRIBERS: Final = 200  # before there is another lane: about a millisecond to write to


class Lane:
    """A part of the subscribers. All below `position` has been published to those who are at the tip."""

    __slots__ = ("flushed_from", "groups", "position", "subscribers")

    def __init__(self, position: int) -> None:
        self.position = position
        self.flushed_from = position  # where the position was before it last moved
        self.groups = Groups()
        self.subscribers = 0  # at the tip or behind

    def move(self, position: int) -> None:
        """Move the boundary."""
        self.flushed_from, self.position = self.position, position


class Lanes:
    """As many lanes as there are subscribers for, and one when there are none."""

    def __init__(self, position: int) -> None:
        self._lanes = [Lane(position)]

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def hindmost(self) -> Lane:
        """The lane with the lowest position."""
        return min(self._lanes, key=lambda lane: lane.position)

    @property
    def foremost(self) -> Lane:
        """The lane with the highest position."""
        return max(self._lanes, key=lambda lane: lane.position)

    def for_newcomer(self) -> Lane:
        """Return the emptiest lane, or a new one where all have enough subscribers."""
        emptiest = min(self._lanes, key=lambda lane: lane.subscribers)
        if emptiest.subscribers < LANE_SUBSCRIBERS or len(self._lanes) >= LANES_MAX:
            return emptiest
        return Lane(self.foremost.position)

    def enter(self, lane: Lane) -> None:
        """Count a subscriber, whose lane was just chosen."""
        if lane not in self._lanes:
            self._lanes.append(lane)
        lane.subscribers += 1

    def leave(self, lane: Lane) -> None:
        """Count a subscriber no more; a lane ends with its last, unless it is the only one."""
        lane.subscribers -= 1
        if not lane.subscribers and len(self._lanes) > 1:
            self._lanes.remove(lane)
