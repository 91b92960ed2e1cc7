"""Reading the file: which block or which part of the tail a reader needs next, and its events.

Everything here is synchronous, and takes a connection that no other thread uses meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from jetstream.events import Batch
from jetstream.filters import Filter
from jetstream.log.block import (
    holds_collection,
    holds_did,
    may_hold_did,
    unseal,
    unseal_accounts,
)
from jetstream.log.columns import Columns, Damaged

# As many as a batch in memory has.
TAIL_READ_EVENTS: Final = 1_000
# How many blocks one scan skips before others have their turn: about 5 ms, and as long a snapshot.
SCAN_BLOCKS: Final = 64

_HEADS: Final = (
    "SELECT last_us, collection_set, did_bits FROM block"
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


class Part(NamedTuple):
    """A stored block, or only its identity and account events: what a reader loads in one piece."""

    last_us: int
    accounts_only: bool


class Scan(NamedTuple):
    """What a look at the file found: a part to load, a batch of the tail, or nothing.

    Below `position` nothing is wanted but what was found.
    """

    position: int
    found: Part | Batch | None


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
        seen = 0
        for last_us, collection_set, did_bits in connection.execute(_HEADS, (position, stop, SCAN_BLOCKS)):
            seen += 1
            position = last_us + 1
            if wanted.dids and not _holds_did(connection, last_us, did_bits, wanted):
                continue
            whole = holds_collection(collection_set, wanted)
            return Scan(position, Part(last_us, accounts_only=not whole))
        if seen == SCAN_BLOCKS:
            return Scan(position, None)
        return _scan_tail(connection, position, stop, wanted)


def load(connection: sqlite3.Connection, part: Part) -> Batch | None:
    """Read a part's events; None when it has none, or has been trimmed since it was found."""
    row = connection.execute(_ACCOUNTS if part.accounts_only else _COLUMNS, (part.last_us,)).fetchone()
    if row is None:
        return None
    if part.accounts_only:
        return unseal_accounts(row[0])
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


def _scan_tail(connection: sqlite3.Connection, position: int, stop: int, wanted: Filter) -> Scan:
    while (batch := _tail_batch(connection, position, stop)) is not None:
        if wanted.select(batch, batch.index(position), batch.index(stop)):
            return Scan(batch.last + 1, batch)
        position = batch.last + 1
    return Scan(stop, None)


def _tail_batch(connection: sqlite3.Connection, position: int, stop: int) -> Batch | None:
    runs: list[Columns] = []
    count = 0
    for row in tail_rows(connection, position, stop):
        runs.append(row.columns)
        count += row.events
        if count >= TAIL_READ_EVENTS:
            break
    return Columns.joined(runs).batch() if runs else None
