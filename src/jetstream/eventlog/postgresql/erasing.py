"""Erasing: rewriting segments and rows that have records of deleted accounts. See `eventlog.rewrite`."""

from __future__ import annotations

from functools import partial
from typing import Final

import asyncpg

from jetstream.eventlog.erase import Tombstones
from jetstream.eventlog.postgresql.schema import pack
from jetstream.eventlog.postgresql.sealing import Sealing, segment_row
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.transactions import Transactions
from jetstream.eventlog.reader import Row
from jetstream.eventlog.rewrite import Rewritten, next_rewritten
from jetstream.eventlog.segment import Segment, compress

_TOMBSTONES: Final = "SELECT did, before_us FROM tombstone"
_BYTES: Final = "SELECT bytes FROM segment WHERE last_us = $1"
# The key stays, and with it the order: the next segment follows it as before.
_CHANGE_SEGMENT: Final = (
    "UPDATE segment SET first_us = $2, events = $3, bytes = $4, collection_set = $5, did_bits = $6,"
    " accounts = $7, times = $8, kinds = $9, dids = $10, collections = $11, rkeys = $12, revs = $13,"
    " cids = $14, bodies = $15 WHERE last_us = $1"
)
_CHANGE_ROW: Final = "UPDATE tail_%s SET events = $2, data = $3 WHERE last_us = $1 AND first_us <= last_us"
_ERASED: Final = "UPDATE state SET revision = revision + 1, removed = removed + $1"
_DROP_TOMBSTONE: Final = "DELETE FROM tombstone WHERE did = $1 AND before_us = $2"


class Erasing:
    """Erases records from the log of one term, a few segments at a time.

    As in SQLite, a pass goes over the segments and ends with the tail; but rows stay where nothing is
    left of them.
    """

    def __init__(self, term: Term, transactions: Transactions, sealing: Sealing) -> None:
        """Begin without a pass. `sealing` is told when the tail has something erased."""
        self._term = term
        self._transactions = transactions
        self._sealing = sealing
        # The tombstones of the current pass over the log, and the position that it has reached.
        self._tombstones: Tombstones = {}
        self._erased_to = 0

    async def erase(self) -> None:
        """Rewrite some segments, and at the end of a pass the tail.

        At most `LogLimits.erase_segments` steps of a pass; the next run of upkeep goes on. A new process
        begins the pass again. Raises Hole, LogError, and what asyncpg raises: what was not done stays
        due.
        """
        log = self._term.log
        if not self._tombstones:
            self._tombstones = dict(await log.fetch(_TOMBSTONES))
            self._erased_to = 0
        if not self._tombstones:
            return
        tombstones = self._tombstones
        for _ in range(log.limits.erase_segments):
            position, stop = max(self._erased_to, log.floor), max(tombstones.values())
            after, rewritten = (
                (None, list[Rewritten]())
                if position >= stop
                else await log.work(partial(next_rewritten, tombstones=tombstones, position=position))
            )
            if after is None:
                await self._replace(rewritten, tombstones)
                self._tombstones, self._sealing.must_rotate = {}, True
                return
            if rewritten:
                await self._replace(rewritten, {})
            self._erased_to = after

    async def _replace(self, rewritten: list[Rewritten], done: Tombstones) -> None:
        """Put what was rewritten in the place of the old, and delete the tombstones that are done.

        One transaction. It raises the revision, so that all processes drop what they have in memory.
        """
        more = 0
        async with self._transactions.begin() as connection:
            for each in rewritten:
                if each.table == "segment":
                    more += await _replace_segment(connection, each)
                else:
                    await _replace_row(connection, each, self._term.tail)
            # A later account event may have moved a tombstone meanwhile: that one stays.
            await connection.executemany(_DROP_TOMBSTONE, done.items())
            await connection.execute(_ERASED, sum(each.erased for each in rewritten))
        self._term.count_segments(more)
        await self._term.log.looked_again()


async def _replace_segment(connection: asyncpg.Connection, rewritten: Rewritten) -> int:
    """Put a segment in the place of the old one; return by how many bytes it is larger."""
    left = rewritten.left
    segment = left if isinstance(left, Segment) else _empty(rewritten.last_us)
    before: int = await connection.fetchval(_BYTES, segment.last_us) or 0
    await connection.execute(_CHANGE_SEGMENT, *segment_row(segment))
    return segment.size - before


async def _replace_row(connection: asyncpg.Connection, rewritten: Rewritten, tail: str) -> None:
    """Put a row of the tail in the place of the old one, in the table in use.

    The old version is in the table until vacuum or a rotation removes it. So the tail is rotated after
    the pass.
    """
    left = rewritten.left
    events, data = (left.events, pack(left.columns)) if isinstance(left, Row) else (0, b"")
    await connection.execute(_CHANGE_ROW % tail, rewritten.last_us, events, data)


def _empty(last_us: int) -> Segment:
    """Return a segment of which all was erased: its row stays, so that nothing seems to be missing."""
    return Segment(last_us, last_us, 0, *[compress(b"")] * 11)
