"""Reading the database: the statements of a scan.

`eventlog.reader` has what a scan does. Each of its statements is a snapshot of its own. What sealing moves
between two of them is noticed: every segment and row names the position that it follows, and a scan that
finds something missing raises Hole.

What does not match its checksum is skipped. So is a segment whose columns the database itself finds damaged.
Where it cannot read the keys of a table any more, its error is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import asyncpg

from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.postgresql.schema import NOTHING, SEALED, read_row
from jetstream.eventlog.reader import Hole, Index, Row, Scan, StoredReader
from jetstream.limits import LogLimits

# A session may read from another replica than the one before, which may be behind it. So each statement says
# which erasures it has seen.
_REVISION: Final = "(SELECT revision FROM state)"
_INDEXES: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN $1::boolean THEN did_bits END, follows_us,"
    f" {_REVISION} FROM segment WHERE last_us >= $2 ORDER BY last_us LIMIT $3"
)
# The same rows without what may be damaged.
_RANGES: Final = (
    f"SELECT last_us, first_us, ''::bytea, ''::bytea, follows_us, {_REVISION}"
    " FROM segment WHERE last_us >= $1 ORDER BY last_us LIMIT $2"
)
_COLUMNS: Final = (
    f"SELECT {_REVISION}, events, times, kinds, dids, collections, rkeys, revs, cids, bodies"
    " FROM segment WHERE last_us = $1"
)
_FIRST: Final = "SELECT least(first_us, last_us) FROM segment WHERE last_us = $1"
_DIDS: Final = "SELECT dids FROM segment WHERE last_us = $1"
_ACCOUNTS: Final = "SELECT accounts FROM segment WHERE last_us = $1"
_KEYS: Final = (
    "SELECT dids, collections, rkeys, revs, accounts FROM segment WHERE last_us = $1 AND events > 0"
)
_NEWEST: Final = (
    "SELECT last_us, did_bits FROM segment WHERE last_us < $1 AND events > 0 ORDER BY last_us DESC LIMIT $2"
)
_OLDEST: Final = "SELECT last_us FROM segment WHERE last_us >= $1 AND first_us < $2 ORDER BY last_us LIMIT $3"
# Rows of the tail that cover a part of a range, and are not sealed. A row covers what is between the row
# before it and its end.
_TAIL: Final = (
    f"SELECT last_us, first_us, events, data, follows_us, {_REVISION} FROM tail"
    " WHERE last_us >= $1 AND follows_us < $2::bigint - 1 AND first_us <= last_us"
    f" AND last_us > {SEALED} ORDER BY last_us LIMIT $3"
)
# Indexes that the statements of one scan read. The first segment is most often the one that is wanted.
_STEPS: Final = (1, 7)
_TAIL_ROWS: Final = 64
# What the database says of stored bytes that are not what it has written.
_CORRUPTED: Final = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)


class DatabaseReader(StoredReader):
    """Reads through `fetch`, which returns the rows of a statement, as of `revision` at least.

    If it is `strict`, damage is raised and not skipped: Damaged, or an error of asyncpg.
    """

    errors = (Damaged, *_CORRUPTED)

    def __init__(
        self, fetch: Callable[..., list[Any]], limits: LogLimits, revision: int, *, strict: bool = False
    ) -> None:
        """Read with `fetch`, which may block. Answers from before `revision` are refused."""
        super().__init__(limits, strict=strict)
        self._fetch = fetch
        self._revision = revision

    def is_damage(self, error: Exception) -> bool:
        """Tell whether an error means that something is damaged."""
        return isinstance(error, self.errors)

    def indexes(self, position: int, *, with_dids: bool) -> Iterable[Index]:
        """Return the next segments that end at or after a position.

        They are read in growing steps, so that a reader who wants the first segment does not wait for 64
        indexes. Raises Hole for an answer that is too old.
        """
        left = self.limits.scan_segments
        steps = [*_STEPS, left]
        for step in steps:
            count = min(step, left)
            rows = self._indexes(position, count, with_dids=with_dids)
            for *index, revision in rows:
                self._require(revision, position)
                yield Index(*index)
            left -= count
            if len(rows) < count or not left:
                return
            position = rows[-1][0] + 1

    def _indexes(self, position: int, count: int, *, with_dids: bool) -> list[Any]:
        """Return rows of indexes. Where one is damaged, all are empty, so that the segments are loaded."""
        try:
            return self._fetch(_INDEXES, with_dids, position, count)
        except _CORRUPTED:
            if self._strict:
                raise
            return self._fetch(_RANGES, position, count)

    def dids(self, last_us: int) -> bytes:
        """Return the DIDs of a segment, compressed."""
        return self._value(_DIDS, last_us)

    def accounts(self, last_us: int) -> bytes:
        """Return the events without a collection of a segment, compressed."""
        return self._value(_ACCOUNTS, last_us)

    def columns(self, last_us: int) -> Sequence[Any] | None:
        """Return the number of events of a segment, and its columns; None if all of them were erased.

        Raises Hole if it was trimmed.
        """
        rows = self._fetch(_COLUMNS, last_us)
        if not rows:
            raise Hole(last_us)
        revision, *columns = tuple(rows[0])
        self._require(revision, last_us)
        return columns if columns[0] else None

    def first_us(self, last_us: int) -> int:
        """Return where a damaged segment starts."""
        rows = self._fetch(_FIRST, last_us)
        return int(rows[0][0]) if rows else last_us

    def keys_of(self, last_us: int) -> Sequence[bytes] | None:
        """Return what makes the keys of a segment, compressed."""
        rows = self._fetch(_KEYS, last_us)
        return tuple(rows[0]) if rows else None

    def newest(self, below: int) -> Sequence[tuple[int, bytes]]:
        """Return the keys and Bloom filters of segments below a key, newest first."""
        return [tuple(row) for row in self._fetch(_NEWEST, below, self.limits.scan_segments)]

    def oldest(self, position: int, stop: int) -> Sequence[int]:
        """Return the keys of segments with events in a range, oldest first."""
        return [row[0] for row in self._fetch(_OLDEST, position, stop, self.limits.scan_segments)]

    def tail_rows(self, position: int, stop: int) -> Iterator[Row]:
        """Yield the rows of the tail that are not sealed and cover a part of `[position, stop)`, in order.

        One that is damaged has no events: what follows it must not seem to be missing.
        """
        while position < stop:
            rows = self._fetch(_TAIL, position, stop, _TAIL_ROWS)
            for *stored, revision in rows:
                self._require(revision, position)
                yield self._row(stored)
            if len(rows) < _TAIL_ROWS:
                return
            position = rows[-1][0] + 1

    def _row(self, stored: Sequence[Any]) -> Row:
        """Take a row of the tail. A damaged one is noted, and has no events."""
        try:
            return read_row(stored)
        except Damaged as error:
            last_us, first_us, _, _, follows_us = stored
            self.note_damage(first_us, last_us, error)
            return Row(last_us, first_us, 0, NOTHING, follows_us)

    def _end_of_tail(self, position: int, stop: int) -> Scan:
        """Raise Hole where the tail ends below what was shown: what is missing was moved."""
        if position < stop:
            raise Hole(position)
        return stop, None

    def _value(self, statement: str, last_us: int) -> bytes:
        """Return the one value of a statement about a segment. Raises Hole if that was trimmed."""
        rows = self._fetch(statement, last_us)
        if not rows:
            raise Hole(last_us)
        value: bytes = rows[0][0]
        return value

    def _require(self, revision: int, position: int) -> None:
        """Raise Hole for an answer from before the newest erasure that was seen."""
        if revision < self._revision:
            raise Hole(position)
