"""Reading stored events: which segment or which rows of the tail come next, and their events.

A reader alternates two calls. `scan` reads the indexes of the next segments, and finds the first one that may
have wanted events; `load` reads that one's events. They are apart so that a loaded segment can come from the
cache, which all readers share.

A scan skips a segment by its index: the set of its collections, a Bloom filter of its DIDs, and copies of its
events without a collection. So a reader of a rare collection, or of these kinds alone, reads a few kilobytes
of each segment, and no other events.

What is damaged is noted and skipped, unless a reader is strict: then it is raised.

This module knows no engine: a subclass reads the rows of `eventlog.sqlite` or `eventlog.postgresql`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from jetstream.eventlog.columns import Columns, Damaged, read_times
from jetstream.eventlog.damage import Damage
from jetstream.eventlog.segment import (
    holds_collection,
    holds_did,
    may_hold_did,
    text_bytes,
    unpack_accounts,
    unseal,
)
from jetstream.eventlog.segment_cache import Loaded
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch, memory_bytes
from jetstream.model.filter import Filter

POSITION_MAX: Final = (
    1 << 63
) - 1  # an upper bound of every position: databases have signed integers of 64 bits
# The columns of no event: what a skipped segment adds to a scan.
_NOTHING: Final = Columns(*[b""] * 8)

# The result of a scan: where to scan next, and the only thing below that which may be wanted: the key of a
# segment to load, a batch, or None.
Scan = tuple[int, int | Batch | None]


class Hole(Exception):
    """What follows a position is not there. It is read again later: no reader steps over it.

    Only a log in PostgreSQL has holes: its statements are snapshots of their own, and a replica may be
    behind. `position` is where the reader stands.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(f"what follows position {position} cannot be read yet")


class Row(NamedTuple):
    """One row of the tail: a batch as it was committed.

    A row of SQLite has at least one event. One of PostgreSQL may have none: it has cursors or states
    only, or is damaged.
    """

    # The key of the row: the position of its last event when it was written. It stays after erasing.
    last_us: int
    first_us: int
    events: int
    columns: Columns
    # The end of the row before it; -1 where the tail cannot have holes.
    follows_us: int = -1


class Index(NamedTuple):
    """What a scan reads of a segment. `follows_us` is the end of the segment before it, or -1.

    The two columns are compressed, as `segment` writes them. `did_bits` is None if no DIDs are wanted.
    """

    last_us: int
    first_us: int
    collection_set: bytes
    did_bits: bytes
    follows_us: int = -1


