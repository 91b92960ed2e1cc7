"""Reading the file: which block or which part of the tail a reader needs next, and its events.

Everything here is synchronous, and takes a connection that no other thread uses meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from jetstream.events import Batch
from jetstream.filters import Filter
from jetstream.log.block import (
    holds_collection,
    holds_did,
    may_hold_did,
    unpack_accounts,
    unseal,
)
from jetstream.log.columns import Columns, Damaged, read_times

# As many as a batch in memory has: events of the tail, or identity and account events of many blocks.
READ_EVENTS: Final = 1_000
# The same by the bodies of the tail: a row has at most as much, or one event.
READ_BYTES: Final = 1 << 20
# How many blocks one scan skips before others have their turn: about 5 ms, and as long a snapshot.
SCAN_BLOCKS: Final = 64

# The bits are most of a head: they are read only for who asks for DIDs.
_HEADS: Final = (
    "SELECT last_us, collection_set, CASE WHEN ? THEN did_bits END FROM block"
    " WHERE last_us >= ? AND first_us < ? ORDER BY last_us LIMIT ?"
)
_DIDS: Final = "SELECT dids FROM block WHERE last_us = ?"
_ACCOUNTS: Final = "SELECT accounts FROM block WHERE last_us = ?"
_COLUMNS: Final = (
    "SELECT events, times, kinds, dids, collections, rkeys, revs, cids, bodies FROM block WHERE last_us = ?"
)
_TAIL: Final = (
    "SELECT last_us, first_us, events, crc, times, kinds, dids, collections, rkeys, revs, cids, bodies"
    " FROM tail WHERE last_us >= ? AND first_us < ? ORDER BY last_us"
)


class Scan(NamedTuple):
    """What a look at the file found: the key of a block to load, a batch, or nothing.

    Below `position` nothing is wanted but what was found.
    """

    position: int
    found: int | Batch | None


class Row(NamedTuple):
    """One batch as it was committed."""

    last_us: int
    first_us: int
    events: int
    columns: Columns

    @classmethod
    def read(cls, stored: Sequence[Any]) -> Row:
        """Take a row of the table. Raises Damaged."""
        last_us, first_us, events, crc, *texts = stored
        columns = Columns(*texts)
        if columns.checksum() != crc:
            raise Damaged("its checksum does not agree")
        return cls(last_us, first_us, events, columns)


def scan(connection: sqlite3.Connection, position: int, stop: int, wanted: Filter) -> Scan:
    """Find the first stored events in `[position, stop)` that `wanted` may want; or stop half-way."""
    with snapshot(connection):
        seen = count = 0
        start = position
        accounts: list[Columns] = []  # of the blocks so far that have no wanted commits
        for last_us, collection_set, did_bits in connection.execute(
            _HEADS, (bool(wanted.dids), position, stop, SCAN_BLOCKS)
        ):
            seen += 1
            if not wanted.dids or _holds_did(connection, last_us, did_bits, wanted):
                if holds_collection(collection_set, wanted):
                    return Scan(position, _batch(accounts)) if accounts else Scan(last_us + 1, last_us)
                run = _accounts(connection, last_us, start, stop)
                accounts += [] if run is None else [run]
                count += 0 if run is None else run.events
            position = last_us + 1
            if count >= READ_EVENTS:
                break
        if accounts or seen == SCAN_BLOCKS:
            return Scan(position, _batch(accounts) if accounts else None)
        return _scan_tail(connection, position, stop, wanted)


def load(connection: sqlite3.Connection, last_us: int) -> Batch | None:
    """Read a block's events; None when it has been trimmed since it was found. Raises Damaged."""
    row = connection.execute(_COLUMNS, (last_us,)).fetchone()
    if row is None:
        return None
    events, times, *texts = row
    return unseal(events, times, texts)


def tail_rows(connection: sqlite3.Connection, position: int, stop: int) -> Iterator[Row]:
    """Return the batches with events in `[position, stop)` that are not sealed. Raises Damaged."""
    return map(Row.read, connection.execute(_TAIL, (position, stop)))


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Show one state of the file to all statements inside: sealing moves events from one table to another."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _holds_did(connection: sqlite3.Connection, last_us: int, did_bits: bytes, wanted: Filter) -> bool:
    if not may_hold_did(did_bits, wanted):
        return False
    (dids,) = connection.execute(_DIDS, (last_us,)).fetchone()
    return holds_did(dids, wanted)


def _accounts(connection: sqlite3.Connection, last_us: int, start: int, stop: int) -> Columns | None:
    """Return the identity and account events of a block, if any is in `[start, stop)`."""
    (packed,) = connection.execute(_ACCOUNTS, (last_us,)).fetchone()
    columns = unpack_accounts(packed)
    if columns is None or not any(start <= time < stop for time in read_times(columns.times)):
        return None
    return columns


def _scan_tail(connection: sqlite3.Connection, position: int, stop: int, wanted: Filter) -> Scan:
    while (batch := _tail_batch(connection, position, stop)) is not None:
        if wanted.select(batch, batch.index(position), batch.index(stop)):
            return Scan(batch.last + 1, batch)
        position = batch.last + 1
    return Scan(stop, None)


def _tail_batch(connection: sqlite3.Connection, position: int, stop: int) -> Batch | None:
    runs: list[Columns] = []
    count = size = 0
    for row in tail_rows(connection, position, stop):
        runs.append(row.columns)
        count += row.events
        size += len(row.columns.bodies)
        if count >= READ_EVENTS or size >= READ_BYTES:
            break
    return _batch(runs) if runs else None


def _batch(runs: Iterable[Columns]) -> Batch:
    return Columns.joined(runs).batch()
