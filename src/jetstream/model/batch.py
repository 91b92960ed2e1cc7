"""`Batch`: a run of stamped events as columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from jetstream.model.event import Event

# What CPython takes for one event in a batch, without the text of its long values: its time, and seven values
# of which a collection is often shared.
EVENT_BYTES: Final = 450


class Batch:
    """Consecutive events of one log, as columns of equal length; `times` rises strictly.

    A batch only ever grows at its end. So a range that was seen once stays as it was, and readers may share
    it.
    """

    __slots__ = (
        "__weakref__",  # for what is rendered of a batch, which is to go with it
        "bodies",
        "cids",
        "collections",
        "dids",
        "kinds",
        "revs",
        "rkeys",
        "times",
    )

    def __init__(
        self,
        times: Sequence[int],
        kinds: Sequence[bytes],
        dids: Sequence[bytes],
        collections: Sequence[bytes],
        rkeys: Sequence[bytes],
        revs: Sequence[bytes],
        cids: Sequence[bytes],
        bodies: Sequence[bytes],
    ) -> None:
        self.times = list(times)
        self.kinds = list(kinds)
        self.dids = list(dids)
        self.collections = list(collections)
        self.rkeys = list(rkeys)
        self.revs = list(revs)
        self.cids = list(cids)
        self.bodies = list(bodies)

    @classmethod
    def of(cls, events: Sequence[Event], times: Iterable[int]) -> Batch:
        """Give each event its time, in order."""
        kinds, dids, collections, rkeys, revs, cids, bodies = (
            zip(*events, strict=True) if events else ((),) * 7
        )
        return cls(list(times), kinds, dids, collections, rkeys, revs, cids, bodies)

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
        """Return the bytes of the values that may be long: DIDs (2,048), rkeys (512) and bodies (990,000)."""
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

    def _part(self, start: int, stop: int) -> Batch:
        return Batch(
            self.times[start:stop],
            self.kinds[start:stop],
            self.dids[start:stop],
            self.collections[start:stop],
            self.rkeys[start:stop],
            self.revs[start:stop],
            self.cids[start:stop],
            self.bodies[start:stop],
        )

    def index(self, position: int) -> int:
        """Return the index of the first event at or after `position`; the length if there is none."""
        return bisect_left(self.times, position)

    def event(self, index: int) -> Event:
        """Return one event as a value."""
        return Event(
            self.kinds[index],
            self.dids[index],
            self.collections[index],
            self.rkeys[index],
            self.revs[index],
            self.cids[index],
            self.bodies[index],
        )

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


def memory_bytes(events: int, text_bytes: int) -> int:
    """Return about how much memory so many events take, with the bytes of their long values."""
    return events * EVENT_BYTES + text_bytes
