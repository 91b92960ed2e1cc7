"""The event log in a PostgreSQL database, as its readers see it.

    database      … segments │ rows of the tail ──────────────────▶│ ─ ─ ▶ appended, not read yet
    this process    loaded as readers need them │ hot tail ─▶│ tip

One task follows the log: it asks for the rows above the tip, and for the floor and the revision of erasures,
in one statement, so in one snapshot. It does so when the writer notifies it, and four times a second
besides. What it has read is the tip that readers see. So the tip of this process rises when it has all that
comes before.

A row is taken only if it follows the tip. Where the one that does is not there, it is waited for: it was
sealed and moved meanwhile, or a replica is behind. If it was sealed, the tip moves on, and readers find it
in segments.

When the revision changes, records were erased. What this process holds of them is dropped at once: the hot
tail, and the segments with what is rendered of them. What is read from the database is filtered by the
tombstones until it is rewritten. Nothing stored is served while the revision cannot be read: for longer than
a second, readers wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeVar

import asyncpg
import structlog

from jetstream.conditions import Conditions
from jetstream.errors import LogError, LogFormat
from jetstream.eventlog import Gap, lookup
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.erase import Tombstones, without_erased
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.postgresql.connection import LOST, connect, describe, drop, shown, translated
from jetstream.eventlog.postgresql.leader_watch import LeaderWatch
from jetstream.eventlog.postgresql.reader import DatabaseReader, ReaderPool
from jetstream.eventlog.postgresql.schema import CHANNEL, SEALED, check_version
from jetstream.eventlog.reader import Hole
from jetstream.eventlog.segment import decompress
from jetstream.eventlog.segment_cache import Loaded, SegmentCache
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.scheduling import Notifier
from jetstream.status import EdgeStatus, LogStatistics

Result = TypeVar("Result")

POLL_S: Final = 0.25  # between two looks without a notification
FRESH_S: Final = 1.0  # for so long after a look, what is stored may be served
CURRENT_S: Final = 0.5  # for so long, what it says of the newest position is of now
RECONNECT_S: Final = 0.25  # between two attempts
MEASURE_S: Final = 10.0  # between two measurements of the tables
BEAT_S: Final = 1.0  # between two looks at the heartbeat
_ANSWER_S: Final = 5.0  # after which a database that does not answer counts as gone
_ROWS: Final = 16  # of one look: each has up to 1 MiB

# The rows above the tip, with the state of the log: one row without them if there are none.
_POLL: Final = """
SELECT s.floor_us, s.removed, s.revision, t.last_us, t.follows_us, t.events, t.appended, t.data,
    (SELECT max(last_us) FROM tail) AS newest_us
FROM state s LEFT JOIN (
    SELECT * FROM tail WHERE last_us > $1 AND first_us <= last_us ORDER BY last_us LIMIT $2
) t ON true ORDER BY t.last_us
"""
# What is not sealed, newest first, with the state of the log.
_RELOAD: Final = f"""
SELECT s.floor_us, s.removed, s.revision, t.last_us, t.follows_us, t.events, t.appended, t.data,
    {SEALED} AS sealed_us,
    (SELECT max(last_us) FROM tail) AS newest_us,
    (SELECT appended FROM tail ORDER BY id DESC LIMIT 1) AS all_appended
FROM state s LEFT JOIN (
    SELECT * FROM tail WHERE first_us <= last_us AND last_us > {SEALED} ORDER BY last_us DESC LIMIT $1
) t ON true ORDER BY t.last_us DESC
"""
_TOMBSTONES: Final = "SELECT s.revision, t.did, t.before_us FROM state s LEFT JOIN tombstone t ON true"
_OLDEST: Final = f"""
SELECT coalesce(
    (SELECT first_us FROM segment WHERE events > 0 ORDER BY last_us LIMIT 1),
    (SELECT first_us FROM tail WHERE events > 0 AND last_us > {SEALED} ORDER BY last_us LIMIT 1))
