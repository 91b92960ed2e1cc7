"""Whether and where the log holds an event, by its content: newest first, for a dozen keys at a time.

Reading goes in steps, each a short snapshot, so that a long search does not hold back checkpoints. The tail
comes before the blocks: sealing moves events from there to here, and none is missed between two steps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final
from zlib import crc32

import structlog

from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.segment import DID_BITS, decompress, holds_did, unpack_accounts
from jetstream.eventlog.sqlite.reader import snapshot, tail_rows
from jetstream.logging_setup import Throttled
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter

STEP_BLOCKS: Final = 64  # as many as one scan skips: about 5 ms
# Of `keys_from`: two blocks, for most of the first may lie before what is asked for. 2 MB of ordinary keys,
# and 24 MB of the longest that there may be.
KEYS_MAX: Final = 8_000

log = Throttled(structlog.get_logger(__name__))

_HEADS: Final = "SELECT last_us, did_bits FROM block WHERE last_us < ? ORDER BY last_us DESC LIMIT ?"
_OLDEST: Final = "SELECT last_us FROM block WHERE last_us >= ? AND first_us < ? ORDER BY last_us LIMIT ?"
_KEYS: Final = "SELECT dids, collections, rkeys, revs, accounts FROM block WHERE last_us = ?"
_FAR_US: Final = 2**63 - 1


def in_batches(batches: Iterable[Batch], keys: Collection[Key]) -> dict[Key, int]:
    """Return those of the keys of which an event is in these batches, each with its position."""
    left, found = set(keys), dict[Key, int]()
    dids = {key[0] for key in left}
    for batch in batches:
        if not left:
            break
        if not dids.isdisjoint(batch.dids):
            here = {batch.event(i).key: batch.times[i] for i, did in enumerate(batch.dids) if did in dids}
            found.update((key, here[key]) for key in here.keys() & left)
            left -= here.keys()
    return found


def in_file(connection: sqlite3.Connection, keys: Collection[Key], stop: int) -> dict[Key, int]:
    """Return those of the keys of which an event is stored, each with its position or its block's last one.

    The tail is read below the position `stop`. What cannot be read holds nothing: an event that comes twice
    is better than none that comes.
    """
    found: dict[Key, int] = {}
    try:
        found |= in_batches((row.columns.batch() for row in tail_rows(connection, 0, stop)), keys)
        position: int | None = _FAR_US
        while len(found) < len(set(keys)) and position is not None:
            position, here = _step(connection, set(keys) - found.keys(), position)
            found |= here
    except (Damaged, sqlite3.DatabaseError) as error:
        log.warning(
            "log: part of it cannot be searched, what is there may be delivered again", error=str(error)
        )
    return found


def keys_from(connection: sqlite3.Connection, position: int, stop: int) -> set[Key]:
    """Return the keys of `KEYS_MAX` events in `[position, stop)`, the oldest, to the ends of their blocks.

    Damaged parts are passed over, and their keys are missing.
    """
    found: set[Key] = set()
    with snapshot(connection):
        for (last_us,) in connection.execute(_OLDEST, (position, stop, STEP_BLOCKS)).fetchall():
            with suppress(Damaged, sqlite3.DatabaseError):
                found |= _all_in_block(connection, last_us)
            if len(found) >= KEYS_MAX:
                return found
        for row in tail_rows(connection, position, stop, []):
            found.update(_keys(row.columns.batch()))
            if len(found) >= KEYS_MAX:
                break
    return found


def _step(connection: sqlite3.Connection, keys: set[Key], below: int) -> tuple[int | None, dict[Key, int]]:
    """Search the next blocks below a key; return where to go on, None at the end, and what was found."""
    wanted = Filter(dids=frozenset(key[0] for key in keys))
    bits = [crc32(did) % DID_BITS for did in wanted.dids]
    found: dict[Key, int] = {}
    heads = connection.execute(_HEADS, (below, STEP_BLOCKS)).fetchall()
    for last_us, did_bits in heads:
        with suppress(Damaged, sqlite3.DatabaseError):  # a reader who comes there is told
            bitmap = decompress(did_bits)
            if any(bitmap[bit >> 3] >> (bit & 7) & 1 for bit in bits):
                here = _in_block(connection, last_us, keys, wanted) - found.keys()
                found |= dict.fromkeys(here, last_us)
        if found.keys() == keys:
            break
    return (heads[-1][0] if len(heads) == STEP_BLOCKS else None), found


def _in_block(connection: sqlite3.Connection, last_us: int, keys: set[Key], wanted: Filter) -> set[Key]:
    row = connection.execute(_KEYS, (last_us,)).fetchone()
    if row is None or not holds_did(row[0], wanted):
        return set()
    commits, accounts = _commits(row), unpack_accounts(row[-1])
    found = {commit for commit in commits if commit[0] in wanted.dids} & keys
    return found if accounts is None else found.union(in_batches([accounts.batch()], keys))


def _all_in_block(connection: sqlite3.Connection, last_us: int) -> set[Key]:
    row = connection.execute(_KEYS, (last_us,)).fetchone()
    if row is None:
        return set()
    found, accounts = set(_commits(row)), unpack_accounts(row[-1])
    return found if accounts is None else found.union(_keys(accounts.batch()))


def _commits(row: Sequence[bytes]) -> Iterator[Key]:
    """Return the keys of a block's commits, from what `_KEYS` selects. Raises Damaged."""
    dids, collections, rkeys, revs = (decompress(text).split(b"\n") for text in row[:-1])
    return zip(dids, collections, rkeys, revs, strict=True)


def _keys(batch: Batch) -> Iterator[Key]:
    return (batch.event(i).key for i in range(len(batch)))
