"""How far a reader of the log is behind its writer, in seconds of the reader's own clock. Pure.

What is measured is for how long the reader has known that there is something that it has not processed. So
nothing depends on the positions of events, which are times of the writer's clock, or on how long the log was
quiet before.
"""

from __future__ import annotations

from collections import deque


class Lag:
    """Notes how far the log was, and when. All times are monotonic seconds.

    `EdgeLog` and `PostgresLog` have one each, and report it as `jetstream_edge_lag_seconds` and in
    `/ready`.
    """

    def __init__(self, marks_max: int = 1_000) -> None:
        """Remember at most `marks_max` positions: the oldest exactly, the others more and more coarsely."""
        # Positions of the newest event that the reader has not reached, rising, and when each was noted.
        self._marks = deque[tuple[int, float]]()
        # When there are more, every second one is forgotten; never the oldest.
        self._marks_max = marks_max

    def note(self, newest: int, now: float) -> None:
        """Note that the log has events up to a position.

        Nothing is noted for a position that is not above the last one. `now` is in monotonic seconds.
        """
        if self._marks and self._marks[-1][0] >= newest:
            return
        self._marks.append((newest, now))
        if len(self._marks) > self._marks_max:
            self._marks = deque(mark for i, mark in enumerate(self._marks) if i % 2 == 0)

    def seconds(self, position: int, now: float) -> float:
        """Return for how long something has been there that a reader at a position has not processed.

        `position` is the first that was not processed. The marks below it are forgotten, so calls must
        not go back. 0.0: all that was noted is processed.
        """
        while self._marks and self._marks[0][0] < position:
            self._marks.popleft()
        return now - self._marks[0][1] if self._marks else 0.0
