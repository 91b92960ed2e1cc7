"""What a process knows of the one that writes its log: whether it is alive, and how far it is."""

from __future__ import annotations

from collections.abc import Callable

from jetstream.eventlog.lag import Lag
from jetstream.eventlog.watermark import watermark_of


class LeaderWatch:
    """Told of the heartbeat about once a second. `clock` gives monotonic seconds.

    The leader is gone when neither its heartbeat nor the log has changed for `gone_s`. An outage of the
    database is no silence of the leader: see `excuse`.
    """

    def __init__(self, gone_s: float, clock: Callable[[], float]) -> None:
        self._gone_s = gone_s
        self._clock = clock
        # What was seen last, the heartbeat and the newest position; None: nothing was yet. And the newest
        # position that the log had with this heartbeat.
        self._beat: int | None = None
        self._beat_tip = 0
        self._newest: int | None = None
        # When it has changed last; None: it has not since the start, which was at `began`. Both are moved on
        # by the time that does not count.
        self._alive_at: float | None = None
        self._began = clock()
        # How far the log was, and when.
        self._lag = Lag()

    def look(self, beat: int, tip: int) -> None:
        """Note what the heartbeat was, and the newest position that the log had with it.

        The first heartbeat is no sign of life: its writer may be gone. `tip` is as of the same snapshot.
        """
        if self._beat is not None and beat != self._beat:
            self._alive_at = self._clock()
        self._beat, self._beat_tip = beat, tip

    def note(self, newest: int) -> None:
        """Note that the log has events up to a position."""
        if self._newest is not None and newest > self._newest:
            self._alive_at = self._clock()
        self._newest = newest
        self._lag.note(newest, self._clock())

    def excuse(self, seconds: float) -> None:
        """Do not count some time until now as silence: the database was away, for the leader as well."""
        now = self._clock()
        self._began = min(self._began + seconds, now)
        if self._alive_at is not None:
            self._alive_at = min(self._alive_at + seconds, now)

    @property
    def silent_s(self) -> float | None:
        """For how many seconds nothing has changed; None: nothing has changed since the start."""
        return None if self._alive_at is None else self._clock() - self._alive_at

    @property
    def is_alive(self) -> bool:
        """Whether something has changed, and not too long ago."""
        return self._alive_at is not None and self._clock() - self._alive_at <= self._gone_s

    @property
    def reason(self) -> str | None:
        """A sentence that nobody leads; None: somebody does, or that is not known yet."""
        silent_s = self._clock() - (self._began if self._alive_at is None else self._alive_at)
        if silent_s <= self._gone_s:
            return None
        return f"the process that writes the log has written nothing for {silent_s:.0f} s"

    def watermark(self, tip: int) -> int:
        """Return the watermark for a reader that has read up to a position; 0: not known.

        A heartbeat that is ahead of what was read does not count: events below its watermark may be
        missing here.
        """
        return watermark_of(self._beat) if self._beat is not None and self._beat_tip <= tip else 0

    def lag_s(self, position: int) -> float:
        """Return for how long there has been something that a reader at a position has not processed."""
        return self._lag.seconds(position, self._clock())
