"""What the log says while the server is behind upstream: how far, and when it will be there. Pure.

The lag is the age of the newest message when it arrived. After a pause it is the length of the pause, and
falls while upstream sends what was missed.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

# Seconds of lag from which on the server is behind, and below which it has caught up. They are apart, so
# that a lag that varies around one value does not make lines.
BEHIND_S: Final = 30.0
THERE_S: Final = 5.0  # a lag below which it has caught up
# Seconds between two lines while the lag falls.
EVERY_S: Final = 10.0
# The same while it does not fall, or not fast enough to tell an end.
STUCK_EVERY_S: Final = 60.0
# An estimate of more than these 30 days counts as never: the lag hardly falls.
_LONGEST_S: Final = 30 * 86_400.0
# Lines from which the rate is estimated: with `EVERY_S`, those of the last minute.
_POINTS_MAX: Final = 7


class Line(NamedTuple):
    """A line of the log: its text, and the fields beside it. The caller prints it."""

    event: str
    fields: dict[str, object]


class CatchingUp:
    """Follows the lag. Call `observe` every second or so.

    One line begins a phase of being behind, others follow while it lasts, and one ends it. Nothing is
    said of a lag that never reaches `BEHIND_S`.
    """

    def __init__(self) -> None:
        # When the server was found behind, in monotonic seconds; None while it is not.
        self._began: float | None = None
        # When lines were written, in monotonic seconds, with the lag then. Emptied when the server has
        # caught up.
        self._points: deque[tuple[float, float]] = deque(maxlen=_POINTS_MAX)

    def observe(self, now: float, lag_s: float) -> Line | None:
        """Take the lag of what has just arrived; return a line if one is due. `now` is monotonic seconds."""
        # Two thresholds: above the first one a phase begins, below the second one it ends.
        if self._began is None:
            if lag_s < BEHIND_S:
                return None
            self._began = now
        elif lag_s < THERE_S:
            took_s, self._began = now - self._began, None
            self._points.clear()
            return Line("caught up with upstream", {"took": spoken(took_s), "lag_s": round(lag_s, 1)})
        return self._progress(now, lag_s)

    def _progress(self, now: float, lag_s: float) -> Line | None:
        """Return a line about how far the server is, if the last one is long enough ago.

        The first line of a phase is always due. It has no estimate, because there is no earlier point.
        """
        left_s = self._left_s(now, lag_s)
        if self._points and now - self._points[-1][0] < (STUCK_EVERY_S if left_s is None else EVERY_S):
            return None
        first = not self._points
        self._points.append((now, lag_s))
        if left_s is not None:
            done_in = spoken(left_s)
        else:
            done_in = "not known yet" if first else "never at this rate: upstream is too slow"
        return Line("catching up with upstream", {"behind": spoken(lag_s), "done_in": done_in})

    def _left_s(self, now: float, lag_s: float) -> float | None:
        """Return in how many seconds the lag is 0 if it goes on falling as it does; None: never.

        The rate is the mean since the oldest point, so one late message does not change it much.
        """
        if not self._points:
            return None
        at, lag_then_s = self._points[0]
        fallen_s, passed_s = lag_then_s - lag_s, now - at
        if fallen_s <= 0 or passed_s <= 0:
            return None
        left_s = lag_s * passed_s / fallen_s
        return left_s if left_s <= _LONGEST_S else None


def spoken(seconds: float) -> str:
    """Return a time for people: `45s`, `12m`, `2h05m`, `3d04h`."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f}s"
    if minutes < 100:
        return f"{minutes:.0f}m"
    if hours < 48:
        return f"{int(hours)}h{int(minutes) % 60:02}m"
    return f"{int(hours) // 24}d{int(hours) % 24:02}h"