"""
_SIZE: Final = """
SELECT sum(pg_total_relation_size(name::regclass))::bigint
FROM unnest(ARRAY['tail_a', 'tail_b', 'segment', 'repo', 'gap', 'account']) AS name
"""
_BEAT: Final = "SELECT beat FROM leader"
_NEWEST: Final = "SELECT max(last_us) FROM tail"
_GAPS: Final = (
    "SELECT time_us, did, after_rev, rev, cause FROM gap WHERE time_us >= $1 AND time_us <= coalesce("
    "(SELECT time_us FROM gap WHERE time_us >= $1 ORDER BY time_us LIMIT 1 OFFSET $2), time_us)"
    " ORDER BY time_us"
)


class Options(NamedTuple):
    """What a log is opened with, beside its address."""

    limits: LogLimits = LogLimits()
    # Seconds between two looks without a notification, and for which what is stored may be served after one.
    poll_s: float = POLL_S
    fresh_s: float = FRESH_S
    # Whether to read from the primary only, as a process that writes does.
    primary: bool = False
    # Told of `writer_gone` and `log_unreadable`.
    conditions: Conditions | None = None
    # Called with events that another process has stored, as this one learns of them.
    on_read: Callable[[Batch], None] = lambda _batch: None
    # Gives monotonic seconds.
    monotonic: Callable[[], float] = time.monotonic


class PostgresLog:
    """A log that another process may write. `LogReader` says what the methods promise; `open` makes one."""

    def __init__(self, address: str, options: Options = Options()) -> None:
        # The database, with its password, and as it is logged.
        self.address = address
        self.name = shown(address)
        self.limits = options.limits
        self._options = options
        self._conditions = options.conditions or Conditions()
        # The readers that a writer in this process waits for.
        self.followers = Followers()
        # The lowest position from which nothing is missing, as of the last look.
        self.floor = 0
        # The newest position that was read back, and the newest that was seen; they rise.
        self.tip = self._newest = 0
        # The position of the oldest event; None: the log is empty. Read when the floor has moved.
        self.oldest_us: int | None = None
        # The revision of erasures, and the accounts that are not erased from the database yet.
        self._revision = -1
        self._tombstones: Tombstones = {}
        # Events ever, events that are gone, and the size of the tables, as of the last look.
        self._appended = self._removed = self._bytes = 0
        # What was read of the tail. Made again after erasures.
        self.hot_tail = HotTail(0, self.limits)
        # Loaded segments. Replaced after erasures: what is being loaded then is not kept.
        self._segments = self._cache()
        self._pool = ReaderPool(address, self.limits, primary=options.primary)
        # Wakes those in `wait` when the tip has moved, and those that wait for the next look.
        self._appended_more, self._looked = Notifier(), Notifier()
        # Looks that were begun, the last one that has succeeded, when that was, and until when its answer
        # counts.
        self._begun = self._done = 0
        self._looked_at = self._fresh_until = -math.inf
        # Whether another process writes, and how far it is; told so about once a second.
        self._leader = LeaderWatch(options.limits.writer_gone_s, options.monotonic)
        self._beat_at = 0.0
        # When the tables are measured again, in monotonic seconds.
        self._measure_at = 0.0
        # Set by a notification, and by what cannot wait for the next look.
        self._woken = asyncio.Event()
        # The server's process of the connection with which this process appends; 0: it does not.
        self.own_process = 0
        # Follows the log until `close`.
        self._task: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger(__name__)

    @classmethod
    async def open(cls, address: str, options: Options = Options(), *, wait: bool = False) -> PostgresLog:
        """Open the log in a database, and read its newest events.

        With `wait`, waits for a database that does not answer or has no tables yet. Raises LogUnreachable,
        LogFormat for tables of a version that this program does not read, LogError if there are none.
        """
        log = cls(address, options)
        await log._pool.open()
        try:
            connection = await log._opened(wait=wait)
        except BaseException:
            await log.close()
            raise
        log._task = asyncio.create_task(log._follow(connection))
        return log

    async def _opened(self, *, wait: bool) -> asyncpg.Connection:
        """Return a connection with which the log was read."""
        waiting = False
        while True:
            connection = None
            try:
                with translated(self.address):
                    connection = await self._connected()
                    await self._look(connection)
                    return connection
            except BaseException as error:
                await drop(connection)
                if not wait or not isinstance(error, LogError) or isinstance(error, LogFormat):
                    raise
                if not waiting:
                    self._logger.info("log: waiting for it", problem=error.problem, address=self.name)
                waiting = True
            await asyncio.sleep(RECONNECT_S)

    async def close(self) -> None:
        """Stop following, and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._pool.close()

    # Reading

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want.

        Waits while the database does not answer. Raises LogError.
        """
        position, stop = max(position, self.floor), min(stop, self.tip + 1)
        while position < stop:
            if self._options.monotonic() >= self._fresh_until:
                await self.looked_again()
            start = self.hot_tail.start
            if position >= start:
                return self.hot_tail.at(position, stop)
            after, batch = await self._read_stored(position, min(stop, start), wanted)
            if batch is not None:
                return batch
            position = max(after, self.floor)
        return None

    async def _read_stored(self, position: int, stop: int, wanted: Filter) -> tuple[int, Batch | None]:
        """Return the position at which to continue, and what was found below it."""
        loaded = self._segments.at(position)
        if loaded is not None:
            return min(loaded.last + 1, stop), loaded if loaded.index(position) < loaded.index(stop) else None
        revision = self._revision
        try:
            after, found = await self._pool.run(lambda reader: reader.scan(position, stop, wanted), revision)
            if isinstance(found, int):
                found = await self._segments.get(found)
            elif found is not None:
                found = self._without_erased(found)
        except LogFormat:
            raise
        except (Hole, LogError):  # such as a query that a replica has cancelled
            await self.looked_again()
            return position, None
        if revision != self._revision:  # what was found may have been erased meanwhile
            return position, None
        if found is not None and found.index(position) == found.index(stop):
            found = None
        return after, found

    def _cache(self) -> SegmentCache:
        return SegmentCache(self._load, self.limits.segment_cache_bytes)

    async def _load(self, last_us: int) -> Loaded | None:
        """Read a segment for the cache."""
        tombstones = self._tombstones  # those of the time of reading: later ones may be of what was rewritten
        loaded = await self._pool.run(lambda reader: reader.load_measured(last_us), self._revision)
        if loaded is None:
            return None
        batch = self._without_erased(loaded.batch, tombstones)
        return loaded._replace(batch=batch) if len(batch) else None

    def _without_erased(self, batch: Batch, earlier: Tombstones | None = None) -> Batch:
        """Leave out what the database still has, or had with `earlier` tombstones, of deleted accounts."""
        tombstones = {**(earlier or {}), **self._tombstones}
        kept = without_erased(batch, tombstones) if tombstones else None
        return batch if kept is None else kept

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been read back."""
        while self.tip < position:
            await self._appended_more.wait()

    @property
    def newest(self) -> int:
        """The highest position that the log was known to have at the last look: the tip, or above it."""
        return max(self._newest, self.tip)

    @property
    def is_current(self) -> bool:
        """Whether `newest` is of now, or of the last half second."""
        return self._options.monotonic() - self._looked_at < CURRENT_S

    async def look(self) -> None:
        """Learn the newest position that the database has now. Raises LogError or LogUnreachable."""
        ((newest_us,),) = await self._pool.fetch(_NEWEST)
        self._newest = max(newest_us, self._newest)

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return [Gap(*row) for row in await self._pool.fetch(_GAPS, since_us, count_max - 1)]

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position."""
        found = lookup.in_batches(self.hot_tail.newest_first(), keys)
        if missing := set(keys) - found.keys():
            start = self.hot_tail.start
            stored, problem = await self._pool.run(lambda reader: lookup.in_store(reader, missing, start))
            found |= stored
            if problem is not None:
                self._logger.warning(
                    "log: a part cannot be searched, its events may be stored again", problem=problem
                )
        return found

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""
        position = max(position, self.floor)
        return await self._pool.run(lambda reader: lookup.keys_from(reader, position, stop))

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return LogStatistics(
            events=self._appended - self._removed,
            bytes_on_disk=self._bytes,
            oldest_us=self.oldest_us,
            newest_us=None if self.oldest_us is None else self.tip,
            writable=self._options.monotonic() < self._fresh_until,
        )

    def status(self, position: int) -> EdgeStatus:
        """Return where this process stands, if its subscribers have been sent all below `position`."""
        unread_s = self._options.monotonic() - self._looked_at
        return EdgeStatus(
            lag_s=self._leader.lag_s(min(position, self.tip + 1)),
            writer_silent_s=self._leader.silent_s,
            writer_alive=self._leader.is_alive,
            unread_s=unread_s,
            readable=unread_s <= self._options.fresh_s,
        )

    async def run(self) -> None:
        """Wait until following the log ends, which only an error does: it is raised."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def work(self, work: Callable[[DatabaseReader], Result]) -> Result:
        """Call `work` in a thread, with a reader. Raises Hole, LogError or LogUnreachable."""
        return await self._pool.run(work)

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of one statement. Raises LogError or LogUnreachable."""
        return await self._pool.fetch(statement, *values)

    # Following

    def wake(self) -> None:
        """Look at the database now."""
        self._woken.set()

    async def looked_again(self) -> None:
        """Return after a look that began after this call, and succeeded."""
        wanted = self._begun + 1
        self.wake()
        while self._done < wanted:
            await self._looked.wait()

    def publish(self, batch: Batch, follows_us: int, appended: int) -> None:
        """Take over what this process has stored, without reading it back, if it follows the tip."""
        if follows_us > self.tip or batch.first <= self.tip:
            self.wake()
            return
        self._take(batch, batch.last, appended)
        self._appended_more.notify()

    def erase(self, tombstones: Tombstones) -> None:
        """Drop the records of accounts that this process has stored the end of, before the next look."""
        self._tombstones = {**self._tombstones, **tombstones}
        self.hot_tail.erase(tombstones)
        self._segments = self._cache()
        self.wake()

    async def _follow(self, connection: asyncpg.Connection) -> None:
        try:
            while True:
                try:
                    await self._follow_with(connection)
                except (*LOST, asyncpg.PostgresError, LogError) as error:
                    self._conditions.begin("log_unreadable", f"{self.name}: {describe(error)}")
                await drop(connection)
                connection = await self._reconnected()
        finally:
            await drop(connection)

    async def _follow_with(self, connection: asyncpg.Connection) -> None:
        """Look at the database until the connection is lost."""
        while True:
            more = await self._look(connection)
            self._conditions.end("log_unreadable")
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._options.poll_s):
                        await self._woken.wait()
            self._woken.clear()

    async def _reconnected(self) -> asyncpg.Connection:
        """Connect again, as soon as the database answers."""
        while True:
            await asyncio.sleep(RECONNECT_S)
            with suppress(*LOST, asyncpg.PostgresError, LogError):
                return await self._connected()

    async def _connected(self) -> asyncpg.Connection:
        """Connect, and be notified of appends. A replica cannot notify: then only the polls remain."""
        connection = await connect(self.address, writes=self._options.primary)
        try:
            await check_version(connection, self.address)
            with suppress(asyncpg.PostgresError):
                await connection.add_listener(CHANNEL, self._notified)
        except BaseException:
            await drop(connection)
            raise
        return connection

    def _notified(self, _connection: object, process: int, *_: object) -> None:
        """Look soon, unless it was this process that has appended."""
        if process != self.own_process:
            self._woken.set()

    async def _look(self, connection: asyncpg.Connection) -> bool:
        """Read what is new; return whether there may be more."""
        self._begun += 1
        begun, at, tip = self._begun, self._options.monotonic(), self.tip
        rows = await self._query(connection, _POLL, tip, _ROWS)
        floor_us, removed, revision, *_ = rows[0]
        new = [row for row in rows if row["last_us"] is not None]
        if revision != self._revision:
            await self._revise(connection)
        elif not self._take_rows(new) or (not new and (rows[0]["newest_us"] or 0) > self.tip):
            await self._reload(connection)
        else:
            self._removed = removed
            await self._move_floor(connection, floor_us)
        if at >= self._measure_at:
            await self._measure(connection, at)
        self._newest = max(self._newest, rows[0]["newest_us"] or 0)
        self._leader.note(self.newest)
        if at >= self._beat_at:
            await self._look_at_leader(connection, at)
        self._looked_at, self._fresh_until = at, at + self._options.fresh_s
        self._done = begun
        self._looked.notify()
        if self.tip != tip:
            self._appended_more.notify()
        return len(new) == _ROWS

    async def _query(self, connection: asyncpg.Connection, statement: str, *values: object) -> list[Any]:
        """Return the rows of a statement. Raises one of `LOST`, also after `_ANSWER_S`."""
        rows: list[Any] = await connection.fetch(statement, *values, timeout=_ANSWER_S)
        return rows

    def _take_rows(self, rows: list[Any]) -> bool:
        """Take rows that follow the tip; return False at the first that follows one that is missing."""
        for row in rows:
            if row["last_us"] <= self.tip:  # this process has stored it meanwhile
                continue
            if row["follows_us"] > self.tip:
                return False
            batch = _batch(row)
            self._take(batch, row["last_us"], row["appended"])
            self._options.on_read(batch)
        return True

    def _take(self, batch: Batch, last_us: int, appended: int) -> None:
        """Take over the batch that follows the tip, and ends at `last_us`."""
        batch = self._without_erased(batch)
        if len(batch):
            self.hot_tail.append(batch)
            if self.oldest_us is None:
                self.oldest_us = batch.first
        self.tip = last_us
        self._appended = appended

    async def _revise(self, connection: asyncpg.Connection) -> None:
        """Drop what was erased: after one change, what its tombstones say; after several, everything."""
        marks = await self._query(connection, _TOMBSTONES)
        revision = marks[0]["revision"]
        if self._is_first or revision != self._revision + 1:
            await self._reload(connection)
            return
        before, self._tombstones = self._tombstones, _tombstones(marks)
        self._revision = revision
        new = {did: at for did, at in self._tombstones.items() if before.get(did) != at}
        if new:
            self.hot_tail.erase(new)
            self._segments = self._cache()
        self.wake()  # to read the rows, and the rest

    async def _reload(self, connection: asyncpg.Connection) -> None:
        """Drop everything, and read what is not sealed: after erasures, or where the next row was moved."""
        rows, tombstones = await self._read_unsealed(connection)
        floor_us, removed, revision, *_ = rows[0]
        if revision != self._revision:
            self._tombstones, self._revision = tombstones, revision
            self._segments = self._cache()
        unsealed = [row for row in reversed(rows) if row["last_us"] is not None]
        new = _unbroken(unsealed)
        sealed_us, end_us, appended = (rows[0][name] for name in ("sealed_us", "newest_us", "all_appended"))
        if len(new) < len(unsealed):
            end_us, appended = new[-1]["last_us"], new[-1]["appended"]
        follows_us = new[0]["follows_us"] if new else sealed_us
        continues = end_us is not None and end_us >= self.tip and follows_us <= max(self.tip, sealed_us)
        if self._is_first or continues:
            self._rebuild(new, follows_us, max(end_us, self.tip), appended)
        else:
            self.hot_tail = HotTail(self.tip + 1, self.limits)
        self._removed = removed
        await self._move_floor(connection, floor_us)

    async def _read_unsealed(self, connection: asyncpg.Connection) -> tuple[list[Any], dict[bytes, int]]:
        """Return what is not sealed, newest first, and the tombstones, as of the same revision."""
        while True:
            marks = await self._query(connection, _TOMBSTONES)
            rows = await self._query(connection, _RELOAD, self.limits.hot_tail_events)
            if marks[0]["revision"] == rows[0]["revision"]:
                return rows, _tombstones(marks)

    @property
    def _is_first(self) -> bool:
        """Whether nothing was read before."""
        return self._done == 0

    def _rebuild(self, rows: list[Any], follows_us: int, tip: int, appended: int) -> None:
        """Make the hot tail of rows that follow a position, and move the tip."""
        self.hot_tail = HotTail(follows_us + 1, self.limits)
        for row in rows:
            batch = self._without_erased(_batch(row))
            if len(batch):
                self.hot_tail.append(batch)
        self.tip, self._appended = tip, appended or 0

    async def _move_floor(self, connection: asyncpg.Connection, floor_us: int) -> None:
        """Follow the floor, below which nothing is kept, and find the oldest event again."""
        if floor_us > self.floor or self._is_first or (self.oldest_us is None and self.tip):
            self.floor = max(floor_us, self.floor)
            self.hot_tail.drop_before(self.floor)
            ((self.oldest_us,),) = await self._query(connection, _OLDEST)

    async def _look_at_leader(self, connection: asyncpg.Connection, at: float) -> None:
        """Note whether some process writes."""
        self._beat_at = at + BEAT_S
        ((beat,),) = await self._query(connection, _BEAT)
        self._leader.look(beat)
        self._conditions.set("writer_gone", self._leader.reason)

    async def _measure(self, connection: asyncpg.Connection, at: float) -> None:
        """Measure the tables, if this database can."""
        self._measure_at = at + MEASURE_S
        with suppress(asyncpg.UndefinedFunctionError):
            ((size,),) = await self._query(connection, _SIZE)
            self._bytes = size or 0


def _batch(row: Any) -> Batch:
    """Return the events of a row of the tail. Raises Damaged."""
    return Columns.unpacked(decompress(row["data"])).batch() if row["events"] else Batch.of((), ())


def _tombstones(rows: list[Any]) -> dict[bytes, int]:
    return {did: before_us for _, did, before_us in rows if did is not None}


def _unbroken(rows: list[Any]) -> list[Any]:
    """Return rows up to the first that follows one that is missing."""
    for at in range(1, len(rows)):
        if rows[at]["follows_us"] > rows[at - 1]["last_us"]:
            return rows[:at]
    return rows
