"""Gives each event its `time_us`: now, but always above the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jetstream.model.batch import Batch
from jetstream.model.event import Event


class Sequencer:
    """Stamps events with unique, strictly rising times in unix microseconds.

    `last` is the newest time already given, in this process or a former one: when the clock stands below
    it, times go on from there, one microsecond apart, until the clock has caught up.
    """

    def __init__(self, last: int, clock: Callable[[], int]) -> None:
        self._last = last
        self._clock = clock

    def stamp(self, events: Sequence[Event]) -> Batch:
        """Return the events as a batch, in their order."""
        first = max(self._clock(), self._last + 1)
        times = range(first, first + len(events))
        if times:
            self._last = times[-1]
        return Batch.of(events, times)
