"""The hot tail: the newest events in memory, from which readers near the tip are served.

It holds batches; new events are added to the last one until it is full. A reader at the tip is given that
growing batch, so that readers share it, and what is rendered of it, whatever sizes the appends had.

    file     … segments │ rows of the tail ──────────────────▶│
    memory          start ▶│ full batch │ full batch │ growing │◀ tip

The hot tail is independent of sealing: its events may be in the tail or already in a segment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from jetstream.eventlog.erase import Tombstones, without_erased
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch, memory_bytes


@dataclass(slots=True)
class _Piece:
    """One batch of the hot tail.

    An object of its own, since `erase` puts another batch in its place.
    """

    batch: Batch = field(default_factory=lambda: Batch.of((), ()))
    text_bytes: int = 0  # of the batch; grows with it


class HotTail:
    """The newest events as batches, bounded by their number and by memory. The newest batch always stays.

    Used by the event loop's thread only.

    The log that owns it calls `append` for each commit. `delivery` keeps what it renders with the
    batches, so that it goes with them.
    """

    def __init__(self, start: int, limits: LogLimits = LogLimits()) -> None:
        """Begin empty: every event of the log at or above `start` is going to be appended."""
        self._limits = limits
        # Every event of the log at or above this position is here. Only rises, when the oldest are dropped.
        self.start = start
        # The batches, oldest first. Only the last one grows.
        self._pieces: deque[_Piece] = deque()
        # Sums over all pieces.
        self._events = 0
        self._text_bytes = 0

    @property
    def memory_bytes(self) -> int:
        """About how much memory the events take."""
        return memory_bytes(self._events, self._text_bytes)

    def append(self, batch: Batch, text_bytes: int | None = None) -> None:
        """Add a copy of the next events, and drop the oldest batches above the bounds.

        `text_bytes` is that of the batch, from a caller that knows it.

        A batch that has more text than `LogLimits.batch_bytes` is added in parts, so that a reader never
        gets more at once. `batch` is not kept, and the caller may go on to use it.
        """
        size = batch.text_bytes() if text_bytes is None else text_bytes
        limits = self._limits
        if size <= limits.batch_bytes:
            self._append(batch, size)
        else:
            for part in batch.parts(limits.batch_bytes):
                self._append(part, part.text_bytes())
        while len(self._pieces) > 1 and (
            self._events > limits.hot_tail_events or self.memory_bytes > limits.hot_tail_bytes
        ):
            self._drop_oldest()

    def at(self, position: int, stop: int) -> Batch | None:
        """Return the batch with the first event in `[position, stop)`; `position` is not below `start`.

        The batch is shared and may still grow. It may begin before `position`. None: no event in the
        range, or none at all. The search goes from the newest batch, since most readers are at the tip.
        """
        assert position >= self.start
        first = None
        for piece in reversed(self._pieces):
            if piece.batch.last < position:
                break
            first = piece.batch
        if first is None or first.times[first.index(position)] >= stop:
            return None
        return first

    def newest_first(self) -> Iterator[Batch]:
        """Return the batches, the newest first."""
        return (piece.batch for piece in reversed(self._pieces))

    def drop_before(self, position: int) -> None:
        """Drop the batches whose events are all below `position`.

        Called when the floor has moved: readers that have such a batch keep it until they go on.
        """
        while self._pieces and self._pieces[0].batch.last < position:
            self._drop_oldest()

    def erase(self, tombstones: Tombstones) -> None:
        """Replace each batch that has erased records by one without them.

        A batch that lost events is another object: readers that have the old one may finish with it.
        `start` stays: what was erased is not anywhere else either.
        """
        for piece in self._pieces:
            kept = without_erased(piece.batch, tombstones)
            if kept is not None:
                piece.batch, piece.text_bytes = kept, kept.text_bytes()
        self._pieces = deque(piece for piece in self._pieces if len(piece.batch))
        self._events = sum(len(piece.batch) for piece in self._pieces)
        self._text_bytes = sum(piece.text_bytes for piece in self._pieces)

    def _append(self, batch: Batch, text_bytes: int) -> None:
        """Add events to the growing batch, or to a new one if that is full."""
        piece = self._pieces[-1] if self._pieces else None
        if (
            piece is None
            or len(piece.batch) >= self._limits.batch_events
            or piece.text_bytes + text_bytes > self._limits.batch_bytes
        ):
            self._pieces.append(piece := _Piece())
        piece.batch.extend(batch)
        piece.text_bytes += text_bytes
        self._events += len(batch)
        self._text_bytes += text_bytes

    def _drop_oldest(self) -> None:
        """Drop the oldest batch, and raise `start` above it."""
        piece = self._pieces.popleft()
        self.start = piece.batch.last + 1
        self._events -= len(piece.batch)
        self._text_bytes -= piece.text_bytes
