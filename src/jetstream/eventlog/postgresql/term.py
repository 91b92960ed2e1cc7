"""A term: the time for which this process, and no other, writes the log.

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
before it.

States of repositories are looked up in memory: what was changed since the last fold, and what `load_repos`
has read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from secrets import randbits
from typing import Any, Final, NamedTuple

import asyncpg
import orjson
import structlog

from jetstream.errors import Fenced, LogError, LogUnwritable
from jetstream.eventlog import Changes, Cursors, Gap, SourceCursor
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.cursors import cursor_row, named_cursor
from jetstream.eventlog.erase import Tombstones, find_tombstones
from jetstream.eventlog.postgresql.blocking import BlockingReader
from jetstream.eventlog.postgresql.connection import LOST, connect, describe, drop
from jetstream.eventlog.postgresql.schema import CHANNEL, TAILS, Epoch, pack
from jetstream.eventlog.postgresql.store import PostgresLog
from jetstream.eventlog.states import pack as pack_states
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.status import LogStatistics

AHEAD_US: Final = 30_000_000  # positions are reserved this far ahead of the newest event
_RESIGN_S: Final = 2.0  # a database that does not answer is not waited for: a standby takes over anyway
RETRY_S: Final = 0.5  # between two attempts to find out what became of an append
LOADED_MAX: Final = 200_000  # states of repositories in memory, beside those that have changed
# Inserts a row if the term is this process's, and the row before it is the newest one.
_APPEND: Final = """
WITH mine AS (SELECT id FROM term WHERE epoch = $1 AND holder = $2 FOR SHARE)
INSERT INTO tail_%s (id, last_us, follows_us, first_us, events, appended, nonce, data, cursors, repos)
SELECT $3::bigint, $4::bigint, $5::bigint, $6::bigint, $7::integer, $8::bigint, $9::bigint, $10::bytea,
$11::text,
    $12::bytea FROM mine WHERE (SELECT max(id) FROM tail_%s) = $3 - 1
RETURNING %s
"""
_SETTLE: Final = """
SELECT (SELECT count(*) FROM term WHERE epoch = $1 AND holder = $2) = 1 AS leads,
    (SELECT nonce FROM tail WHERE id = $3) AS nonce
