"""What an edge knows of the process that writes its log: whether it is alive, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jetstream.eventlog.lag import Lag
from jetstream.eventlog.sqlite.heartbeat import Beat, read_beat
from jetstream.eventlog.sqlite.lock import LOCK
from jetstream.eventlog.watermark import watermark_of


class WriterWatch:
    """Watches the writer of the log in a directory. `clock` gives monotonic seconds.

    The writer is gone when nothing of it has changed for `gone_s`: neither its heartbeat nor the log.
    """

    def __init__(self, directory: Path, gone_s: float, clock: Callable[[], float]) -> None:
        self._path = directory / LOCK
        self._gone_s = gone_s
        self._clock = clock
        # What the heartbeat said last; whether it was read at all.
        self._beat: Beat | None = None
        self._has_looked = False
        # When something of the writer has changed last; None: nothing has since the start.
        self._alive_at: float | None = None
        self._began = clock()
        # How far the log was, and when.
        self._lag = Lag()

    def note_life(self) -> None:
        """Note that the writer has written something."""
        self._alive_at = self._clock()

    def look(self, tip: int) -> None:
        """Read the heartbeat. `tip` is the newest position that the edge has read.

        Called four times a second. Without a heartbeat that is whole, only the log itself is a sign of
        life.
        """
        beat = read_beat(self._path)
        # The first one may have been written by a process that is gone.
        if beat != self._beat and self._has_looked:
            self.note_life()
        self._beat, self._has_looked = beat, True
        self._lag.note(max(tip, 0 if beat is None else beat.tip), self._clock())

    @property
    def silent_s(self) -> float | None:
        """For how many seconds nothing has changed; None: nothing has changed since the start."""
        return None if self._alive_at is None else self._clock() - self._alive_at

    @property
    def reason(self) -> str | None:
        """A sentence that the writer is gone; None: it is alive, or that is not known yet."""
        silent_s = self._clock() - (self._began if self._alive_at is None else self._alive_at)
        if silent_s <= self._gone_s:
            return None
        return f"the process that writes the log in {self._path.parent} has been silent for {silent_s:.0f} s"

    @property
    def is_alive(self) -> bool:
        """Whether the writer has changed something, and not too long ago."""
        return self._alive_at is not None and self._clock() - self._alive_at <= self._gone_s

    def watermark(self, tip: int) -> int:
        """Return the watermark for a reader that has read up to a position; 0: not known.

        A heartbeat that is ahead of what was read does not count: events below its watermark may be
        missing here.
        """
        beat = self._beat
        return watermark_of(beat.beat) if beat is not None and beat.tip <= tip else 0

    def lag_s(self, position: int) -> float:
        """Return for how long there has been something that a reader at a position has not processed.

        In seconds of the reader's clock; 0.0 if it has all.
        """
        return self._lag.seconds(position, self._clock())
