"""`Batch`: a run of stamped events as columns.

Events are single values only while a frame is decoded. From the stamp on they are columns: a filter is one
pass over one column, rendering is one `zip` of all, storing is one `join` for each. A batch is shared by
everyone who reads that part of the log.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jetstream.model.event import Event

# What CPython takes for one event in a batch, without the text of its long values: its time, and seven values
# of which a collection is often shared.
EVENT_BYTES: Final = 450


@dataclass(slots=True, weakref_slot=True, eq=False, repr=False)
class Batch:
    """Consecutive events of one log, as columns of equal length; `times` rises strictly.

    A batch only ever grows at its end. So a range that was seen once stays as it was, and readers may share
    it. The columns are those of `Event`; the batch owns the lists.
    """

    times: list[int]  # `time_us` of each event
    kinds: list[bytes]
    dids: list[bytes]
    collections: list[bytes]
    rkeys: list[bytes]
    revs: list[bytes]
    cids: list[bytes]
    bodies: list[bytes]

    @classmethod
    def of(cls, events: Sequence[Event], times: Iterable[int]) -> Batch:
        """Give each event its time, in order."""
        columns = zip(*events, strict=True) if events else ((),) * 7
        return cls(list(times), *map(list, columns))

    def __len__(self) -> int:
        return len(self.times)

    @property
    def first(self) -> int:
        """The `time_us` of the first event. Raises IndexError on an empty batch."""
        return self.times[0]

    @property
    def last(self) -> int:
        """The `time_us` of the last event. Raises IndexError on an empty batch."""
        return self.times[-1]

    def text_bytes(self) -> int:
        """Return the bytes of the values that may be long: DIDs (2,048), rkeys (512) and bodies (990,000).

        The others are within `EVENT_BYTES`, or at most 400 bytes more: a collection has up to 317 and is
        mostly shared, a CID up to 200, a rev 13. Every source of events bounds them so.
        """
        return sum(map(len, self.bodies)) + sum(map(len, self.dids)) + sum(map(len, self.rkeys))

    def parts(self, text_bytes_max: int) -> Iterator[Batch]:
        """Yield the batch in parts of at most `text_bytes_max`, or of one event that is longer."""
        start = size = 0
        for i, texts in enumerate(zip(self.dids, self.rkeys, self.bodies, strict=True)):
            length = sum(map(len, texts))
            if size + length > text_bytes_max and i > start:
                yield self._part(start, i)
                start, size = i, 0
            size += length
        yield self._part(start, len(self))

    def index(self, position: int) -> int:
        """Return the index of the first event at or after `position`; the length if there is none."""
        return bisect_left(self.times, position)

    def event(self, index: int) -> Event:
        """Return one event as a value."""
        _, *columns = self._columns()
        return Event(*(column[index] for column in columns))

    def picked(self, indices: Sequence[int]) -> Batch:
        """Return a copy with the events of these indices, in their order."""
        return Batch(*([column[i] for i in indices] for column in self._columns()))

    def extend(self, later: Batch) -> None:
        """Append events that follow this batch's."""
        assert not self.times or not later.times or later.first > self.last
        self.times += later.times
        self.kinds += later.kinds
        self.dids += later.dids
        self.collections += later.collections
        self.rkeys += later.rkeys
        self.revs += later.revs
        self.cids += later.cids
        self.bodies += later.bodies

    def since(self, position: int) -> Batch:
        """Return the events at or after `position`: the batch itself if these are all."""
        start = self.index(position)
        return self._part(start, len(self)) if start else self

    def _part(self, start: int, stop: int) -> Batch:
        return Batch(*(column[start:stop] for column in self._columns()))

    def _columns(self) -> tuple[list[Any], ...]:
        return (
            *(self.times, self.kinds, self.dids, self.collections),
            *(self.rkeys, self.revs, self.cids, self.bodies),
        )


def memory_bytes(events: int, text_bytes: int) -> int:
    """Return about how much memory so many events take, with the bytes of their long values."""
    return events * EVENT_BYTES + text_bytes
