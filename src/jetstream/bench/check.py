"""What a subscriber must get, told by a connection that gets everything: pure.

`Truth` keeps the times and sizes of all events that the unfiltered reference connection saw. From that
follows, for any filter and any range of time, how many events and how many bytes a subscriber must have got.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from typing import Final, NamedTuple

from jetstream.bench.mix import Wanted

EXAMPLES_MAX: Final = 3  # of what was wrong, kept to be shown


class Amount(NamedTuple):
    """Events, and the bytes of their frames, heads included."""

    events: int
    size: int


class Series:
    """The times and sizes of some events, in order."""

    __slots__ = ("_times", "_totals")

    def __init__(self) -> None:
        self._times = array("Q")
        self._totals = array("Q", [0])

    def add(self, time_us: int, size: int) -> None:
        """Append an event that is newer than all before."""
        self._times.append(time_us)
        self._totals.append(self._totals[-1] + size)

    def amount(self, first_us: int, stop_us: int) -> Amount:
        """Return what stands in `[first_us, stop_us)`."""
        first, stop = bisect_left(self._times, first_us), bisect_left(self._times, stop_us)
        return Amount(max(stop - first, 0), max(self._totals[stop] - self._totals[first], 0))

    @property
    def first_us(self) -> int:
        """The time of the oldest event; 0 where there is none."""
        return self._times[0] if self._times else 0

    @property
    def last_us(self) -> int:
        """The time of the newest event; 0 where there is none."""
        return self._times[-1] if self._times else 0


class Truth:
    """Every event of the reference connection, so that any filter's part can be told."""

    def __init__(self) -> None:
        self.everything = Series()
        self._collections: dict[str, Series] = {}
        self._dids: dict[str, Series] = {}
        self._chosen: dict[Wanted, list[Series]] = {}

    @property
    def dids(self) -> list[str]:
        """The accounts heard of so far."""
        return list(self._dids)

    def add(self, time_us: int, size: int, did: str, collection: str) -> None:
        """Append an event; `collection` is empty for identities and accounts."""
        self.everything.add(time_us, size)
        for index, key in ((self._dids, did), (self._collections, collection)):
            series = index.get(key)
            if series is None:
                series = index[key] = Series()
                self._chosen.clear()
            series.add(time_us, size)

    def amount(self, wanted: Wanted, first_us: int, stop_us: int) -> Amount:
        """Return what a filter of one kind lets through of `[first_us, stop_us)`."""
        events = size = 0
        for series in self._series(wanted):
            amount = series.amount(first_us, stop_us)
            events += amount.events
            size += amount.size
        return Amount(events, size)

    def _series(self, wanted: Wanted) -> list[Series]:
        assert not (wanted.dids and wanted.collections), "no mix combines the two"
        if wanted not in self._chosen:
            if wanted.dids:
                found = [self._dids[did] for did in wanted.dids if did in self._dids]
            elif wanted.collections:
                found = [self._collections[name] for name in self._collections if wanted.wants("", name)]
            else:
                found = [self.everything]
            self._chosen[wanted] = found
        return self._chosen[wanted]


class Findings:
    """What was wrong, counted by kind, with the first few of each in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def note(self, kind: str, words: str) -> None:
        """Count something that is wrong."""
        self.counts[kind] += 1
        if self.counts[kind] <= EXAMPLES_MAX:
            self.examples.append(f"{kind}: {words}")
