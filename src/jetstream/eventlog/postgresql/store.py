"""The event log in a PostgreSQL database, as its readers see it.

    database      … segments │ rows of the tail ──────────────────▶│ ─ ─ ▶ appended, not read yet
    this process    loaded as readers need them │ hot tail ─▶│ tip

What this process has read back is the tip that readers see: `follower` looks at the database, `following`
says what it takes from a look, and `stored` reads what is older.

Nothing stored is served while the revision of erasures cannot be read: for longer than a second, readers
wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from jetstream.conditions import Conditions
from jetstream.errors import LogError
from jetstream.eventlog import Gap, lookup
from jetstream.eventlog.backpressure import Followers
from jetstream.eventlog.damage import DamageRecord
from jetstream.eventlog.erase import Tombstones
from jetstream.eventlog.hot_tail import HotTail
from jetstream.eventlog.postgresql.connection import ANSWER_S
from jetstream.eventlog.postgresql.follower import RECONNECT_S, LogFollower
from jetstream.eventlog.postgresql.following import FollowedLog
from jetstream.eventlog.postgresql.leader_watch import LeaderWatch
from jetstream.eventlog.postgresql.log_end import LogEnd
from jetstream.eventlog.postgresql.pool import READ_S, Pool, ReaderPool
from jetstream.eventlog.postgresql.reader import DatabaseReader
from jetstream.eventlog.postgresql.stored import StoredEvents
from jetstream.eventlog.reader import Hole
from jetstream.limits import LogLimits
from jetstream.logging_setup import Throttled
from jetstream.model.batch import Batch
from jetstream.model.event import Key
from jetstream.model.filter import Filter
from jetstream.status import EdgeStatus, LogStatistics
from jetstream.urls import shown

Result = TypeVar("Result")

POLL_S: Final = 0.25  # between two looks without a notification
FRESH_S: Final = 1.0  # for so long after a look, what is stored may be served
_REMEDY: Final = "restore the database from a backup"
_GAPS: Final = (
    "SELECT time_us, did, after_rev, rev, cause FROM gap WHERE time_us >= $1 AND time_us <= coalesce("
    "(SELECT time_us FROM gap WHERE time_us >= $1 ORDER BY time_us LIMIT 1 OFFSET $2), time_us)"
    " ORDER BY time_us"
)


class PostgresOptions(NamedTuple):
    """What a log is opened with, beside its address."""

    limits: LogLimits = LogLimits()
    # Seconds between two looks without a notification, and for which what is stored may be served after one.
    poll_s: float = POLL_S
    fresh_s: float = FRESH_S
    # Seconds after which a statement that reads is not waited for any more.
    read_s: float = READ_S
    # Whether to read from the primary only, as a process that writes does.
    primary: bool = False
    # Told of `writer_gone`, `log_unreadable` and `damage`.
    conditions: Conditions | None = None
    # Called with events that another process has stored, as this one learns of them.
    on_read: Callable[[Batch], None] = lambda _batch: None
    # Gives monotonic seconds.
    monotonic: Callable[[], float] = time.monotonic


class PostgresLog:
    """A log that another process may write. `LogReader` says what the methods promise; `open` makes one.

    Every method belongs to the event loop's thread. A process that leads has a `Term` on top of it.
    """

    def __init__(self, address: str, options: PostgresOptions = PostgresOptions()) -> None:
        """Build the parts; `open` connects. `address` has the password."""
        # The database, with its password, and as it is logged.
        self.address = address
        self.name = shown(address)
        self.limits = limits = options.limits
        self._options = options
        conditions = options.conditions or Conditions()
        # The readers that a writer in this process waits for.
        self.followers = Followers()
        # What was found damaged.
        self._damages = DamageRecord(self.name, conditions, limits.damage_ranges, _REMEDY)
        # The connections to read with, and one to a primary where a replica is read.
        self._pool = ReaderPool(
            address, limits, self._damages, primary=options.primary, read_s=options.read_s
        )
        self._primary = Pool(address, 1, primary=True, read_s=ANSWER_S)
        # How far the log is.
        self._end = LogEnd(self._pool, self._primary, options.monotonic)
        # What is in memory, and what is not.
        self._log = FollowedLog(limits, self._damages, options.on_read, self._note_newest, self._forget)
        self._stored = StoredEvents(self._log, self._pool, self._damages, limits)
        # Whether another process writes, and how far it is.
        self._leader = LeaderWatch(limits.writer_gone_s, options.monotonic)
        self._follower = LogFollower(
            address, self._log, self._leader, conditions, options.poll_s, options.monotonic, options.primary
        )
        self._logger = Throttled(structlog.get_logger(__name__))

    @classmethod
    async def open(
        cls, address: str, options: PostgresOptions = PostgresOptions(), *, wait: bool = False
    ) -> PostgresLog:
        """Open the log in a database, and read its newest events. See `LogFollower.start`."""
        log = cls(address, options)
        try:
            await log._pool.open()
            await log._primary.open()
            await log._follower.start(wait=wait)
        except BaseException:
            await log.close()
            raise
        return log

    async def close(self) -> None:
        """Stop following, and close the connections.

        Reads that run are cut off. Waits for their threads.
        """
        await self._follower.close()
        await self._pool.close()
        await self._primary.close()

    # Reading

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing, as of the last look."""
        return self._log.floor

    @property
    def tip(self) -> int:
        """The newest position that was read back. What is above it, this process does not show."""
        return self._log.tip

    @property
    def oldest_us(self) -> int | None:
        """The position of the oldest event that is kept; None: the log is empty."""
        return self._log.oldest_us

    @property
    def hot_tail(self) -> HotTail:
        """The newest events, in memory."""
        return self._log.hot_tail

    async def read(self, position: int, stop: int, wanted: Filter) -> Batch | None:
        """Return the batch with the first events in `[position, stop)` that `wanted` may want.

        Waits while the database does not answer.
        """
        position, stop = max(position, self.floor), min(stop, self.tip + 1)
        while position < stop:
            if not self._is_fresh:
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
        """Return the position at which to continue, and what was found below it.

        Waits for the next look after a hole or an error: then the same position is read again.
        """
        try:
            return await self._stored.find(position, stop, wanted)
        except Hole:
            await self.looked_again()
        except LogError as error:  # such as a query that a replica has cancelled
            self._logger.warning("log: a part cannot be read, trying again", problem=error.problem)
            await asyncio.sleep(RECONNECT_S)
            await self.looked_again()
        return position, None

    async def wait(self, position: int) -> None:
        """Return once an event at or after `position` has been read back."""
        while self.tip < position:
            await self._follower.moved.wait()

    @property
    def newest(self) -> int:
        """The highest position that the log was known to have at the last look: the tip, or above it."""
        return max(self._end.newest, self.tip)

    @property
    def cursor_max(self) -> int:
        """The highest cursor that is not of the future, by what was known at the last look."""
        return max(self._end.cursor_max, self.tip + 1)

    @property
    def watermark(self) -> int:
        """The position below which nothing more comes, as the leader has told it; 0: not known."""
        return self._leader.watermark(self.tip)

    async def look(self) -> None:
        """Learn the newest position that the log has now. Raises LogError or LogUnreachable."""
        await self._end.look()

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        """Return the oldest gaps since a time, rising."""
        return [Gap(*row) for row in await self.fetch(_GAPS, since_us, count_max - 1)]

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of which an event is kept, each with a position."""
        found = lookup.in_batches(self.hot_tail.newest_first(), keys)
        if missing := set(keys) - found.keys():
            start = self.hot_tail.start
            stored, problem = await self.work(lambda reader: lookup.in_store(reader, missing, start))
            found |= stored
            if problem is not None:
                self._logger.warning(
                    "log: a part cannot be searched, its events may be stored again", problem=problem
                )
        return found

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events in `[position, stop)`."""
        position = max(position, self.floor)
        return await self.work(lambda reader: lookup.keys_from(reader, position, stop))

    def statistics(self) -> LogStatistics:
        """Return what the log holds."""
        return LogStatistics(
            events=self._log.events,
            bytes_on_disk=self._follower.bytes,
            oldest_us=self.oldest_us,
            newest_us=None if self.oldest_us is None else self.tip,
            writable=self._is_fresh,
            damaged=self._damages.count,
        )

    def status(self, position: int) -> EdgeStatus:
        """Return where this process stands, if its subscribers have been sent all below `position`.

        For `/ready`, `/health` and metrics. All times are of this process's monotonic clock.
        """
        return EdgeStatus(
            lag_s=self._leader.lag_s(min(position, self.tip + 1)),
            writer_silent_s=self._leader.silent_s,
            writer_alive=self._leader.is_alive,
            unread_s=self._unread_s,
            readable=self._is_fresh,
        )

    @property
    def _unread_s(self) -> float:
        """Seconds since the last look that has succeeded began."""
        return self._options.monotonic() - self._follower.looked_at

    @property
    def _is_fresh(self) -> bool:
        """Whether what is stored may be served: no erasure was missed."""
        return self._unread_s < self._options.fresh_s

    async def run(self) -> None:
        """Wait until following the log ends, which only an error does: it is raised."""
        await self._follower.run()

    async def work(self, work: Callable[[DatabaseReader], Result]) -> Result:
        """Call `work` in a thread, with a reader. Raises Hole, LogError or LogUnreachable.

        For what is not a scan of a subscriber, such as upkeep and lookups: it says no revision.
        """
        return await self._pool.run(work)

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of one statement. Raises LogError or LogUnreachable."""
        return await self._pool.fetch(statement, *values)

    async def looked_again(self) -> None:
        """Return after a look that began after this call, and succeeded."""
        await self._follower.looked_again()

    def note_writer(self, process: int) -> None:
        """Note the server's process of the connection with which this process appends."""
        self._follower.own_process = process

    def publish(self, batch: Batch, follows_us: int, appended: int) -> None:
        """Take over what this process has stored, without reading it back, if it follows the tip."""
        if self._log.publish(batch, follows_us, appended):
            self._follower.moved.notify()
        else:
            self._follower.wake()

    def erase(self, tombstones: Tombstones) -> None:
        """Drop the records of accounts that this process has stored the end of, before the next look."""
        self._log.erase(tombstones)
        self._follower.wake()

    def _note_newest(self, position: int) -> None:
        """Note that the log has events up to a position."""
        self._end.note(position)
        self._leader.note(self.newest)

    def _forget(self) -> None:
        """Drop the segments that were read."""
        self._stored.forget()
