"""Heartbeats: a subscriber without an event for some time is told how far the log has been judged for it.

A heartbeat is due when nothing was written for the subscriber's interval. That is looked at twice a second,
by what its sink counts, so that events do no work for heartbeats. A heartbeat is also sent at once when the
subscriber reaches the tip, unless the last one said already that it is there, and when its options change. A
client that did not ask for heartbeats, and has them because of its wire, gets the ones of quiet times only.
"""

from __future__ import annotations


class Heartbeat:
    """When the next heartbeat of one subscriber is due. `asked`: whether the client has asked for them.

    `Subscriber.heartbeat` is one, or None. It reads no clock: `Delivery.check` asks `due` twice a second.
    """

    __slots__ = ("_due_at", "_written", "interval_s", "live")

    def __init__(self, interval_s: int, *, asked: bool = True) -> None:
        # Seconds without an event; replaced by `Delivery.change`.
        self.interval_s = interval_s
        # What the last heartbeat said of the subscriber; None before the first, and after a change. A client
        # that did not ask need not be told that it is live.
        self.live: bool | None = None if asked else True
        # How many bytes of events had been written at the last look.
        self._written = 0
        # In monotonic seconds; None: an interval from the next look on.
        self._due_at: float | None = None

    def restart(self) -> None:
        """Begin an interval, because one has been sent. It is counted from the next look on."""
        self._due_at = None

    def due(self, written: int, now: float) -> bool:
        """Look whether one is due. `written` is how many bytes of events have been written, ever."""
        if self._due_at is None or written != self._written:
            self._written, self._due_at = written, now + self.interval_s
        return now >= self._due_at
