"""Upkeep: what the process that leads does in the background, beside appends and readers.

    beat      say that the term goes on
    reserve   reserve positions ahead of the tip
    seal      compress the oldest rows of the tail into segments
    rotate    fold states into their table, and change from one table of the tail to the other
    erase     rewrite segments and rows that have records of deleted accounts
    trim      delete what is past retention

It has a connection of its own, whose commits do not wait for standbys: if such a commit is lost with the
primary, it is done again. Each transaction first locks the row of the term, as appends do, so that a process
whose term is over changes nothing.

Sealing deletes nothing: rows of the tail that are sealed are not read any more. When there are many, the
tail is
rotated: what is left is copied to the other table, and this one is emptied. TRUNCATE needs the table for
itself, and waits for those that read it, such as a backup. It waits for a moment only, and is tried again
later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from secrets import token_bytes
from typing import Any, Final, NamedTuple

import asyncpg
import structlog

from jetstream.clock import unix_us
from jetstream.errors import Fenced, LogError
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.cursors import cursor_row
from jetstream.eventlog.erase import Tombstones
from jetstream.eventlog.postgresql.connection import LOST, connect, describe, drop
from jetstream.eventlog.postgresql.schema import LEADING, SEALED, pack
from jetstream.eventlog.postgresql.term import AHEAD_US, Term
from jetstream.eventlog.reader import POSITION_MAX, Hole, Row
from jetstream.eventlog.rewrite import Rewritten, next_rewritten, next_segment, sealed
from jetstream.eventlog.segment import Segment, compress
from jetstream.eventlog.states import Change, in_steps

BEAT_S: Final = 0.5
RETRY_S: Final = 10.0  # between two attempts to rotate while others read the table
LOCK_WAIT: Final = "200ms"  # for which rotation waits for those that read the table
FOLD_AT_ONCE: Final = 2_000  # states in one transaction
SAMPLED: Final = 1_000  # neighbours of which half are forgotten when there are too many states
ROW_BYTES: Final = 110  # of `repo` with its index: for the share of the states in the whole log
# Notifications stop while listeners that are stuck keep more than this share of their queue.
QUEUE_MAX: Final = 0.01
ROTATE_S: Final = 60.0  # between two rotations because of erased records
_QUEUE_CHECK_S: Final = 10.0

_BEAT: Final = (
    "UPDATE leader SET beat = beat + 1 FROM term WHERE term.epoch = $1 AND term.holder = $2 RETURNING beat"
)
_RESERVE: Final = "UPDATE leader SET reserved_us = greatest(reserved_us, $1)"
# Only what is not sealed yet.
_PUT_SEGMENT: Final = (
    "INSERT INTO segment (last_us, follows_us, first_us, events, bytes, collection_set, did_bits, accounts,"
    " times, kinds, dids, collections, rkeys, revs, cids, bodies) SELECT $1::bigint,"
    f" {SEALED}, $2::bigint, $3::integer,"
    " $4::integer, $5::bytea, $6::bytea, $7::bytea, $8::bytea, $9::bytea, $10::bytea, $11::bytea, $12::bytea,"
    f" $13::bytea, $14::bytea, $15::bytea WHERE {SEALED} < $2"
)
_CHANGE_SEGMENT: Final = (
    "UPDATE segment SET first_us = $2, events = $3, bytes = $4, collection_set = $5, did_bits = $6,"
    " accounts = $7, times = $8, kinds = $9, dids = $10, collections = $11, rkeys = $12, revs = $13,"
    " cids = $14, bodies = $15 WHERE last_us = $1"
)
_CHANGE_ROW: Final = "UPDATE tail_%s SET events = $2, data = $3 WHERE last_us = $1 AND first_us <= last_us"
_ERASED: Final = "UPDATE state SET revision = revision + 1, removed = removed + $1"
_DROP_TOMBSTONE: Final = "DELETE FROM tombstone WHERE did = $1 AND before_us = $2"
_TOMBSTONES: Final = "SELECT did, before_us FROM tombstone"
_PUT_REPO: Final = (
    "INSERT INTO repo SELECT * FROM unnest($1::bytea[], $2::bytea[])"
    " ON CONFLICT (did) DO UPDATE SET state = excluded.state"
)
_KNOWN_REPOS: Final = "SELECT count(*) FROM repo WHERE did = ANY($1::bytea[])"
_DROP_REPOS: Final = "DELETE FROM repo WHERE did = ANY($1::bytea[])"
_COUNT_REPOS: Final = "UPDATE state SET repos = repos + $1"
_FORGET: Final = (
    "DELETE FROM repo WHERE did IN (SELECT did FROM"
    " (SELECT did, state FROM repo WHERE did >= $1 ORDER BY did LIMIT $2) AS sample ORDER BY state LIMIT $3)"
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
_OLD_SEGMENTS: Final = "SELECT last_us, events FROM segment WHERE last_us < $1 ORDER BY last_us LIMIT $2"
_SIZES: Final = "SELECT last_us, bytes FROM segment ORDER BY last_us"
_SIZE: Final = "SELECT coalesce(sum(bytes), 0)::bigint FROM segment"
_DROP_SEGMENTS: Final = "DELETE FROM segment WHERE last_us <= $1"
_MOVE_FLOOR: Final = "UPDATE state SET floor_us = greatest(floor_us, $1), removed = removed + $2"
_DROP_GAPS_BEFORE: Final = "DELETE FROM gap WHERE time_us < $1"
_DROP_OLDEST_GAPS: Final = (
    "DELETE FROM gap WHERE time_us <= (SELECT time_us FROM gap ORDER BY time_us DESC LIMIT 1 OFFSET $1)"
)


class Retention(NamedTuple):
    """What is kept; None is without limit."""

    seconds: float | None = None
    bytes: int | None = None  # of segments
    clock: Callable[[], int] = unix_us


class Upkeep:
    """Keeps the log of one term in order, until `close` or the end of the term."""

    def __init__(
        self, term: Term, retention: Retention = Retention(), *, queue_max: float = QUEUE_MAX
    ) -> None:
        self._term = term
        self._log = term.log
        self._limits = term.log.limits
        self._retention = retention
        # Share of the queue above which nothing is notified.
        self._queue_max = queue_max
        # The connection of all transactions here; one runs at a time.
        self._connection: asyncpg.Connection | None = None
        self._using = asyncio.Lock()
        # Held during a run.
        self._running = asyncio.Lock()
        # The tombstones of the current pass over the log, and the position that it has reached.
        self._tombstones: Tombstones = {}
        self._erased_to = 0
        # Up to which row the states that are being folded were changed.
        self._folding_id = term.folded_id
        # Whether something erased is among the rows of the table in use.
        self._must_rotate = False
        # When the tail may be rotated again because of that, and when the queue of notifications is looked at
        # again, in the time of the event loop.
        self._rotate_at = self._queue_at = 0.0
        # When rotating is tried again after others have read the table for too long, in the same time.
        self._retry_at = 0.0
        self._logger = structlog.get_logger(__name__)
        self._tasks = [asyncio.create_task(self._beat_forever()), asyncio.create_task(self._run_forever())]
        term.on_close.append(self.close)

    async def close(self) -> None:
        """Stop, and wait until the transaction that runs has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await drop(self._connection)

    async def run(self) -> None:
        """Do all that is due now. Raises LogError, one of `LOST`, or asyncpg.PostgresError."""
        term = self._term
        async with self._running:
            term.raise_failure()
            if term.tip + AHEAD_US // 2 > term.reserved_us:
                await self._reserve()
            await self._seal()
            await self._rotate_if_due()
            await self._erase()
            await self._retain()
            await self._check_queue()

    async def _run_forever(self) -> None:
        """Run once a second, while the term lasts."""
        failing = False
        while True:
            await asyncio.sleep(self._limits.upkeep_interval_s)
            try:
                await self.run()
            except Damaged as error:
                self._term.end(f"the tail is damaged: {error}")
                return
            except Fenced:
                return
            except (*LOST, asyncpg.PostgresError, LogError, Hole) as error:
                if not failing:
                    self._logger.warning("log: upkeep failed, trying again", error=describe(error))
                failing = True
                await self._disconnect()
            else:
                if failing:
                    self._logger.info("log: upkeep works again")
                failing = False

    async def _beat_forever(self) -> None:
        """Let standbys see that the term goes on; notice when it does not."""
        while True:
            with suppress(*LOST, asyncpg.PostgresError):
                async with self._using:
                    connection = await self._connected()
                    if await connection.fetchval(_BEAT, *self._term.epoch) is None:
                        self._term.end("another process has taken over")
                        return
            await asyncio.sleep(BEAT_S)

    # Transactions

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Commit all statements inside, or none. Raises Fenced if the term is over."""
        async with self._using:
            connection = await self._connected()
            async with connection.transaction():
                if await connection.fetchval(LEADING, *self._term.epoch) is None:
                    raise self._term.end("another process has taken over")
                yield connection

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._log.address, writes=True, synchronous_commit="local")
        return self._connection

    async def _disconnect(self) -> None:
        async with self._using:
            await drop(self._connection)
            self._connection = None

    async def _reserve(self) -> None:
        """Reserve positions ahead; appends need not wait for it then."""
        until_us = self._term.tip + AHEAD_US
        async with self._transaction() as connection:
            await connection.execute(_RESERVE, until_us)
        self._term.reserved_us = max(self._term.reserved_us, until_us)

    # Sealing

    async def _seal(self) -> None:
        while (segment := await self._log.work(next_segment)) is not None:
            await self._store_segment(segment)

    async def _store_segment(self, segment: Segment) -> None:
        async with self._transaction() as connection:
            if not _count(await connection.execute(_PUT_SEGMENT, *_values(segment))):
                raise Hole(segment.first_us)
        self._term.sealed_us = segment.last_us
        self._term.sealed_events += segment.events

    # Rotating

    async def _rotate_if_due(self) -> None:
        term, limits, now = self._term, self._limits, asyncio.get_running_loop().time()
        if len(term.recent) >= limits.repo_changes:
            await self._fold()
        must = self._must_rotate and now >= self._rotate_at
        if now >= self._retry_at and (
            must or term.sealed_events >= max(limits.tail_events, limits.segment_events)
        ):
            await self.rotate()

    async def rotate(self) -> None:
        """Fold states, and change the table of the tail, unless others read it for longer than a moment."""
        await self._fold()
        try:
            async with self._term.writing:
                await self._change_tables()
        except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError):
            self._logger.info("log: the tail is read by others for long, and grows meanwhile")
            self._retry_at = asyncio.get_running_loop().time() + RETRY_S
            return
        self._term.sealed_events, self._must_rotate = 0, False
        self._rotate_at = asyncio.get_running_loop().time() + ROTATE_S

    async def _change_tables(self) -> None:
        """Copy what is not sealed or folded to the other table, and empty this one. No append may run."""
        term = self._term
        old, new = term.tail, "b" if term.tail == "a" else "a"
        async with self._transaction() as connection:
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT}'")
            await connection.execute(_COPY.format(old=old, new=new), term.sealed_us, term.folded_id)
            await connection.execute("DELETE FROM cursor")
            await connection.executemany(_PUT_CURSOR, [cursor_row(*each) for each in term.cursors.items()])
            await connection.execute("UPDATE state SET tail = $1", new)
            await connection.execute(f"TRUNCATE tail_{old}")
        term.tail = new

    async def _fold(self) -> None:
        """Write states that have changed to their table, in steps."""
        term = self._term
        if not term.folding:
            async with term.writing:
                term.folding, term.recent, folded_id = term.recent, {}, term.last_id
        else:
            folded_id = self._folding_id
        self._folding_id = folded_id
        for step in await asyncio.to_thread(in_steps, term.folding, FOLD_AT_ONCE):
            term.repo_rows += await self._fold_step(step)
        async with self._transaction() as connection:
            await connection.execute("UPDATE state SET folded_id = $1", folded_id)
        term.keep_loaded(term.folding)
        term.folding, term.folded_id = {}, folded_id
        while term.repo_rows > self._states_max:
            term.repo_rows -= await self._forget_some()

    async def _fold_step(self, step: list[Change]) -> int:
        """Write some states; return how many rows their table has more than before."""
        kept = [(did, state) for did, state in step if state is not None]
        dids, gone = [did for did, _ in kept], [did for did, state in step if state is None]
        async with self._transaction() as connection:
            added = len(dids) - await connection.fetchval(_KNOWN_REPOS, dids)
            await connection.execute(_PUT_REPO, dids, [state for _, state in kept])
            if gone:
                added -= _count(await connection.execute(_DROP_REPOS, gone))
            await connection.execute(_COUNT_REPOS, added)
        return int(added)

    @property
    def _states_max(self) -> int:
        """How many states are kept."""
        limits, size = self._limits, self._retention.bytes
        return min(limits.repo_states, int((size or 1 << 60) * limits.repo_states_share) // ROW_BYTES)

    async def _forget_some(self) -> int:
        """Delete the states with the oldest revs of a sample, which is any run of keys; return how many."""
        async with self._transaction() as connection:
            start = token_bytes(15)
            deleted = _count(await connection.execute(_FORGET, start, SAMPLED, SAMPLED // 2))
            if not deleted:  # it began behind the last one
                deleted = _count(await connection.execute(_FORGET, b"", SAMPLED, SAMPLED // 2))
            await connection.execute(_COUNT_REPOS, -deleted)
        return deleted

    # Erasing

    async def _erase(self) -> None:
        """Rewrite what has erased records, a few segments at a time, and at the end of a pass the tail."""
        if not self._tombstones:
            self._tombstones = dict(await self._log.fetch(_TOMBSTONES))
            self._erased_to = 0
        if not self._tombstones:
            return
        tombstones = self._tombstones
        for _ in range(self._limits.erase_segments):
            position = max(self._erased_to, self._log.floor)
            stop = max(tombstones.values())
            if position >= stop:
                after, rewritten = None, list[Rewritten]()
            else:
                after, rewritten = await self._log.work(
                    partial(next_rewritten, tombstones=tombstones, position=position)
                )
            if after is None:
                await self._replace(rewritten, tombstones)
                self._tombstones, self._must_rotate = {}, True
                return
            if rewritten:
                await self._replace(rewritten, {})
            self._erased_to = after

    async def _replace(self, rewritten: list[Rewritten], done: Tombstones) -> None:
        """Put what was rewritten in the place of the old, and delete the tombstones that are done."""
        async with self._transaction() as connection:
            for each in rewritten:
                if each.table == "segment":
                    segment = each.left if isinstance(each.left, Segment) else _empty(each.last_us)
                    await connection.execute(_CHANGE_SEGMENT, *_values(segment))
                else:
                    events, data = (
                        (each.left.events, pack(each.left.columns))
                        if isinstance(each.left, Row)
                        else (0, b"")
                    )
                    await connection.execute(_CHANGE_ROW % self._term.tail, each.last_us, events, data)
            # A later account event may have moved a tombstone meanwhile: that one stays.
            await connection.executemany(_DROP_TOMBSTONE, done.items())
            await connection.execute(_ERASED, sum(each.erased for each in rewritten))
        await self._log.looked_again()

    # Retention

    async def _retain(self) -> None:
        """Trim what is past retention, by age and by size."""
        retention, term = self._retention, self._term
        if retention.seconds is not None:
            await self.trim(retention.clock() - int(retention.seconds * 1_000_000))
        if retention.bytes is not None:
            await self.trim(await self._position_within(retention.bytes))
        if term.gap_rows > (most := self._limits.gap_rows):
            async with self._transaction() as connection:
                term.gap_rows -= _count(await connection.execute(_DROP_OLDEST_GAPS, most))

    async def _position_within(self, bytes_max: int) -> int:
        """Return the position below which segments must go for them to take `bytes_max`; 0 for none."""
        ((size,),) = await self._log.fetch(_SIZE)
        position = 0
        if size > bytes_max:
            for last_us, segment_bytes in await self._log.fetch(_SIZES):
                if size <= bytes_max:
                    break
                size -= segment_bytes
                position = last_us + 1
        return position

    async def trim(self, before_us: int) -> None:
        """Delete segments that end before a position, and what is not sealed if all of it does."""
        oldest_us = self._log.oldest_us
        if oldest_us is None or oldest_us >= before_us:
            return
        await self._seal_before(before_us)
        while await self._trim_some(before_us):
            pass
        await self._log.looked_again()

    async def _seal_before(self, before_us: int) -> None:
        """Seal rows that end before a position, however few: only segments are deleted."""
        if self._term.sealed_us >= before_us - 1:
            return
        rows = await self._log.work(
            lambda reader: [row for row in reader.tail_rows(0, POSITION_MAX) if row.last_us < before_us]
        )
        if any(row.events for row in rows):
            await self._store_segment(await asyncio.to_thread(sealed, rows))
            self._must_rotate = True

    async def _trim_some(self, before_us: int) -> bool:
        """Delete some segments, and move the floor; return whether there were any."""
        async with self._transaction() as connection:
            rows = await connection.fetch(_OLD_SEGMENTS, before_us, self._limits.trim_segments)
            if not rows:
                return False
            last_us, removed = rows[-1][0], sum(events for _, events in rows)
            await connection.execute(_DROP_SEGMENTS, last_us)
            await connection.execute(_MOVE_FLOOR, last_us + 1, removed)
            gaps = _count(await connection.execute(_DROP_GAPS_BEFORE, last_us + 1))
        self._term.gap_rows -= gaps
        return True

    # Notifications

    async def _check_queue(self) -> None:
        """Do not notify while a listener that is stuck keeps the queue from being emptied."""
        now = asyncio.get_running_loop().time()
        if now < self._queue_at:
            return
        self._queue_at = now + _QUEUE_CHECK_S
        try:
            ((usage,),) = await self._log.fetch("SELECT pg_notification_queue_usage()")
        except LogError:
            self._term.notifies = False  # this database has no notifications
            return
        self._term.notifies = usage < self._queue_max


def _values(segment: Segment) -> tuple[Any, ...]:
    """Return a segment as the values of a row."""
    last_us, first_us, events, *blobs = segment
    return (last_us, first_us, events, segment.size, *blobs)


def _empty(last_us: int) -> Segment:
    """Return a segment of which all was erased: its row stays, so that nothing seems to be missing."""
    return Segment(last_us, last_us, 0, *[compress(b"")] * 11)


def _count(status: str) -> int:
    """Return the number of rows from the status of a statement, such as `DELETE 3`."""
    return int(status.rpartition(" ")[2])
