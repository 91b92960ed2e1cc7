"""Reading the file for one reader: which segment or which rows of the tail come next, and their events.

A reader alternates two calls. `scan` reads the indexes of the next segments, and finds the first one that may
have wanted events; `load` reads that one's events. They are apart so that a loaded segment can come from the
cache, which all readers share.

Everything here is synchronous, and takes a connection that no other thread uses at the same time. For the
parameter `damage` see `damage`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from jetstream.eventlog.columns import Columns, Damaged, read_times
from jetstream.eventlog.segment import holds_collection, holds_did, may_hold_did, unpack_accounts, unseal
from jetstream.eventlog.sqlite.connection import snapshot
from jetstream.eventlog.sqlite.damage import Damage, damage_problem, next_readable, next_segment_key
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter

_NOTHING: Final = Columns(*[b""] * 8)

# `did_bits` is most of an index, and is read only for a filter with DIDs.
_INDEXES: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN ? THEN did_bits END FROM segment"
    " WHERE last_us >= ? ORDER BY last_us LIMIT ?"
)
_FIRST: Final = "SELECT first_us FROM segment WHERE last_us = ?"
_DIDS: Final = "SELECT dids FROM segment WHERE last_us = ?"
_ACCOUNTS: Final = "SELECT accounts FROM segment WHERE last_us = ?"
_COLUMNS: Final = (
    "SELECT events, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM segment WHERE last_us = ?"
)
_TAIL: Final = (
    "SELECT last_us, first_us, events, crc, times, kinds, dids, collections, rkeys, revs, cids, bodies"
    " FROM tail WHERE last_us >= ? AND first_us < ? ORDER BY last_us"
)


class Scan(NamedTuple):
    """The result of a scan.

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


def scan(
    connection: sqlite3.Connection,
    position: int,
    stop: int,
    wanted: Filter,
    limits: LogLimits,
    damage: list[Damage] | None = None,
) -> Scan:
    """Find the first stored events in `[position, stop)` that `wanted` may want.

    Gives up after `limits.scan_segments` segments without any. Identity and account events of segments that
    have no other wanted events are collected into one batch. A segment whose index is damaged is found as one
    to load.
    """
    with snapshot(connection):
        seen = count = 0
        start = position
        accounts: list[Columns] = []  # of the segments so far that have no wanted commits
        try:
            for last_us, first_us, collection_set, did_bits in connection.execute(
                _INDEXES, (bool(wanted.dids), position, limits.scan_segments)
            ):
                if isinstance(first_us, int) and stop <= first_us <= last_us:
                    break
                seen += 1
                run = _accounts_unless_wanted(connection, last_us, collection_set, did_bits, wanted)
                if run is None:
                    return Scan(position, _batch(accounts)) if accounts else Scan(last_us + 1, last_us)
                if run.times and any(start <= time < stop for time in read_times(run.times)):
                    accounts.append(run)
                    count += run.events
                position = last_us + 1
                if count >= limits.batch_events:
                    break
        except sqlite3.DatabaseError as error:
            if damage is None or damage_problem(error) is None:
                raise
            if accounts:
                return Scan(position, _batch(accounts))
            return _scan_damage(connection, position, stop, damage)
        if accounts or seen == limits.scan_segments:
            return Scan(position, _batch(accounts) if accounts else None)
        return _scan_tail(connection, position, stop, wanted, limits, damage)


def _scan_damage(connection: sqlite3.Connection, position: int, stop: int, damage: list[Damage]) -> Scan:
    """Continue where the index of the next segment cannot be read: at that segment, or behind lost keys."""
    try:
        key = next_segment_key(connection, position)
    except sqlite3.DatabaseError as error:
        behind = min(next_readable(connection, position), stop)
        damage.append(Damage(position, behind - 1, str(error)))
        return Scan(behind, None)
    return Scan(stop, None) if key is None else Scan(key + 1, key)


def load(connection: sqlite3.Connection, last_us: int, damage: list[Damage] | None = None) -> Batch | None:
    """Read the events of a segment; None if it was trimmed since the scan, or is damaged."""
    try:
        row = connection.execute(_COLUMNS, (last_us,)).fetchone()
        if row is None:
            return None
        events, times, *texts = row
        return unseal(events, times, texts)
    except (Damaged, sqlite3.DatabaseError) as error:
        problem = damage_problem(error)
        if damage is None or problem is None:
            raise
        damage.append(Damage(_first_us(connection, last_us), last_us, problem))
        return None


def _first_us(connection: sqlite3.Connection, last_us: int) -> int:
    """Return where a damaged segment starts, or its end if its row does not tell."""
    try:
        (first_us,) = connection.execute(_FIRST, (last_us,)).fetchone() or (last_us,)
    except sqlite3.DatabaseError:
        return last_us
    return min(first_us, last_us) if isinstance(first_us, int) else last_us


def tail_rows(
    connection: sqlite3.Connection, position: int, stop: int, damage: list[Damage] | None = None
) -> Iterator[Row]:
    """Yield the rows of the tail with events in `[position, stop)`, in order."""
    for stored in connection.execute(_TAIL, (position, stop)):
        try:
            yield Row.read(stored)
        except Damaged as error:
            if damage is None:
                raise
            last_us, first_us, *_ = stored
            damage.append(Damage(min(first_us, last_us), last_us, str(error)))


def _accounts_unless_wanted(
    connection: sqlite3.Connection, last_us: int, collection_set: bytes, did_bits: bytes, wanted: Filter
) -> Columns | None:
    """Return None for a segment to load, else its identity and account events as far as they are wanted."""
    try:
        if wanted.dids and not _holds_did(connection, last_us, did_bits, wanted):
            return _NOTHING
        if holds_collection(collection_set, wanted):
            return None
        (packed,) = connection.execute(_ACCOUNTS, (last_us,)).fetchone()
        return unpack_accounts(packed) or _NOTHING
    except (Damaged, sqlite3.DatabaseError) as error:
        if damage_problem(error) is None:
            raise
        return None  # the events are stored apart from the index, and may be undamaged


def _holds_did(connection: sqlite3.Connection, last_us: int, did_bits: bytes, wanted: Filter) -> bool:
    if not may_hold_did(did_bits, wanted):
        return False
    (dids,) = connection.execute(_DIDS, (last_us,)).fetchone()
    return holds_did(dids, wanted)


def _scan_tail(
    connection: sqlite3.Connection,
    position: int,
    stop: int,
    wanted: Filter,
    limits: LogLimits,
    damage: list[Damage] | None,
) -> Scan:
    while (batch := _tail_batch(connection, position, stop, limits, damage)) is not None:
        if wanted.select(batch, batch.index(position), batch.index(stop)):
            return Scan(batch.last + 1, batch)
        position = batch.last + 1
    return Scan(stop, None)


def _tail_batch(
    connection: sqlite3.Connection, position: int, stop: int, limits: LogLimits, damage: list[Damage] | None
) -> Batch | None:
    """Read rows of the tail until they are as long as a batch in memory."""
    runs: list[Columns] = []
    count = size = 0
    for row in tail_rows(connection, position, stop, damage):
        runs.append(row.columns)
        count += row.events
        size += len(row.columns.bodies)
        if count >= limits.batch_events or size >= limits.batch_bytes:
            break
    return _batch(runs) if runs else None


def _batch(runs: Iterable[Columns]) -> Batch:
    return Columns.joined(runs).batch()
