"""The connection of upkeep, and its transactions.

Commits do not wait for standbys: if one is lost with the primary, it is done again. Each transaction first
locks the row of the term, as appends do, so that a process whose term is over changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from jetstream.eventlog.postgresql.connection import ANSWER_S, LOST, connect, drop
from jetstream.eventlog.postgresql.schema import LEADING
from jetstream.eventlog.postgresql.term import Term
from jetstream.eventlog.watermark import COUNTS

_ANSWER_S: Final = 30.0  # after which a database that does not answer counts as gone
# The row of the term is locked: no heartbeat is told after the next term has begun. The number is that of
# `watermark.beat_after`.
_BEAT: Final = f"""
WITH mine AS (SELECT id FROM term WHERE epoch = $1 AND holder = $2 FOR SHARE)
UPDATE leader SET beat = $3::bigint - $3::bigint % {COUNTS} + (beat + 1) % {COUNTS} FROM mine RETURNING beat
"""
_TAKEN_OVER: Final = "another process has taken over"


class Transactions:
    """Those of one term. One runs at a time.

    Used by upkeep alone; appends have a connection of their own, and go on meanwhile.
    """

    def __init__(self, term: Term) -> None:
        self._term = term
        # Made when it is needed, and again when it was lost.
        self._connection: asyncpg.Connection | None = None
        # Held while the connection is used.
        self._using = asyncio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[asyncpg.Connection]:
        """Commit all statements inside, or none. Raises Fenced, and what asyncpg raises."""
        async with self._used() as connection, connection.transaction():
            if await connection.fetchval(LEADING, *self._term.epoch) is None:
                raise self._term.end(_TAKEN_OVER)
            yield connection

    async def beat(self) -> None:
        """Tell that the term goes on, and the watermark. Ends it if another has begun.

        Raises what asyncpg raises.
        """
        term = self._term
        async with self._used() as connection:
            if await connection.fetchval(_BEAT, *term.epoch, term.next_position(), timeout=ANSWER_S) is None:
                term.end(_TAKEN_OVER)

    async def cut(self) -> None:
        """Close the connection at once, whatever runs."""
        await drop(self._connection)

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[asyncpg.Connection]:
        """Give the connection. It is closed after an error of its own."""
        async with self._using:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(
                    self._term.log.address, writes=True, answer_s=_ANSWER_S, synchronous_commit="local"
                )
            try:
                yield self._connection
            except LOST:
                await drop(self._connection)
                raise


def count_of(status: str) -> int:
    """Return the number of rows from the status of a statement, such as `DELETE 3`."""
    return int(status.rpartition(" ")[2])