class StoredReader(ABC):
    """Reads through one connection, which no other thread uses at the same time.

    Its methods wait for the disk or the network. So the event loop calls them in a thread, except for
    rows of a file that were written a moment ago.
    """

    def __init__(self, limits: LogLimits, *, strict: bool = False) -> None:
        # How much one call reads.
        self.limits = limits
        # What was skipped. The owner of the reader takes it from here.
        self.damage: list[Damage] = []
        # Whether damage is raised, and not skipped.
        self._strict = strict

    # What an engine reads

    @abstractmethod
    def indexes(self, position: int, *, with_dids: bool) -> Iterable[Index]:
        """Return the next segments that end at or after a position, `scan_segments` at most."""

    @abstractmethod
    def dids(self, last_us: int) -> bytes:
        """Return the DIDs of a segment, compressed.

        A scan has found the segment before: it is there in the same snapshot, or the engine raises Hole.
        """

    @abstractmethod
    def accounts(self, last_us: int) -> bytes:
        """Return the events without a collection of a segment, compressed."""

    @abstractmethod
    def columns(self, last_us: int) -> Sequence[Any] | None:
        """Return the number of events of a segment, and its columns; None if there is no such segment."""

    @abstractmethod
    def tail_rows(self, position: int, stop: int) -> Iterator[Row]:
        """Yield the rows of the tail with events in `[position, stop)`, in order.

        Damaged rows are noted. An engine may leave them out, or yield them without events.
        """

    @abstractmethod
    def keys_of(self, last_us: int) -> Sequence[bytes] | None:
        """Return `dids`, `collections`, `rkeys`, `revs` and `accounts` of a segment, compressed.

        None if there is no such segment. For `lookup`, which needs no bodies.
        """

    @abstractmethod
    def newest(self, below: int) -> Sequence[tuple[int, bytes]]:
        """Return the keys and Bloom filters of `scan_segments` segments below a key, newest first."""

    @abstractmethod
    def oldest(self, position: int, stop: int) -> Sequence[int]:
        """Return the keys of `scan_segments` segments with events in `[position, stop)`, oldest first."""

    @abstractmethod
    def first_us(self, last_us: int) -> int:
        """Return where a damaged segment starts, or its end if its row does not tell."""

    # What may be raised where something is damaged. `is_damage` tells whether it is.
    errors: tuple[type[Exception], ...] = (Damaged,)

    def is_damage(self, error: Exception) -> bool:
        """Tell whether an error means that something is damaged."""
        return isinstance(error, Damaged)

    def snapshot(self) -> AbstractContextManager[None]:
        """Let all statements inside read the same commit, where an engine needs it."""
        return nullcontext()

    # Reading

    def scan(self, position: int, stop: int, wanted: Filter) -> Scan:
        """Find the first stored events in `[position, stop)` that `wanted` may want.

        Gives up after `scan_segments` segments without any. Events without a collection, of segments that
        have no other wanted events, are collected into one batch. Raises Hole.
        """
        found = Collected(position, stop, self.limits)
        with self.snapshot():
            return self._scan_segments(found, wanted) or self._scan_tail(found.position, stop, wanted)

    def _scan_segments(self, found: Collected, wanted: Filter) -> Scan | None:
        """Scan segments; return None if the scan goes on with the tail.

        `found` collects the events without a collection on the way, and moves on with each segment. Where
        a segment is to be loaded and `found` has events already, these are returned first: the next scan
        finds the segment.
        """
        for index in self.indexes(found.position, with_dids=wanted.names_dids):
            if index.follows_us >= found.position:
                raise Hole(found.position)
            if found.stop <= index.first_us <= index.last_us:
                return found.end() or (found.stop, None)
            run = self._accounts_unless_wanted(index, wanted)
            if run is None:
                return found.end() or (index.last_us + 1, index.last_us)
            if found.is_full_with(index.last_us, run):
                break
        return found.end()

    def load(self, last_us: int) -> Batch | None:
        """Read the events of a segment, all of them, whatever the scan wanted.

        Returns None if it was trimmed since the scan.
        """
        loaded = self.load_measured(last_us)
        return None if loaded is None else loaded.batch

    def load_measured(self, last_us: int) -> Loaded | None:
        """Do so, and tell how much memory they take. Counting the bytes of all values takes 0.3 ms.

        Returns None for a damaged segment, too.

        Damage is noted in `damage`, or raised by a strict reader.
        """
        try:
            row = self.columns(last_us)
            return None if row is None else measured(*row)
        except self.errors as error:
            self.note_damage(self.first_us(last_us), last_us, error)
            return None

    def note_damage(self, first_us: int, last_us: int, error: Exception) -> None:
        """Note a range that cannot be read. Raises the error again if it is no damage, or if strict."""
        if self._strict or not self.is_damage(error):
            raise error
        self.damage.append(Damage(first_us, last_us, str(error)))

    def tail_run(self, position: int, stop: int, events: int, body_bytes: int) -> tuple[list[Row], bool]:
        """Read rows of the tail in a range until they have so many events or bytes; tell if they have.

        `events` and `body_bytes` are what is wanted at least, so the last row may exceed them. False: the
        tail has no more in this range, and what it has is less.
        """
        rows: list[Row] = []
        for row in self.tail_rows(position, stop):
            rows.append(row)
            events -= row.events
            body_bytes -= len(row.columns.bodies)
            if events <= 0 or body_bytes <= 0:
                return rows, True
        return rows, False

    def _accounts_unless_wanted(self, index: Index, wanted: Filter) -> Columns | None:
        """Return None for a segment to load, else its events without a collection, as far as wanted.

        One whose index is damaged is to be loaded: its events are stored apart from it.
        """
        try:
            return self._wanted_accounts(index, wanted)
        except self.errors as error:
            if not self.is_damage(error):
                raise
            return None

    def _wanted_accounts(self, index: Index, wanted: Filter) -> Columns | None:
        """Do so. Raises one of `errors`."""
        if wanted.names_dids and not self._holds_did(index, wanted):
            return _NOTHING
        if holds_collection(index.collection_set, wanted):
            return None
        if not wanted.wants_collection(b""):
            return _NOTHING
        return unpack_accounts(self.accounts(index.last_us)) or _NOTHING

    def _holds_did(self, index: Index, wanted: Filter) -> bool:
        """Test the Bloom filter, and for a positive answer the column of DIDs, which is exact."""
        return may_hold_did(index.did_bits, wanted) and holds_did(self.dids(index.last_us), wanted)

    def _scan_tail(self, position: int, stop: int, wanted: Filter) -> Scan:
        """Find the first batch of the tail that has wanted events.

        Rows are read in batches of `LogLimits.batch_events` events or `batch_bytes` of bodies, and made
        one batch each, until one has wanted events. Raises Hole where a row does not follow the one
        before it.
        """
        limits = self.limits
        while rows := self.tail_run(position, stop, limits.batch_events, limits.batch_bytes)[0]:
            batch, after = joined(row.columns for row in rows if row.events), position
            for row in rows:
                if row.follows_us >= after:
                    raise Hole(after)
                after = row.last_us + 1
            if wanted.select(batch, batch.index(position), batch.index(stop)):
                return after, batch
            position = after
        return self._end_of_tail(position, stop)

    def _end_of_tail(self, _position: int, stop: int) -> Scan:
        """Return where to go on when the tail has no more rows in a range.

        PostgreSQL raises Hole instead: there, rows may have been moved since the scan began.
        """
        return stop, None


