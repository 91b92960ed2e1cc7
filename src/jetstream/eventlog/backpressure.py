"""Backpressure: the writer of a log waits for the readers that follow it.

A reader that must not be overrun joins `Followers`. It reports each position up to which it has processed the
log, at the moment at which it is ready for more. The writer appends, then waits until every follower has
reported a position above the tip. So nothing is stored faster than it can be published, and all that arrives
meanwhile becomes one commit. Without a follower the writer does not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from operator import attrgetter
from typing import Final

from jetstream.scheduling import Notifier

_POSITION: Final = attrgetter("position")
_ABOVE_ALL: Final = 1 << 63  # no position is as high


class Follower:
    """One reader that the writer waits for.

    Made by `Followers.join`. `delivery.publisher` has one: it advances when the slowest lane has been
    sent all that is stored and its pause is over.
    """

    __slots__ = ("_followers", "appended", "position")

    def __init__(self, followers: Followers, position: int) -> None:
        """Begin at `position`: the follower has processed all below it."""
        self._followers = followers
        # The follower is ready for more above this position: set by `advance`.
        self.position = position
        # Appends that the follower has not processed, oldest first: the tip after each, and when the oldest
        # of its events was received, in monotonic seconds. The log appends; the follower removes.
        self.appended: deque[tuple[int, float]] = deque()

    def advance(self, position: int) -> None:
        """Report that all below `position` is processed, and that more may be appended.

        `position` is one above the last event that was processed; it should not fall.
        """
        self.position = position
        self._followers.wake()

    def leave(self) -> None:
        """Let the writer wait for this reader no longer.

        A follower that ends without this would hold the writer back for ever.
        """
        self._followers.remove(self)


class Followers:
    """The readers that the writer of one log waits for.

    Used by the event loop's thread only.
    """

    def __init__(self) -> None:
        self._followers: dict[Follower, None] = {}  # in the order in which they joined
        self._advanced = Notifier()  # sent when a follower advances or leaves
        self._tip = 0  # the highest position that was appended while this process ran

    def join(self, position: int) -> Follower:
        """Add a reader that has processed all below `position`."""
        follower = Follower(self, position)
        self._followers[follower] = None
        return follower

    def remove(self, follower: Follower) -> None:
        """Remove a reader; see `Follower.leave`."""
        self._followers.pop(follower, None)
        self.wake()

    def wake(self) -> None:
        """Let the writer look at the positions again."""
        self._advanced.notify()

    def append(self, tip: int, received_at: float | None) -> None:
        """Note that events up to `tip` were appended.

        The writer's log calls it within each append, an edge's log when it has read what another process
        appended. `received_at` is when the oldest of these events was received, in monotonic seconds;
        None: their delay is not measured.
        """
        self._tip = tip
        if received_at is None:
            return
        for follower in self._followers:
            follower.appended.append((tip, received_at))

    async def wait(self) -> None:
        """Return once every follower is ready for more, after one turn of the event loop at least.

        The writer calls it after each append, and appends no more until it returns. The one turn lets a
        follower that was woken by the append begin before the next one. There is no deadline.
        """
        if self._lowest > self._tip:
            await asyncio.sleep(0)
        else:
            await self._advanced.wait()
        while self._lowest <= self._tip:
            await self._advanced.wait()

    @property
    def _lowest(self) -> int:
        """The lowest position of a follower; above all positions if there is none."""
        return min(map(_POSITION, self._followers), default=_ABOVE_ALL)
