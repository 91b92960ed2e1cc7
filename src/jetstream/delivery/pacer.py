"""The pacer: when the publisher pauses between flushes, and for how long. Pure: durations are passed in.

A flush costs about 4 µs for each socket, nearly independent of how many events it carries. So few large
flushes are cheap, and many small ones are fast. The rules, with figures in docs/decisions:

* After a flush, pause for a share of the time that it took. Meanwhile events gather for the next one. The
  share bounds what flushing costs while the server has little else to do.
* While readers are catching up, pause longer: twice the loop time per reader that the flush just used. So
  these readers get closer to the tip, and do not only keep their distance.
* In each pause ingest has a turn to store what has arrived, and the next lane is flushed right after it. But
  when a pause takes longer than the flush of a lane, because lanes are light or the loop is busy, several
  lanes are flushed between two pauses. A pause and a commit for each would be most of the work.
"""

from __future__ import annotations

from jetstream.limits import DeliveryLimits


class Pacer:
    """Keeps account of the time that flushes take and pauses give, in seconds of the event loop.

    The publisher tells it of each flush (`flushed`) and of each pause (`paused`), and asks `flush_more`,
    `turn_over` and `due_s` what to do next.
    """

    def __init__(self, limits: DeliveryLimits = DeliveryLimits()) -> None:
        self._limits = limits
        # How long flushes have worked since the last pause.
        self._worked_s = 0.0
        # The pending pause: the sum of the pauses that flushes asked for, less the time slept. Negative after
        # a pause that was too long.
        self._pending_s = 0.0
        # How long the last pause took.
        self._paused_s = 0.0
        # How long ingest's turn in the last pause took; part of what the next flush takes from other readers.
        self._storing_s = 0.0

    def flushed(self, events: int, worked_s: float, written: int, behind: int, lanes: int) -> None:
        """Account for a flush of `events` to the `written` sockets of one of so many lanes.

        While `behind` readers are catching up, and do not wait for their socket, the loop is never idle. So
        the flush, and ingest's turn before it, took all their time from these readers. The pause gives it
        back twice, per reader.
        """
        limits = self._limits
        taken_s, self._storing_s = self._storing_s + worked_s, 0.0
        pause_s = 0.0
        if events < limits.full_flush_events:
            pause_s = max(limits.pause_min_s / lanes, min(limits.pause_ratio * worked_s, limits.pause_max_s))
        if behind:
            theirs_s = limits.catch_up_ratio * taken_s * behind / (max(written, 1) * lanes)
            pause_s = max(pause_s, min(theirs_s, limits.pause_max_s / lanes))
        self._worked_s += worked_s
        self._pending_s += pause_s

    @property
    def flush_more(self) -> bool:
        """Whether another lane is flushed before the next pause."""
        return self._worked_s < self._paused_s * self._limits.work_ratio

    @property
    def turn_over(self) -> bool:
        """Whether the event loop gets a turn before another lane is flushed, which may take a whole turn."""
        return self._worked_s > self._limits.turn_s / 4

    @property
    def due_s(self) -> float:
        """How long to sleep now, in seconds; 0 while the pending pause is shorter than a timer can be."""
        return self._pending_s if self._pending_s >= self._limits.timer_s else 0.0

    def paused(self, slept_s: float, storing_s: float) -> None:
        """Account for a pause: the sleep, and the turn for ingest after it.

        A timer may fire late. The next pause is shorter by the excess, at most by the resolution of a timer.
        So short pauses have the right length on average.
        """
        if self.due_s:
            self._pending_s = max(self._pending_s - slept_s, -self._limits.timer_s)
        self._worked_s, self._paused_s, self._storing_s = 0.0, slept_s + storing_s, storing_s
