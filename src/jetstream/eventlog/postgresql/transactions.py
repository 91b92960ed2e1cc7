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

_ANSWER_S: Final = 30.0  # after which a database that does not answer counts as gone
_BEAT: Final = (
    "UPDATE leader SET beat = beat + 1 FROM term WHERE term.epoch = $1 AND term.holder = $2 RETURNING beat"
)
_TAKEN_OVER: Final = "another process has taken over"


class Transactions:
    """Those of one term. One runs at a time."""

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
        """Let standbys see that the term goes on; end it if another has begun. Raises what asyncpg raises."""
        async with self._used() as connection:
            if await connection.fetchval(_BEAT, *self._term.epoch, timeout=ANSWER_S) is None:
                self._term.end(_TAKEN_OVER)

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
