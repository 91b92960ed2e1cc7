"""Sealing the oldest rows of the tail into segments, and changing from one table of the tail to the other.

Sealing deletes nothing: rows of the tail that are sealed are not read any more. When there are many, the
tail is rotated: what is left is copied to the other table, and this one is emptied. TRUNCATE needs the table
for itself, and waits for those that read it, such as a backup. It waits for a moment only, and is tried again
later.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import asyncpg
import structlog

from jetstream.eventlog.cursors import cursor_row
from jetstream.eventlog.postgresql.folding import Folding
from jetstream.eventlog.postgresql.schema import SEALED
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.postgresql.transactions import Transactions, count_of
from jetstream.eventlog.reader import POSITION_MAX, Hole
from jetstream.eventlog.rewrite import next_segment, sealed
from jetstream.eventlog.segment import Segment

RETRY_S: Final = 10.0  # between two attempts to rotate while others read the table
LOCK_WAIT: Final = "200ms"  # for which rotation waits for those that read the table
ROTATE_S: Final = 60.0  # between two rotations because of erased records
# Only what is not sealed yet.
_PUT_SEGMENT: Final = (
    "INSERT INTO segment (last_us, follows_us, first_us, events, bytes, collection_set, did_bits, accounts,"
    " times, kinds, dids, collections, rkeys, revs, cids, bodies) SELECT $1::bigint,"
    f" {SEALED}, $2::bigint, $3::integer,"
    " $4::integer, $5::bytea, $6::bytea, $7::bytea, $8::bytea, $9::bytea, $10::bytea, $11::bytea, $12::bytea,"
    f" $13::bytea, $14::bytea, $15::bytea WHERE {SEALED} < $2"
)
# What is sealed is copied without its events, with an empty range, if its states are not folded yet or if it
# is the last row.
_COPY: Final = (
    "INSERT INTO tail_{new} SELECT id, last_us, CASE WHEN last_us > $1 THEN follows_us ELSE last_us END,"
    " CASE WHEN last_us > $1 THEN first_us ELSE last_us + 1 END,"
    " CASE WHEN last_us > $1 THEN events ELSE 0 END,"
    " appended, nonce, CASE WHEN last_us > $1 THEN data ELSE '' END, cursors, repos FROM tail_{old}"
    " WHERE (last_us > $1 AND first_us <= last_us) OR id > $2 OR id = (SELECT max(id) FROM tail_{old})"
)
_PUT_CURSOR: Final = "INSERT INTO cursor VALUES ($1, $2, $3, $4, $5, $6)"


class Sealing:
    """Seals and rotates the tail of one term.

    Upkeep calls its methods one at a time. They raise Fenced, Hole, LogError, and what asyncpg raises.
    """

    def __init__(self, term: Term, transactions: Transactions, folding: Folding) -> None:
        """Begin with nothing due. `folding` writes states to their table before their rows go."""
        self._term = term
        self._transactions = transactions
        self._folding = folding
        # Whether something erased is among the rows of the table in use. Set by others.
        self.must_rotate = False
        # When the tail may be rotated again because of that, and when rotating is tried again after others
        # have read the table for too long, in the time of the event loop.
        self._rotate_at = self._retry_at = 0.0
        self._logger = structlog.get_logger(__name__)

    async def seal(self) -> None:
        """Seal all rows that are enough for a segment.

        One transaction for each segment. Reading and compressing is done in a thread of the readers. What
        has fewer events stays in the tail.
        """
        while (segment := await self._term.log.work(next_segment)) is not None:
            await self._store(segment)

    async def seal_before(self, before_us: int) -> None:
        """Seal rows that end before a position, however few: only segments are deleted."""
        if self._term.sealed_us >= before_us - 1:
            return
        rows = await self._term.log.work(
            lambda reader: [row for row in reader.tail_rows(0, POSITION_MAX) if row.last_us < before_us]
        )
        if any(row.events for row in rows):
            await self._store(await asyncio.to_thread(sealed, rows))
            self.must_rotate = True

    async def _store(self, segment: Segment) -> None:
        """Store a segment, and count it. Raises Hole if it begins within what is sealed already.

        That is so if an earlier transaction was committed although its answer was lost.
        """
        term = self._term
        async with self._transactions.begin() as connection:
            if not count_of(await connection.execute(_PUT_SEGMENT, *segment_row(segment))):
                raise Hole(segment.first_us)
        term.sealed_us = segment.last_us
        term.sealed_events += segment.events
        term.count_segments(segment.size)

    async def rotate_if_due(self) -> None:
        """Fold states when many have changed, and rotate when enough is sealed, or something was erased."""
        limits, now = self._term.log.limits, asyncio.get_running_loop().time()
        if len(self._term.repos.recent) >= limits.repo_changes:
            await self._folding.fold()
        must = self.must_rotate and now >= self._rotate_at
        enough = max(limits.tail_events, limits.segment_events)
        if now >= self._retry_at and (must or self._term.sealed_events >= enough):
            await self.rotate()

    async def rotate(self) -> None:
        """Fold states, and change the table of the tail, unless others read it for longer than a moment.

        No append runs while tables are changed. A rotation that gives up is tried again after `RETRY_S`
        seconds.
        """
        await self._folding.fold()
        now = asyncio.get_running_loop().time()
        try:
            async with self._term.writing:
                await self._change_tables()
        except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError):
            self._logger.info("log: the tail is read by others for long, and grows meanwhile")
            self._retry_at = now + RETRY_S
            return
        self._term.sealed_events, self.must_rotate = 0, False
        self._rotate_at = now + ROTATE_S

    async def _change_tables(self) -> None:
        """Copy what is not sealed or folded to the other table, and empty this one. No append may run.

        A statement that runs at that moment may miss rows, which is noticed: each row names the one that it
        follows. `lock_timeout` bounds the wait for those that read the table.
        """
        term = self._term
        old, new = term.tail, "b" if term.tail == "a" else "a"
        async with self._transactions.begin() as connection:
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
            await connection.execute(_COPY.format(old=old, new=new), term.sealed_us, term.repos.folded_id)
            await connection.execute("DELETE FROM cursor")
            await connection.executemany(_PUT_CURSOR, [cursor_row(*each) for each in term.cursors.items()])
            await connection.execute("UPDATE state SET tail = $1", new)
            await connection.execute(f"TRUNCATE tail_{old}")
        term.tail = new


def segment_row(segment: Segment) -> tuple[Any, ...]:
    """Return a segment as the values of a row."""
    last_us, first_us, events, *blobs = segment
    return (last_us, first_us, events, segment.size, *blobs)
