"""The newest events, kept in memory: what a reader at the tip is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from jetstream.eventlog.erase import without
from jetstream.model.batch import Batch, memory_bytes

# A batch this long is given to a reader in one piece, and is the unit of what is dropped here.
BATCH_EVENTS: Final = 1_000
# The same by text (see `Batch.text_bytes`). A thousand ordinary events have half of it.
BATCH_BYTES: Final = 1 << 20
# Some seconds of an ordinary day: a reader that is a little late is still served from here.
EVENTS_MAX: Final = 8_000
# Of memory. So many ordinary events take a third of it; of records of 900 kB it has room for the newest 26.
BYTES_MAX: Final = 24 << 20


@dataclass(slots=True)
class _Piece:
    """One batch of the window."""

    batch: Batch = field(default_factory=lambda: Batch.of((), ()))
    text_bytes: int = 0  # grows with the batch


class Recent:
    """The newest events as batches of which the last one grows, bounded by count and by memory.

    Every event of the log at or after `start` is here. `start` only rises. The newest batch always stays.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self._pieces: deque[_Piece] = deque()
        self._events = 0  # in all pieces
        self._text_bytes = 0  # in all pieces

    @property
    def memory_bytes(self) -> int:
        """About how much memory the window takes."""
        return memory_bytes(self._events, self._text_bytes)

    def append(self, batch: Batch) -> None:
        """Take in events that follow what is here; the oldest batches make room."""
        size = batch.text_bytes()
        if size <= BATCH_BYTES:
            self._append(batch, size)
        else:
            for part in batch.parts(BATCH_BYTES):
                self._append(part, part.text_bytes())
        while len(self._pieces) > 1 and (self._events > EVENTS_MAX or self.memory_bytes > BYTES_MAX):
            self._drop_oldest()

    def at(self, position: int, stop: int) -> Batch | None:
        """Return the batch with the first event in `[position, stop)`; `position` is not below `start`."""
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
        """Return what is here, from the end."""
        return (piece.batch for piece in reversed(self._pieces))

    def drop_before(self, position: int) -> None:
        """Let go of the batches whose events are all below `position`."""
        while self._pieces and self._pieces[0].batch.last < position:
            self._drop_oldest()

    def forget(self, gone: Mapping[bytes, int]) -> None:
        """Drop the records that each of these repos made before it went."""
        for piece in self._pieces:
            kept = without(piece.batch, gone)
            if kept is not None:
                self._events += len(kept) - len(piece.batch)
                self._text_bytes -= piece.text_bytes
                piece.batch, piece.text_bytes = kept, kept.text_bytes()
                self._text_bytes += piece.text_bytes
        self._pieces = deque(piece for piece in self._pieces if len(piece.batch))

    def _append(self, batch: Batch, text_bytes: int) -> None:
        if not self._pieces or not _has_room(self._pieces[-1], text_bytes):
            self._pieces.append(_Piece())
        piece = self._pieces[-1]
        piece.batch.extend(batch)
        piece.text_bytes += text_bytes
        self._events += len(batch)
        self._text_bytes += text_bytes

    def _drop_oldest(self) -> None:
        piece = self._pieces.popleft()
        self.start = piece.batch.last + 1
        self._events -= len(piece.batch)
        self._text_bytes -= piece.text_bytes


def _has_room(piece: _Piece, text_bytes: int) -> bool:
    return len(piece.batch) < BATCH_EVENTS and piece.text_bytes + text_bytes <= BATCH_BYTES
