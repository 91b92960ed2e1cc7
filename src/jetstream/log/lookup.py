"""Whether the log holds an event, by its content: newest first, for a dozen keys at a time.

Reading goes in steps, each a short snapshot, so that a long search does not hold back checkpoints. The tail
comes before the blocks: sealing moves events from there to here, and none is missed between two steps.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final
from zlib import crc32

import structlog

from jetstream.events import Batch, Key
from jetstream.filters import Filter
from jetstream.log.block import DID_BITS, decompress, holds_did, unpack_accounts
from jetstream.log.columns import Damaged
from jetstream.log.stored import tail_rows
from jetstream.logs import Throttled

STEP_BLOCKS: Final = 64  # as many as one scan skips: about 5 ms

log = Throttled(structlog.get_logger(__name__))

_HEADS: Final = "SELECT last_us, did_bits FROM block WHERE last_us < ? ORDER BY last_us DESC LIMIT ?"
_KEYS: Final = "SELECT dids, collections, rkeys, revs, accounts FROM block WHERE last_us = ?"
_FAR_US: Final = 2**63 - 1


def in_batches(batches: Iterable[Batch], keys: Collection[Key]) -> set[Key]:
    """Return the keys of which an event is in these batches."""
    left, found = set(keys), set[Key]()
    dids = {key[0] for key in left}
    for batch in batches:
        if not left:
            break
        if not dids.isdisjoint(batch.dids):
            here = {batch.event(i).key for i, did in enumerate(batch.dids) if did in dids} & left
            found |= here
            left -= here
    return found


def in_file(connection: sqlite3.Connection, keys: Collection[Key], stop: int) -> set[Key]:
    """Return the keys of which an event is stored. The tail is read below the position `stop`.

    What cannot be read holds nothing: an event that comes twice is better than none that comes.
    """
    found: set[Key] = set()
    try:
        found |= in_batches((row.columns.batch() for row in tail_rows(connection, 0, stop)), keys)
        position: int | None = _FAR_US
        while len(found) < len(set(keys)) and position is not None:
            position, here = _step(connection, set(keys) - found, position)
            found |= here
    except (Damaged, sqlite3.DatabaseError) as error:
        log.warning(
            "log: part of it cannot be searched, what is there may be delivered again", error=str(error)
        )
    return found


def _step(connection: sqlite3.Connection, keys: set[Key], below: int) -> tuple[int | None, set[Key]]:
    """Search the next blocks below a key; return where to go on, None at the end, and what was found."""
    wanted = Filter(dids=frozenset(key[0] for key in keys))
    bits = [crc32(did) % DID_BITS for did in wanted.dids]
    found: set[Key] = set()
    heads = connection.execute(_HEADS, (below, STEP_BLOCKS)).fetchall()
    for last_us, did_bits in heads:
        with suppress(Damaged, sqlite3.DatabaseError):  # a reader who comes there is told
            bitmap = decompress(did_bits)
            if any(bitmap[bit >> 3] >> (bit & 7) & 1 for bit in bits):
                found |= _in_block(connection, last_us, keys, wanted)
        if found == keys:
            break
    return (heads[-1][0] if len(heads) == STEP_BLOCKS else None), found


def _in_block(connection: sqlite3.Connection, last_us: int, keys: set[Key], wanted: Filter) -> set[Key]:
    row = connection.execute(_KEYS, (last_us,)).fetchone()
    if row is None or not holds_did(row[0], wanted):
        return set()
    accounts, texts = unpack_accounts(row[-1]), [decompress(text).split(b"\n") for text in row[:-1]]
    found = {commit for commit in zip(*texts, strict=True) if commit[0] in wanted.dids} & keys
    return found if accounts is None else found | in_batches([accounts.batch()], keys)