"""
_CONFIRM: Final = "UPDATE leader SET beat = beat + 1"
_RESERVE: Final = (
    "UPDATE leader SET reserved_us = greatest(reserved_us, $3) FROM term"
    " WHERE term.epoch = $1 AND term.holder = $2 RETURNING reserved_us"
)
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
_REVISE: Final = "UPDATE state SET revision = revision + 1"
_REPOS: Final = "SELECT did, state FROM repo WHERE did = ANY($1::bytea[])"


def append_statement(tail: str, *, notify: bool) -> str:
    """Return the statement that appends a row to one of the tails."""
    returned = f"pg_notify('{CHANNEL}', '')" if notify else "id"
    return _APPEND % (tail, tail, returned)


_APPENDS: Final = {
    (tail, notify): append_statement(tail, notify=notify) for tail in TAILS for notify in (True, False)
}


class Stored(NamedTuple):
    """What the database held when the term began."""

    last_id: int  # of the newest row of the tail
    last_us: int  # its end
    begin_us: int  # the highest position that may have been given out
    appended: int  # events, ever
    reserved_us: int
    tail: str  # the table in use
    sealed_us: int  # the end of what is sealed; -1: nothing is
    sealed_events: int  # events of the tail that are sealed
    folded_id: int  # up to this row, states are in their table
    cursors: dict[str, SourceCursor]
    repos: dict[bytes, bytes | None]  # what has changed since then
    repo_rows: int
    accounts: dict[tuple[str, str], bytes]
    gaps: int


class Entry(NamedTuple):
    """One append as it is written."""

    rows: list[tuple[Any, ...]]  # the values of each row from `id` on
    changes: Changes
    tombstones: Tombstones

    @property
    def is_plain(self) -> bool:
        """Whether it is one row and nothing else: nearly every append is."""
        return len(self.rows) == 1 and not (self.changes.gaps or self.changes.accounts or self.tombstones)


class Term:
    """`LogReader` and `LogWriter` say what the methods promise. `leading.lead` begins a term.

    `erase` has the statuses of account events that erase the account's records. `on_end` is called once, when
    the term has ended without `resign`.
    """

    def __init__(self, log: PostgresLog, epoch: Epoch, stored: Stored, erase: frozenset[str]) -> None:
        # What reads the same database.
        self.log = log
        self.epoch = epoch
        # What the database holds. `append` changes it, and upkeep what it has sealed, folded and moved.
        self.last_id, self.last_us = stored.last_id, stored.last_us
        self.appended = stored.appended
        self.tail = stored.tail
        self.sealed_us, self.folded_id = stored.sealed_us, stored.folded_id
        self.sealed_events = stored.sealed_events
        self.repo_rows, self.gap_rows = stored.repo_rows, stored.gaps
        # The highest position that may have been given out.
        self.tip = stored.begin_us
        self.reserved_us = stored.reserved_us
        self.cursors: Cursors = stored.cursors
        self._accounts = stored.accounts
        # A mirror adds those of its upstream.
        self.erases = erase
        # States that have changed: since the last fold, and those that are being folded. What was read of the
        # others; empty bytes: nothing is known.
        self.recent = stored.repos
        self.folding: dict[bytes, bytes | None] = {}
        self._loaded: dict[bytes, bytes] = {}
        # Reads those that were not loaded.
        self._lookups = BlockingReader(log.address)
        # Whether appends notify: not while a listener that is stuck fills the queue of notifications.
        self.notifies = True
        # Held during an append, and while upkeep changes tables.
        self.writing = asyncio.Lock()
        # Why the term is over; None: it is not. And set with it.
        self._failure: LogError | None = None
        self.ended = asyncio.Event()
        # The connection that appends; made again when it was lost. How often the server has warned on it.
        self._connection: asyncpg.Connection | None = None
        self._warnings = 0
        # Whether the caller of the append that runs does not wait any more.
        self._hurried = False
        # Closed with the term.
        self.on_close: list[Callable[[], Awaitable[None]]] = []
        self._logger = structlog.get_logger(__name__)

    # Reading: what this process has stored is read as by any other

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing."""
        return self.log.floor

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept."""
        return self.log.oldest_us

    @property
    def followers(self) -> Followers:
        """The readers that the writer waits for."""
        return self.log.followers

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want."""
        return await self.log.read(position, stop, wanted)

    @property
    def newest(self) -> int:
        """The highest position that the log is known to have."""
        return max(self.tip, self.log.newest)

    @property
    def is_current(self) -> bool:
        """Whether `newest` is of now: nobody else writes."""
        return True

    async def look(self) -> None:
        """Learn the newest position. Raises LogError."""
        await self.log.look()

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been read back, and its append has returned."""
        await self.log.wait(position)
        while self.tip < position:
            async with self.writing:
                await asyncio.sleep(0)

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return await self.log.gaps(since_us, count_max)

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position."""
        return await self.log.holds(keys)

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""
        return await self.log.keys_from(position, stop)

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return self.log.statistics()

    # States and accounts

    def repo(self, did: bytes) -> bytes | None:
        """Return the state of a repository. One that was not loaded costs a round trip. Raises LogError."""
        for changes in (self.recent, self.folding):
            if did in changes:
                return changes[did]
        state = self._loaded.get(did)
        if state is None:
            found = self._lookups.fetch(_REPOS, [did])
            state = found[0]["state"] if found else b""
            self.keep_loaded({did: state})
        return state or None

    async def load_repos(self, dids: Collection[bytes]) -> None:
        """Load states, all at once, so that `repo` has them in memory. Raises LogError."""
        known = (self.recent, self.folding, self._loaded)
        missing = [did for did in dids if not any(did in states for states in known)]
        if missing:
            found = dict(await self.log.fetch(_REPOS, missing))
            self.keep_loaded({did: found.get(did) for did in missing})

    def keep_loaded(self, repos: Mapping[bytes, bytes | None]) -> None:
        """Keep states in memory that are in their table."""
        if len(self._loaded) + len(repos) > LOADED_MAX:
            self._loaded.clear()
        self._loaded.update((did, state or b"") for did, state in repos.items())

    def accounts(self) -> Mapping[tuple[str, str], bytes]:
        """Return what is stored of accounts, by source and DID."""
        return dict(self._accounts)

    # Writing

    async def append(self, batch: Batch, changes: Changes, received_at: float | None = None) -> None:
        """Store events and all changes together, or neither.

        Raises LogUnwritable with nothing stored, and Fenced if the term is over.
        """
        async with self.writing:
            self.raise_failure()
            task = asyncio.ensure_future(self._append(batch, changes, received_at))
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                self._hurried = True
                await asyncio.wait([task])
                if not task.cancelled():
                    task.exception()  # the business of nobody any more: `raise_failure` says it
                raise
            finally:
                self._hurried = False

    async def _append(self, batch: Batch, changes: Changes, received_at: float | None) -> None:
        count = len(batch)
        assert not count or batch.first > self.tip
        tombstones = find_tombstones(batch, self.erases)
        if count and batch.last > self.reserved_us:
            await self._reserve(batch.last)
        entry = Entry(self._rows(batch, changes), changes, tombstones)
        await self._store(entry)
        follows_us = self.last_us
        self.last_id += len(entry.rows)
        self.cursors = changes.cursors
        self.recent.update(changes.repos)
        self.gap_rows += len(changes.gaps)
        for key, state in changes.accounts.items():
            if state is None:
                self._accounts.pop(key, None)
            else:
                self._accounts[key] = state
        if count:
            self.tip = self.last_us = batch.last
            self.appended += count
            self.log.publish(batch, follows_us, self.appended)
            self.followers.append(self.tip, received_at)
        if tombstones:
            self.log.erase(tombstones)

    def _rows(self, batch: Batch, changes: Changes) -> list[tuple[Any, ...]]:
        """Return the rows of an append, the last one with the cursors and states."""
        parts: Iterable[Batch] = ()
        if len(batch):
            batch_bytes = self.log.limits.batch_bytes
            parts = batch.parts(batch_bytes) if batch.text_bytes() > batch_bytes else (batch,)
        number, last_us, appended = self.last_id, self.last_us, self.appended
        rows: list[tuple[Any, ...]] = []
        for part in parts:
            number, appended = number + 1, appended + len(part)
            data = pack(Columns.of(part))
            rows.append((number, part.last, last_us, part.first, len(part), appended, randbits(63), data))
            last_us = part.last
        if not rows:
            rows.append((number + 1, last_us, last_us, last_us + 1, 0, appended, randbits(63), b""))
        repos = pack_states(changes.repos) if changes.repos else None
        return [*((*row, None, None) for row in rows[:-1]), (*rows[-1], self._moved(changes.cursors), repos)]

    def _moved(self, cursors: Cursors) -> str | None:
        """Return the cursors that have moved, and the names of those that are gone, as JSON; or None."""
        if cursors == self.cursors:
            return None
        before = self.cursors
        moved = [cursor_row(source, each) for source, each in cursors.items() if before.get(source) != each]
        gone = [(source,) for source in before if source not in cursors]
        return orjson.dumps([*moved, *gone]).decode()

    async def _reserve(self, position: int) -> None:
        """Reserve positions above one, before the first of them is given out."""
        try:
            connection = await self._connected()
            reserved_us = await connection.fetchval(_RESERVE, *self.epoch, position + AHEAD_US)
        except (*LOST, asyncpg.PostgresError) as error:
            await self._disconnect()
            raise LogUnwritable(self.log.name, describe(error)) from error
        if reserved_us is None:
            raise self.end("another process has taken over")
        self.reserved_us = reserved_us

    async def _store(self, entry: Entry) -> None:
        """Insert the rows of an append; return when they are stored for certain."""
        in_doubt = False
        while True:
            sent = False
            try:
                connection = await self._connected()
                warnings, sent = self._warnings, True
                if in_doubt and await self._is_stored(connection, entry):
                    await connection.execute(_CONFIRM)
                    return
                await self._insert(connection, entry)
                if self._warnings != warnings:
                    await connection.execute(_CONFIRM)
            except (*LOST, asyncpg.UniqueViolationError) as error:
                await self._disconnect()
                if not (sent or in_doubt):
                    raise LogUnwritable(self.log.name, describe(error)) from error
                in_doubt = True
                problem = describe(error)
            except asyncpg.PostgresError as error:
                await self._disconnect()
                if not in_doubt:
                    raise LogUnwritable(self.log.name, describe(error)) from error
                problem = describe(error)
            else:
                return
            if self._hurried:
                raise self.end(f"it is not known whether the last append was stored: {problem}")
            self._logger.info("log: an append is in doubt, asking the database", problem=problem)
            await asyncio.sleep(RETRY_S)

    async def _is_stored(self, connection: asyncpg.Connection, entry: Entry) -> bool:
        """Tell whether an append was stored. Raises Fenced if it was not, and the term is over."""
        *_, row = entry.rows
        found = await connection.fetchrow(_SETTLE, *self.epoch, row[0])
        if found["nonce"] == row[6]:
            return True
        if not found["leads"] or found["nonce"] is not None:
            raise self.end("another process has taken over")
        return False

    async def _insert(self, connection: asyncpg.Connection, entry: Entry) -> None:
        statement = _APPENDS[self.tail, self.notifies]
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
        if not await connection.fetch(statement, *self.epoch, *row):
            raise self.end("another process has taken over, or the database has lost what was stored")

    async def _connected(self) -> asyncpg.Connection:
        """Return the connection that appends. Raises one of `LOST`, or asyncpg.PostgresError."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self.log.address, writes=True)
            self._connection.add_log_listener(self._warned)
            self.log.own_process = self._connection.get_server_pid()
        return self._connection

    def _warned(self, _connection: object, _message: object) -> None:
        """Note a warning: the wait for a standby may have ended early."""
        self._warnings += 1

    async def _disconnect(self) -> None:
        await drop(self._connection)
        self._connection = None

    # The end

    def end(self, problem: str) -> Fenced:
        """End the term, and return the error."""
        failure = Fenced(self.log.name, problem)
        if self._failure is None:
            self._failure = failure
            self.ended.set()
        return failure

    def raise_failure(self) -> None:
        """Raise the error that has ended the term, if one has."""
        if self._failure is not None:
            raise self._failure

    async def resign(self) -> None:
        """End the term, so that a standby may lead at once. The log stays open."""
        for close in self.on_close:
            await close()
        if self._failure is None:
            self.end("this process has resigned")
            with suppress(*LOST, asyncpg.PostgresError):
                await (await self._connected()).execute(_RESIGN, *self.epoch, timeout=_RESIGN_S)
        if self._connection is not None and not self._connection.is_closed():
            with suppress(*LOST, asyncpg.PostgresError):
                await self._connection.close(timeout=1.0)
        await self._disconnect()
        self._lookups.close()

    async def close(self) -> None:
        """Resign, and close the log."""
        await self.resign()
        await self.log.close()


def cursors_after(rows: Iterable[tuple[Any, ...]], appended: Iterable[str]) -> dict[str, SourceCursor]:
    """Return the cursors: the rows of their table, then what rows of the tail have changed, in order."""
    cursors = dict(map(named_cursor, rows))
    for text in appended:
        for source, *values in orjson.loads(text):
            if values:
                cursors |= [named_cursor((source, *values))]
            else:
                cursors.pop(source, None)
    return cursors
