"""The newest events, kept in memory: what a reader at the tip is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from jetstream.events import Batch
from jetstream.log.forget import without

# A batch this long is given to a reader in one piece, and is the unit of what is dropped here.
BATCH_EVENTS: Final = 1_000
# Some seconds of an ordinary day: a reader that is a little late is still served from here.
EVENTS_MAX: Final = 8_000
# Ordinary bodies take 3.5 MiB for that many events; this bounds it when records of 1 MiB come.
BYTES_MAX: Final = 16 * 1024 * 1024


class Recent:
    """The newest events as batches of which the last one grows, bounded by count and by bytes.

    Every event of the log at or after `start` is here. `start` only rises.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._batches: deque[Batch] = deque()
        self._bytes: deque[int] = deque()  # of the bodies, by batch

    def append(self, batch: Batch) -> None:
        """Take in events that follow what is here; the oldest batches make room."""
        if not self._batches or len(self._batches[-1]) >= BATCH_EVENTS:
            self._batches.append(Batch.of((), ()))
            self._bytes.append(0)
        self._batches[-1].extend(batch)
        self._bytes[-1] += sum(map(len, batch.bodies))
        while len(self._batches) > 1 and self._too_much():
            self._drop_oldest()

    def at(self, position: int, stop: int) -> Batch | None:
        """Return the batch with the first event in `[position, stop)`; `position` is not below `start`."""
        assert position >= self.start
        first = None
        for batch in reversed(self._batches):
            if batch.last < position:
                break
            first = batch
        if first is None or first.times[first.index(position)] >= stop:
            return None
        return first

    def newest_first(self) -> Iterator[Batch]:
        """Return what is here, from the end."""
        return reversed(self._batches)

    def drop_before(self, position: int) -> None:
        """Let go of the batches whose events are all below `position`."""
        while self._batches and self._batches[0].last < position:
            self._drop_oldest()

    def forget(self, gone: Mapping[bytes, int]) -> None:
        """Drop the records that each of these repos made before it went."""
        scrubbed = [(batch, without(batch, gone)) for batch in self._batches]
        left = [batch if kept is None else kept for batch, kept in scrubbed]
        self._batches = deque(batch for batch in left if len(batch))
        self._bytes = deque(sum(map(len, batch.bodies)) for batch in self._batches)

    def _too_much(self) -> bool:
        return sum(map(len, self._batches)) > EVENTS_MAX or sum(self._bytes) > BYTES_MAX

    def _drop_oldest(self) -> None:
        self.start = self._batches.popleft().last + 1
        self._bytes.popleft()
