"""Reading the file: which block or which part of the tail a reader needs next, and its events.

Everything here is synchronous, and takes a connection that no other thread uses meanwhile. Where damage is
met it is raised; with a list `met`, it is added to that instead, and passed over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from jetstream.eventlog.columns import Columns, Damaged, read_times
from jetstream.eventlog.segment import holds_collection, holds_did, may_hold_did, unpack_accounts, unseal
from jetstream.eventlog.sqlite.damage import Damage, next_block, problem, reachable
from jetstream.model.batch import Batch
from jetstream.model.filter import Filter

# As many as a batch in memory has: events of the tail, or identity and account events of many blocks.
READ_EVENTS: Final = 1_000
# The same by the bodies of the tail: a row has at most as much, or one event.
READ_BYTES: Final = 1 << 20
# How many blocks one scan skips before others have their turn: about 5 ms, and as long a snapshot.
SCAN_BLOCKS: Final = 64
_NOTHING: Final = Columns(*[b""] * 8)

# The bits are most of a head: they are read only for who asks for DIDs.
_HEADS: Final = (
    "SELECT last_us, first_us, collection_set, CASE WHEN ? THEN did_bits END FROM block"
    " WHERE last_us >= ? ORDER BY last_us LIMIT ?"
)
_FIRST: Final = "SELECT first_us FROM block WHERE last_us = ?"
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
        last_us, first_us, _, crc, *texts = stored
        columns = Columns(*texts)
        try:
            agrees = columns.checksum() == crc
        except TypeError as error:  # not even bytes
            raise Damaged(str(error)) from error
        if not agrees:
            raise Damaged("its checksum does not agree")
        return cls(last_us, first_us, columns.events, columns)


def scan(
    connection: sqlite3.Connection, position: int, stop: int, wanted: Filter, met: list[Damage] | None = None
) -> Scan:
    """Find the first stored events in `[position, stop)` that `wanted` may want; or stop half-way.

    A block of which it cannot be told whether it has such events is one to load.
    """
    with snapshot(connection):
        seen = count = 0
        start = position
        accounts: list[Columns] = []  # of the blocks so far that have no wanted commits
        try:
            for last_us, first_us, collection_set, did_bits in connection.execute(
                _HEADS, (bool(wanted.dids), position, SCAN_BLOCKS)
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
                if count >= READ_EVENTS:
                    break
        except sqlite3.DatabaseError as error:
            if met is None or problem(error) is None:
                raise
            return (
                Scan(position, _batch(accounts))
                if accounts
                else _scan_damage(connection, position, stop, met)
            )
        if accounts or seen == SCAN_BLOCKS:
            return Scan(position, _batch(accounts) if accounts else None)
        return _scan_tail(connection, position, stop, wanted, met)


def _scan_damage(connection: sqlite3.Connection, position: int, stop: int, met: list[Damage]) -> Scan:
    """Go on where the head of the next block cannot be read: with the block, or beyond a lost key."""
    try:
        key = next_block(connection, position)
    except sqlite3.DatabaseError as error:
        beyond = min(reachable(connection, position), stop)
        met.append(Damage(position, beyond - 1, str(error)))
        return Scan(beyond, None)
    return Scan(stop, None) if key is None else Scan(key + 1, key)


def load(connection: sqlite3.Connection, last_us: int, met: list[Damage] | None = None) -> Batch | None:
    """Read a block's events; None when it was trimmed since it was found, or is damaged. Raises Damaged."""
    try:
        row = connection.execute(_COLUMNS, (last_us,)).fetchone()
        if row is None:
            return None
        events, times, *texts = row
        return unseal(events, times, texts)
    except (Damaged, sqlite3.DatabaseError) as error:
        found = problem(error)
        if met is None or found is None:
            raise
        met.append(Damage(_first(connection, last_us), last_us, found))
        return None


def _first(connection: sqlite3.Connection, last_us: int) -> int:
    """Return where a damaged block begins, as far as it says so."""
    try:
        (first_us,) = connection.execute(_FIRST, (last_us,)).fetchone() or (last_us,)
    except sqlite3.DatabaseError:
        return last_us
    return min(first_us, last_us) if isinstance(first_us, int) else last_us


def tail_rows(
    connection: sqlite3.Connection, position: int, stop: int, met: list[Damage] | None = None
) -> Iterator[Row]:
    """Return the batches with events in `[position, stop)` that are not sealed. Raises Damaged."""
    for stored in connection.execute(_TAIL, (position, stop)):
        try:
            yield Row.read(stored)
        except Damaged as error:
            if met is None:
                raise
            last_us, first_us, *_ = stored
            met.append(Damage(min(first_us, last_us), last_us, str(error)))


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Show one state of the file to all statements inside: sealing moves events from one table to another."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _accounts_unless_wanted(
    connection: sqlite3.Connection, last_us: int, collection_set: bytes, did_bits: bytes, wanted: Filter
) -> Columns | None:
    """Return a block's identity and account events, as far as wanted, if nothing else of it is; else None."""
    try:
        if wanted.dids and not _holds_did(connection, last_us, did_bits, wanted):
            return _NOTHING
        if holds_collection(collection_set, wanted):
            return None
        (packed,) = connection.execute(_ACCOUNTS, (last_us,)).fetchone()
        return unpack_accounts(packed) or _NOTHING
    except (Damaged, sqlite3.DatabaseError) as error:
        if problem(error) is None:
            raise
        return None  # the events are stored apart from what it says of them, and may be whole


def _holds_did(connection: sqlite3.Connection, last_us: int, did_bits: bytes, wanted: Filter) -> bool:
    if not may_hold_did(did_bits, wanted):
        return False
    (dids,) = connection.execute(_DIDS, (last_us,)).fetchone()
    return holds_did(dids, wanted)


def _scan_tail(
    connection: sqlite3.Connection, position: int, stop: int, wanted: Filter, met: list[Damage] | None
) -> Scan:
    while (batch := _tail_batch(connection, position, stop, met)) is not None:
        if wanted.select(batch, batch.index(position), batch.index(stop)):
            return Scan(batch.last + 1, batch)
        position = batch.last + 1
    return Scan(stop, None)


def _tail_batch(
    connection: sqlite3.Connection, position: int, stop: int, met: list[Damage] | None
) -> Batch | None:
    runs: list[Columns] = []
    count = size = 0
    for row in tail_rows(connection, position, stop, met):
        runs.append(row.columns)
        count += row.events
        size += len(row.columns.bodies)
        if count >= READ_EVENTS or size >= READ_BYTES:
            break
    return _batch(runs) if runs else None


def _batch(runs: Iterable[Columns]) -> Batch:
    return Columns.joined(runs).batch()
