"""Reading the file: which segment or which rows of the tail come next, and their events.

A reader alternates two calls. `scan` reads the indexes of the next segments, and finds the first one that may
have wanted events; `load` reads that one's events. They are apart so that a loaded segment can come from the
cache, which all readers share.

A scan skips a segment by its index: the set of its collections, a Bloom filter of its DIDs, and copies of its
identity and account events. So a reader of a rare collection reads a few kilobytes of each segment, and no
events. A scan is bounded, and is a snapshot of its own, so that a reader who wants little does not hold back
checkpoints.

Everything here is synchronous, and takes a connection that no other thread uses at the same time. Without a
list for damage, damage raises Damaged or sqlite3.DatabaseError. With one, it is added and skipped.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from jetstream.eventlog.columns import Columns, Damaged, read_times
from jetstream.eventlog.segment import holds_collection, holds_did, may_hold_did, unpack_accounts, unseal
from jetstream.eventlog.sqlite.connection import snapshot
from jetstream.eventlog.sqlite.damage import Damage, damage_problem, next_key, next_readable
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter

_NOTHING: Final = Columns(*[b""] * 8)

# `did_bits` is most of an index, and is read only for a filter with DIDs.
_INDEXES: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN ? THEN did_bits END FROM segment"
    " WHERE last_us >= ? ORDER BY last_us LIMIT ?"
)
# Columns of one segment: its first position, its exact DIDs, its identity and account events, all its events.
_FIRST: Final = "SELECT first_us FROM segment WHERE last_us = ?"
_DIDS: Final = "SELECT dids FROM segment WHERE last_us = ?"
_ACCOUNTS: Final = "SELECT accounts FROM segment WHERE last_us = ?"
_COLUMNS: Final = (
    "SELECT events, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM segment WHERE last_us = ?"
)
# Rows of the tail that overlap a range.
_TAIL: Final = (
    "SELECT last_us, first_us, events, crc, times, kinds, dids, collections, rkeys, revs, cids, bodies"
    " FROM tail WHERE last_us >= ? AND first_us < ? ORDER BY last_us"
)


class Scan(NamedTuple):
    """The result of a scan: what comes next, and where to scan after that.

    `found` is the key of a segment to load, a batch, or None. Below `position`, nothing but `found` is
    wanted: the next scan starts there.
    """

    position: int
    found: int | Batch | None


class Row(NamedTuple):
    """One row of the tail: a batch as it was committed."""

    last_us: int
    first_us: int
    events: int
    columns: Columns

    @classmethod
    def read(cls, stored: Sequence[Any]) -> Row:
        """Take the values of a row of the table. Raises Damaged."""
        last_us, first_us, _, crc, *texts = stored
        columns = Columns(*texts)
        try:
            matches = columns.checksum() == crc
        except TypeError as error:  # not even bytes
            raise Damaged(str(error)) from error
        if not matches:
            raise Damaged("its checksum does not match")
        return cls(last_us, first_us, columns.events, columns)


class FileReader:
    """Reads through one connection. `damage` is the list to which damaged parts are added."""

    def __init__(
        self, connection: sqlite3.Connection, limits: LogLimits, damage: list[Damage] | None = None
    ) -> None:
        # For the modules that read in their own way; used by one thread at a time.
        self.connection = connection
        self.limits = limits
        # None: damage is raised.
        self._damage = damage

    def scan(self, position: int, stop: int, wanted: Filter) -> Scan:
        """Find the first stored events in `[position, stop)` that `wanted` may want.

        Gives up after `scan_segments` segments without any. Identity and account events of segments that have
        no other wanted events are collected into one batch. A segment whose index is damaged is found as one
        to load.
        """
        with snapshot(self.connection):
            seen = count = 0
            start = position
            accounts: list[Columns] = []  # of the segments so far that have no wanted commits
            try:
                for last_us, first_us, collection_set, did_bits in self.connection.execute(
                    _INDEXES, (bool(wanted.dids), position, self.limits.scan_segments)
                ):
                    if isinstance(first_us, int) and stop <= first_us <= last_us:
                        break
                    seen += 1
                    run = self._accounts_unless_wanted(last_us, collection_set, did_bits, wanted)
                    if run is None:
                        return Scan(position, _batch(accounts)) if accounts else Scan(last_us + 1, last_us)
                    if run.times and any(start <= time < stop for time in read_times(run.times)):
                        accounts.append(run)
                        count += run.events
                    position = last_us + 1
                    if count >= self.limits.batch_events:
                        break
            except sqlite3.DatabaseError as error:
                if self._damage is None or damage_problem(error) is None:
                    raise
                if not accounts:
                    return self._scan_damage(position, stop, self._damage)
            if accounts or seen == self.limits.scan_segments:
                return Scan(position, _batch(accounts) if accounts else None)
            return self._scan_tail(position, stop, wanted)

    def load(self, last_us: int) -> Batch | None:
        """Read the events of a segment, all of them, whatever the scan wanted.

        Returns None if it was trimmed since the scan, or is damaged.
        """
        try:
            row = self.connection.execute(_COLUMNS, (last_us,)).fetchone()
            if row is None:
                return None
            events, times, *texts = row
            return unseal(events, times, texts)
        except (Damaged, sqlite3.DatabaseError) as error:
            problem = damage_problem(error)
            if self._damage is None or problem is None:
                raise
            self._damage.append(Damage(self._first_us(last_us), last_us, problem))
            return None

    def tail_rows(self, position: int, stop: int) -> Iterator[Row]:
        """Yield the rows of the tail with events in `[position, stop)`, in order."""
        for stored in self.connection.execute(_TAIL, (position, stop)):
            try:
                yield Row.read(stored)
            except Damaged as error:
                if self._damage is None:
                    raise
                last_us, first_us, *_ = stored
                self._damage.append(Damage(min(first_us, last_us), last_us, str(error)))

    def _scan_damage(self, position: int, stop: int, damage: list[Damage]) -> Scan:
        """Continue where the index of the next segment cannot be read: with that one, or behind lost keys."""
        try:
            key = next_key(self.connection, position)
        except sqlite3.DatabaseError as error:
            behind = min(next_readable(self.connection, position), stop)
            damage.append(Damage(position, behind - 1, str(error)))
            return Scan(behind, None)
        return Scan(stop, None) if key is None else Scan(key + 1, key)

    def _first_us(self, last_us: int) -> int:
        """Return where a damaged segment starts, or its end if its row does not tell."""
        try:
            (first_us,) = self.connection.execute(_FIRST, (last_us,)).fetchone() or (last_us,)
        except sqlite3.DatabaseError:
            return last_us
        return min(first_us, last_us) if isinstance(first_us, int) else last_us

    def _accounts_unless_wanted(
        self, last_us: int, collection_set: bytes, did_bits: bytes, wanted: Filter
    ) -> Columns | None:
        """Return None for a segment to load, else its identity and account events as far as wanted."""
        try:
            if wanted.dids and not self._holds_did(last_us, did_bits, wanted):
                return _NOTHING
            if holds_collection(collection_set, wanted):
                return None
            (packed,) = self.connection.execute(_ACCOUNTS, (last_us,)).fetchone()
            return unpack_accounts(packed) or _NOTHING
        except (Damaged, sqlite3.DatabaseError) as error:
            if damage_problem(error) is None:
                raise
            return None  # the events are stored apart from the index, and may be undamaged

    def _holds_did(self, last_us: int, did_bits: bytes, wanted: Filter) -> bool:
        """Test the Bloom filter, and for a positive answer the column of DIDs, which is exact."""
        if not may_hold_did(did_bits, wanted):
            return False
        (dids,) = self.connection.execute(_DIDS, (last_us,)).fetchone()
        return holds_did(dids, wanted)

    def _scan_tail(self, position: int, stop: int, wanted: Filter) -> Scan:
        """Find the first batch of the tail that has wanted events."""
        while (batch := self._tail_batch(position, stop)) is not None:
            if wanted.select(batch, batch.index(position), batch.index(stop)):
                return Scan(batch.last + 1, batch)
            position = batch.last + 1
        return Scan(stop, None)

    def _tail_batch(self, position: int, stop: int) -> Batch | None:
        """Read rows of the tail until they are as long as a batch in memory."""
        runs: list[Columns] = []
        count = size = 0
        for row in self.tail_rows(position, stop):
            runs.append(row.columns)
            count += row.events
            size += len(row.columns.bodies)
            if count >= self.limits.batch_events or size >= self.limits.batch_bytes:
                break
        return _batch(runs) if runs else None


def _batch(runs: Iterable[Columns]) -> Batch:
    """Make one batch of runs of columns that follow each other."""
    return Columns.joined(runs).batch()
