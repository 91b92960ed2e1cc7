"""What each subscriber must receive, derived from one connection that receives everything. Pure.

`Truth` keeps the time and size of every event that the unfiltered reference connection received. So it can
tell, for any filter and any range of time, how many events and how many bytes a subscriber must have
received.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from typing import Final, NamedTuple

from jetstream.bench.mix import Wanted

EXAMPLES_MAX: Final = 3  # of each kind of finding


class Amount(NamedTuple):
    """A number of events, and the bytes of their WebSocket frames, heads included."""

    events: int
    size: int


class Series:
    """The times and sizes of some events, in order."""

    __slots__ = ("_times", "_totals")

    def __init__(self) -> None:
        self._times = array("Q")  # `time_us` of each event
        self._totals = array("Q", [0])  # bytes of all events before each, and of all

    def add(self, time_us: int, size: int) -> None:
        """Append an event, which is newer than all others."""
        self._times.append(time_us)
        self._totals.append(self._totals[-1] + size)

    def amount(self, first_us: int, stop_us: int) -> Amount:
        """Return how much there is in `[first_us, stop_us)`."""
        first, stop = bisect_left(self._times, first_us), bisect_left(self._times, stop_us)
        return Amount(max(stop - first, 0), max(self._totals[stop] - self._totals[first], 0))

    @property
    def first_us(self) -> int:
        """The time of the oldest event; 0 if there is none."""
        return self._times[0] if self._times else 0

    @property
    def last_us(self) -> int:
        """The time of the newest event; 0 if there is none."""
        return self._times[-1] if self._times else 0


class Truth:
    """Every event that the reference connection received, by account and by collection."""

    def __init__(self) -> None:
        self.everything = Series()
        self._collections: dict[str, Series] = {}  # "" for identity and account events
        self._dids: dict[str, Series] = {}
        # The series of which each filter is the sum. Cleared when a collection or an account is new.
        self._matching: dict[Wanted, list[Series]] = {}

    @property
    def dids(self) -> list[str]:
        """The accounts of the events so far."""
        return list(self._dids)

    def add(self, time_us: int, size: int, did: str, collection: str) -> None:
        """Append an event; `collection` is empty for identity and account events."""
        self.everything.add(time_us, size)
        for index, key in ((self._dids, did), (self._collections, collection)):
            series = index.get(key)
            if series is None:
                series = index[key] = Series()
                self._matching.clear()
            series.add(time_us, size)

    def amount(self, wanted: Wanted, first_us: int, stop_us: int) -> Amount:
        """Return how much of `[first_us, stop_us)` a filter lets through."""
        events = size = 0
        for series in self._series(wanted):
            amount = series.amount(first_us, stop_us)
            events += amount.events
            size += amount.size
        return Amount(events, size)

    def _series(self, wanted: Wanted) -> list[Series]:
        assert not (wanted.dids and wanted.collections), "no mix combines the two"
        if wanted not in self._matching:
            if wanted.dids:
                found = [self._dids[did] for did in wanted.dids if did in self._dids]
            elif wanted.collections:
                found = [self._collections[name] for name in self._collections if wanted.wants("", name)]
            else:
                found = [self.everything]
            self._matching[wanted] = found
        return self._matching[wanted]


class Findings:
    """Errors in what subscribers received."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by kind
        self.examples: list[str] = []  # sentences: the first few of each kind

    def add(self, kind: str, sentence: str) -> None:
        """Count an error."""
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES_MAX:
            self.examples.append(f"{kind}: {sentence}")
