"""What the cursor of a source says while messages wait: a low-water mark, and what is stored above it. Pure.

    numbers of one source   … 96  97  98  99  100  101  102
                                  ✓   ·   ✓   ✓    ·    ✓      ✓ stored or dropped, · waits
    its cursor              seq 97, stored_to 102, unstored (98, 101)

After a crash the source is resumed after 97: it sends 98 and 101 again, so nothing that waited is lost. What
comes with them is known to be stored, so nothing is taken twice. The law: every number up to `seq` is stored
or was dropped, those in `unstored` are not, and all others up to `stored_to` are.

A number may be used for several messages (`upstream.seq_tracker`). It is stored when all of them are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from jetstream.eventlog import SourceCursor


class Marks:
    """The cursors of all sources, less what waits.

    Messages of a source that was removed may still be judged. They do not bring its cursor back.
    """

    def __init__(self) -> None:
        self._marks: dict[str, _Mark] = {}  # by source, from `add` to `remove`

    def add(self, source: str, stored: SourceCursor | None) -> None:
        """Add a source, or one in its place; `stored` is its cursor in the log. None: there is none.

        What waits of the one before is counted still: it is not stored.
        """
        before = self._marks.get(source)
        self._marks[source] = _Mark(stored, Counter() if before is None else before.pending)

    def wait(self, source: str, seq: int) -> None:
        """Let the cursor of a source say that a message is not stored, because it waits.

        To be called before `advance` passes its number, and once for each message.
        """
        if (mark := self._marks.get(source)) is not None:
            mark.wait(seq)

    def settle(self, source: str, seq: int) -> None:
        """Let the cursor say that a message that waited is stored with the next append, or was dropped."""
        if (mark := self._marks.get(source)) is not None:
            mark.settle(seq)

    def advance(self, source: str, seq: int | None, provisional: int | None, fell_from: int | None) -> None:
        """Note how far a source was read: what its `SeqTracker` says after the messages that were judged.

        `wait` was called for those of them that wait. `seq` is None while nothing is known.
        """
        if (mark := self._marks.get(source)) is not None:
            mark.advance(None if seq is None else SourceCursor(seq, provisional, fell_from))

    def remove(self, source: str) -> None:
        """Forget a source and its cursor. Its messages that wait are not counted any more."""
        self._marks.pop(source, None)

    @property
    def cursors(self) -> Mapping[str, SourceCursor]:
        """The cursor of each source, as it is to be stored with the next append."""
        found = {source: mark.cursor() for source, mark in self._marks.items()}
        return {source: cursor for source, cursor in found.items() if cursor is not None}


class _Mark:
    """One source: how far it was read, what waits, and what an earlier process had stored."""

    def __init__(self, stored: SourceCursor | None, pending: Counter[int]) -> None:
        # What the tracker said last; None: nothing yet.
        self._read = None if stored is None else stored._replace(stored_to=None, unstored=())
        # What an earlier process had stored above `_read.seq`: up to the first number, without the second.
        # Both are over when `_read` has passed them, or when the numbers fall.
        self._stored_to = 0 if stored is None else stored.stored_to or stored.seq
        self._unstored = set(() if stored is None else stored.unstored)
        # The numbers of messages that wait, and how many messages have each.
        self.pending = pending
        # The cursor, None: something has changed since it was computed.
        self._cursor: SourceCursor | None = stored

    def wait(self, seq: int) -> None:
        """Count a message that waits. What an earlier process had not stored of this number has come now."""
        self.pending[seq] += 1
        self._unstored.discard(seq)
        self._cursor = None

    def settle(self, seq: int) -> None:
        """Count a message that waits no longer. Its number is stored when no other message of it waits."""
        self.pending[seq] -= 1
        if self.pending[seq] <= 0:
            del self.pending[seq]
        self._cursor = None

    def advance(self, read: SourceCursor | None) -> None:
        """Take how far the source was read; None: nothing is known.

        Numbers that fall begin a new sequence. Then what was stored of the old one says nothing any more.
        """
        before, self._read = self._read, read
        if read is None or (before is not None and read.seq < before.seq) or read.seq >= self._stored_to:
            self._stored_to = 0
            self._unstored.clear()
        self._cursor = None

    def cursor(self) -> SourceCursor | None:
        """Return the cursor to store. None: nothing is known yet."""
        if self._cursor is None and self._read is not None:
            self._cursor = self._compute(self._read) if self.pending or self._stored_to else self._read
        return self._cursor

    def _compute(self, read: SourceCursor) -> SourceCursor:
        """Return the cursor with what waits: below the lowest number that is not stored.

        `unstored` has what waits, and what an earlier process had not stored and has not come yet.
        """
        last, provisional, fell_from, _, _ = read
        stored_to = max(last, self._stored_to)
        later = {seq for seq in self._unstored if seq > last}
        unstored = sorted(later.union(seq for seq in self.pending if seq <= stored_to))
        low = min(last, unstored[0] - 1) if unstored else last
        if provisional in self.pending:
            provisional = None  # it is not in the log
        return SourceCursor(
            low, provisional, fell_from, stored_to if stored_to > low else None, tuple(unstored)
        )
