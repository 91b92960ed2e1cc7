"""Storing appends: each once or not at all, whatever happens to the connection.

An append is one statement, which inserts one row of the tail. It is accepted only if the term is still the
one in the database, and the row before it is the one that this process has stored last. The statement locks
the row of the term until it is committed, and a process that takes over changes that row first. So each
append is either seen by the next term, or refused.

Whether an append was stored is always found out:

    the database has refused it    nothing is stored: LogUnwritable, and the caller may try again
    the connection was lost        the row is looked for by its number, and is ours if it has our nonce.
                                   If it is not there, it is inserted again, with the same nonce
    the term is over               Fenced: what was stamped is dropped, and nothing more is stored

An append is never cancelled: PostgreSQL would leave its row visible and not replicated. For the same reason,
one whose wait for a standby has ended early is followed by a small commit, which waits for all that is
before it. A process that stops waits for a moment, and then cuts the connection, as it would if it were
killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

import asyncpg
import structlog

from jetstream.errors import Fenced, LogUnwritable
from jetstream.eventlog import Changes
from jetstream.eventlog.erase import Tombstones
from jetstream.eventlog.postgresql.connection import LOST, connect, describe, drop
from jetstream.eventlog.postgresql.schema import CHANNEL, TAILS, Epoch
from jetstream.urls import shown

RETRY_S: Final = 0.5  # between two questions of an append or a term while the database does not answer
ABANDONED_S: Final = 2.0  # for which an append may go on when nobody waits for it any more
_RESIGN_S: Final = 2.0  # a database that does not answer is not waited for: a standby takes over anyway
_CLOSE_S: Final = 1.0
# Inserts a row if the term is this process's, and the row before it is the newest one.
_APPEND: Final = """
WITH mine AS (SELECT id FROM term WHERE epoch = $1 AND holder = $2 FOR SHARE)
INSERT INTO tail_%s (id, last_us, follows_us, first_us, events, appended, nonce, data, cursors, repos)
SELECT $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::integer, $8::bigint, $9::bigint, $10::bytea,
$11::text,
    $12::bytea FROM mine WHERE (SELECT max(id) FROM tail_%s) = $3 - 1
RETURNING %s
"""
# Whether the term is still this process's, and the nonce of the row with a number; null without one.
_SETTLE: Final = """
SELECT (SELECT count(*) FROM term WHERE epoch = $1 AND holder = $2) = 1 AS leads,
    (SELECT nonce FROM tail WHERE id = $3) AS nonce