class Collected:
    """The events without a collection of the segments of one scan.

    It is bounded like a batch in memory, so that no reader gets more at once.
    """

    def __init__(self, position: int, stop: int, limits: LogLimits) -> None:
        # Where the scan began, up to where it has come, and where it ends at the latest.
        self._start, self.position = position, position
        self.stop = stop
        self._limits = limits
        # How many segments were added, what they had, and its size.
        self._seen = self._events = self._size = 0
        self._runs: list[Columns] = []

    def is_full_with(self, last_us: int, run: Columns) -> bool:
        """Add what a segment has, and tell whether that is enough for a batch.

        Events outside the range of the scan count only if others of the segment are inside: then the
        whole run is kept.
        """
        self._seen += 1
        if run.times and any(self._start <= time < self.stop for time in read_times(run.times)):
            self._runs.append(run)
            self._events, self._size = self._events + run.events, self._size + run.size
        self.position = last_us + 1
        return self._events >= self._limits.batch_events or self._size >= self._limits.batch_bytes

    def end(self) -> Scan | None:
        """Return the result of a scan that ends here; None if it goes on with the tail.

        A scan that has seen `scan_segments` segments without anything ends with no batch.
        """
        if self._runs:
            return self.position, joined(self._runs)
        return (self.position, None) if self._seen == self._limits.scan_segments else None


def joined(runs: Iterable[Columns]) -> Batch:
    """Make one batch of runs of columns that follow each other; none at all make an empty one."""
    runs = list(runs)
    return Columns.joined(runs).batch() if runs else Batch.of((), ())


def measured(events: int, times: bytes, *texts: bytes) -> Loaded:
    """Return the events of a segment, and how much memory they take. Raises Damaged."""
    return Loaded(unseal(events, times, texts), memory_bytes(events, text_bytes(events, texts)))
