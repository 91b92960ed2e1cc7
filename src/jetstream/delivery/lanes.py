"""Lanes: the subscribers at the tip are flushed in up to four parts, one after another. Pure.

With one part, an event would wait for the flush in progress to end, and then for its reader's turn in the
next one. With lanes it waits for the flush of its reader's lane only. Each flush goes up to the newest event,
so what is stored during one flush is part of the next.

    lane 1   ├─ flush ─┤                   ├─ flush ─┤
    lane 2             ├─ flush ─┤                   ├─ flush ─┤
    lane 3                       ├─ flush ─┤                   ├─ …        time ─▶

The publisher flushes the lane with the lowest position, and moves the positions. A subscriber stays in its
lane from `enter` to `leave`, also while it is behind.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from jetstream.delivery.did_index import Defer, ListIndex
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.index import Groups
from jetstream.delivery.subscriber import Subscriber
from jetstream.limits import DeliveryLimits

_POSITION: Final = attrgetter("position")


class Lane:
    """Some of the subscribers, and the position up to which those at the tip have been flushed."""

    __slots__ = ("flushed_from", "groups", "judging", "position", "subscribers")

    def __init__(self, position: int, groups: Groups) -> None:
        # All below has been published to the subscribers at the tip, or is being written by the flush in
        # progress. Only rises; moved by the publisher.
        self.position = position
        # The position before the last move: where the flush in progress begins.
        self.flushed_from = position
        # Whether the flush in progress has not found yet which groups want its events; set by the publisher.
        self.judging = False
        # The subscribers at the tip.
        self.groups = groups
        # How many subscribers there are, at the tip or behind; counted by `Lanes`.
        self.subscribers = 0

    def move(self, position: int) -> None:
        """Move the position, as a flush does before it writes. `position` is at or above the one before."""
        self.flushed_from, self.position = self.position, position

    def position_of(self, subscriber: Subscriber) -> int:
        """Return a subscriber's position, also in the middle of a flush: all below has been written to it."""
        group = subscriber.group
        if group is None:
            return subscriber.position
        # A write sets the position of a member. While the flush judges, it is not known which groups will be
        # written to. So all members count as not written to, but for those that joined after the move.
        unwritten = (self.judging or group.flushing) and subscriber.position != self.position
        return self.flushed_from if unwritten else self.position

    def detach(self, subscriber: Subscriber) -> None:
        """Take a subscriber out of its group, with its position.

        The caller puts it into another group or starts a feeder, from `subscriber.position` on. Its count of
        messages is corrected: `Group.messages` counts what is being written already.
        """
        position, group = self.position_of(subscriber), subscriber.group
        if group is not None and position != self.position:  # what is being written comes from the log
            subscriber.messages -= group.writing
        subscriber.position = position
        self.groups.remove(subscriber)


class Lanes:
    """One lane for every `lane_subscribers` subscribers, up to `lanes_max`; at least one."""

    def __init__(
        self,
        position: int,
        defer: Defer,
        features: FeatureCache,
        limits: DeliveryLimits = DeliveryLimits(),
    ) -> None:
        self._limits = limits
        self._defer = defer  # see `Groups`
        # Shared by all lanes, and with the feeders.
        self._features = features
        # The lists of DIDs that groups of any lane use.
        self._lists = ListIndex(defer)
        self._lanes = [self._new(position)]  # never empty

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def lowest(self) -> Lane:
        """The lane with the lowest position, which is flushed next."""
        return min(self._lanes, key=_POSITION)

    @property
    def highest(self) -> Lane:
        """The lane with the highest position."""
        return max(self._lanes, key=_POSITION)

    def enter(self) -> Lane:
        """Count a subscriber. Return its lane: the one with the fewest, or a new one where all are full.

        A new lane starts at the highest position, because it has no subscriber that has missed an event.
        """
        lane = self._emptiest
        if self._is_full(lane):
            lane = self._new(self.highest.position)
            self._lanes.append(lane)
        lane.subscribers += 1
        return lane

    @property
    def next_position(self) -> int:
        """The position of the lane that `enter` would return."""
        lane = self._emptiest
        return (self.highest if self._is_full(lane) else lane).position

    @property
    def _emptiest(self) -> Lane:
        """The lane with the fewest subscribers, the oldest of these."""
        return min(self._lanes, key=lambda lane: lane.subscribers)

    def _is_full(self, lane: Lane) -> bool:
        """Tell whether another lane is begun, although `lane` has the fewest subscribers."""
        return lane.subscribers >= self._limits.lane_subscribers and len(self._lanes) < self._limits.lanes_max

    def leave(self, lane: Lane) -> None:
        """Count one subscriber less; remove a lane with its last one, unless it is the only lane."""
        lane.subscribers -= 1
        if not lane.subscribers and len(self._lanes) > 1:
            self._lanes.remove(lane)

    def _new(self, position: int) -> Lane:
        """Return a lane without subscribers, with an index of its own. It is not added to the lanes."""
        limits = self._limits
        groups = Groups(
            limits.collections_remembered, self._defer, self._features, self._lists, limits.judged_per_step
        )
        return Lane(position, groups)