"""
# Changes nothing, but is a commit: when it is confirmed, so is all that was committed before it.
_CONFIRM: Final = "UPDATE leader SET beat = beat"
# Only the term that is in the database reserves. The answer is up to where: never lower than before.
_RESERVE: Final = (
    "UPDATE leader SET reserved_us = greatest(reserved_us, $3) FROM term"
    " WHERE term.epoch = $1 AND term.holder = $2 RETURNING reserved_us"
)
# A term without a holder is free: a standby takes over at its next look.
_RESIGN: Final = "UPDATE term SET holder = '' WHERE epoch = $1 AND holder = $2"
_PUT_GAP: Final = (
    "INSERT INTO gap VALUES ($1, $2, $3, $4, $5) ON CONFLICT (time_us, did, rev)"
    " DO UPDATE SET after_rev = excluded.after_rev, cause = excluded.cause"
)
_PUT_ACCOUNT: Final = (
    "INSERT INTO account VALUES ($1, $2, $3) ON CONFLICT (source, did) DO UPDATE SET state = excluded.state"
)
_DROP_ACCOUNT: Final = "DELETE FROM account WHERE source = $1 AND did = $2"
_PUT_TOMBSTONE: Final = (
    "INSERT INTO tombstone VALUES ($1, $2) ON CONFLICT (did) DO UPDATE SET before_us = excluded.before_us"
)
# With a tombstone: other processes have read what is to be erased.
_REVISE: Final = "UPDATE state SET revision = revision + 1"
_TAKEN_OVER: Final = "another process has taken over"


def append_statement(tail: str, *, notify: bool) -> str:
    """Return the statement that appends a row to one of the tails.

    `tail` is one of `TAILS`. With `notify`, all that listen to `CHANNEL` are told at the commit.
    """
    returned = f"pg_notify('{CHANNEL}', '')" if notify else "id"
    return _APPEND % (tail, tail, returned)


_APPENDS: Final = {
    (tail, notify): append_statement(tail, notify=notify) for tail in TAILS for notify in (True, False)
}


class Entry(NamedTuple):
    """One append as it is written."""

    rows: list[tuple[Any, ...]]  # the values of each row from `id` on
    changes: Changes
    tombstones: Tombstones

    @property
    def is_plain(self) -> bool:
        """Whether it is one row and nothing else: nearly every append is."""
        return len(self.rows) == 1 and not (self.changes.gaps or self.changes.accounts or self.tombstones)


class Appender:
    """Writes the rows of one term. One append runs at a time.

    `end` is called with the reason when the term is found to be over, and returns the error. `on_connected`
    is called with the server's process of each new connection.

    Its connection waits for standbys as the database is set up to; the one of `transactions` does not.
    """

    def __init__(
        self,
        address: str,
        epoch: Epoch,
        end: Callable[[str], Fenced],
        on_connected: Callable[[int], None],
    ) -> None:
        """Connect later, with the first append. `epoch` is what each statement is checked with."""
        self._address = address
        self._name = shown(address)
        self._epoch = epoch
        self._end = end
        self._on_connected = on_connected
        # Made again when it was lost. How often the server has warned on it.
        self._connection: asyncpg.Connection | None = None
        self._warnings = 0
        # Whether the caller of the append that runs does not wait any more.
        self._abandoned = False
        self._logger = structlog.get_logger(__name__)

    async def reserve(self, position: int) -> int:
        """Reserve positions up to one; return up to where they are reserved. Raises LogUnwritable, Fenced.

        Positions are microseconds. An error leaves open whether they are reserved, which does no harm.
        """
        try:
            connection = await self._connected()
            reserved_us: int | None = await connection.fetchval(_RESERVE, *self._epoch, position)
        except (*LOST, asyncpg.PostgresError) as error:
            await self.disconnect()
            raise LogUnwritable(self._name, describe(error)) from error
        if reserved_us is None:
            raise self._end(_TAKEN_OVER)
        return reserved_us

    async def store(self, entry: Entry, tail: str, *, notify: bool) -> None:
        """Insert the rows of an append; return when they are stored for certain.

        Raises LogUnwritable with nothing stored, and Fenced if the term is over.

        `tail` is the table in use. While it is in doubt whether the append is stored, this asks every
        `RETRY_S` seconds, without a deadline: an outage of the database only delays it.
        """
        statement = _APPENDS[tail, notify]
        in_doubt = False
        while True:
            sent = False
            try:
                connection = await self._connected()
                warnings, sent = self._warnings, True
                if in_doubt and await self._is_stored(connection, entry):
                    await connection.execute(_CONFIRM)
                    return
                await self._insert(connection, statement, entry)
                if self._warnings != warnings:
                    await connection.execute(_CONFIRM)
            except (*LOST, asyncpg.UniqueViolationError) as error:
                await self.disconnect()
                if not (sent or in_doubt):
                    raise LogUnwritable(self._name, describe(error)) from error
                in_doubt = True
                problem = describe(error)
            except asyncpg.PostgresError as error:
                await self.disconnect()
                if not in_doubt:
                    raise LogUnwritable(self._name, describe(error)) from error
                problem = describe(error)
            else:
                return
            if self._abandoned:
                raise self._end(f"it is not known whether the last append was stored: {problem}")
            self._logger.info("log: an append is in doubt, asking the database", problem=problem)
            await asyncio.sleep(RETRY_S)

    async def settle(self, storing: asyncio.Task[None]) -> None:
        """Wait for the end of an append whose caller does not. After `ABANDONED_S`, its connection is cut.

        Called when the caller of the append was cancelled. The error of the append is not raised.
        """
        self._abandoned = True
        try:
            await asyncio.wait([storing], timeout=ABANDONED_S)
        finally:
            if not storing.done():
                await self.disconnect()
        await asyncio.wait([storing])
        self._abandoned = False
        if not storing.cancelled():
            storing.exception()  # the business of nobody any more: the term is over with it

    async def _is_stored(self, connection: asyncpg.Connection, entry: Entry) -> bool:
        """Tell whether an append was stored. Raises Fenced if it was not, and the term is over.

        The nonce of the last row decides: all rows of an append are one transaction. Another nonce there
        is a row of another term.
        """
        *_, row = entry.rows
        found = await connection.fetchrow(_SETTLE, *self._epoch, row[0])
        if found["nonce"] == row[6]:
            return True
        if not found["leads"] or found["nonce"] is not None:
            raise self._end(_TAKEN_OVER)
        return False

    async def _insert(self, connection: asyncpg.Connection, statement: str, entry: Entry) -> None:
        """Insert the rows of an append, and what else it changes, in one transaction.

        A plain entry is one statement, which is a transaction by itself. Raises Fenced, and errors of
        asyncpg.
        """
        if entry.is_plain:
            await self._insert_row(connection, statement, entry.rows[0])
            return
        changes = entry.changes
        async with connection.transaction():
            for row in entry.rows:
                await self._insert_row(connection, statement, row)
            await connection.executemany(_PUT_GAP, changes.gaps)
            kept = [(*key, state) for key, state in changes.accounts.items() if state is not None]
            await connection.executemany(_PUT_ACCOUNT, kept)
            gone = [key for key, state in changes.accounts.items() if state is None]
            await connection.executemany(_DROP_ACCOUNT, gone)
            if entry.tombstones:
                await connection.executemany(_PUT_TOMBSTONE, entry.tombstones.items())
                await connection.execute(_REVISE)

    async def _insert_row(self, connection: asyncpg.Connection, statement: str, row: tuple[Any, ...]) -> None:
        """Insert one row. Raises Fenced if the statement has inserted none.

        Then the term is over, or the row before this one is missing: a server was promoted that did not
        have it.
        """
        if not await connection.fetch(statement, *self._epoch, *row):
            raise self._end(f"{_TAKEN_OVER}, or the database has lost what was stored")

    async def _connected(self) -> asyncpg.Connection:
        """Return the connection. Raises one of `LOST`, or asyncpg.PostgresError."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._address, writes=True)
            self._connection.add_log_listener(self._warned)
            self._on_connected(self._connection.get_server_pid())
        return self._connection

    def _warned(self, _connection: object, _message: object) -> None:
        """Note a warning: the wait for a standby may have ended early."""
        self._warnings += 1

    async def resign(self) -> None:
        """Give up the term in the database, if it answers, so that a standby may lead at once.

        Waits `_RESIGN_S` seconds at most, and raises nothing: a standby takes over after a while in any
        case.
        """
        with suppress(*LOST, asyncpg.PostgresError):
            async with asyncio.timeout(_RESIGN_S):
                await (await self._connected()).execute(_RESIGN, *self._epoch)

    async def disconnect(self) -> None:
        """Close the connection at once."""
        await drop(self._connection)
        self._connection = None

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None and not self._connection.is_closed():
            with suppress(*LOST, asyncpg.PostgresError):
                await self._connection.close(timeout=_CLOSE_S)
        await self.disconnect()
