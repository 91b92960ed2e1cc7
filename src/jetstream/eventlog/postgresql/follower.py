"""The task that follows the log in a database: when it looks, and what it does when the connection is lost.

It looks when the writer notifies it, and four times a second besides. A replica cannot notify: then only the
polls remain.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import asyncpg
import structlog

from jetstream.conditions import Conditions
from jetstream.errors import LogError, LogFormat
from jetstream.eventlog.postgresql.connection import ANSWER_S, LOST, connect, describe, drop, translated
from jetstream.eventlog.postgresql.following import FollowedLog
from jetstream.eventlog.postgresql.leader_watch import LeaderWatch
from jetstream.eventlog.postgresql.schema import CHANNEL, check_version
from jetstream.scheduling import Notifier
from jetstream.urls import shown

RECONNECT_S: Final = 0.25  # between two attempts
MEASURE_S: Final = 10.0  # between two measurements of the tables
BEAT_S: Final = 1.0  # between two looks at the heartbeat
# The bytes of all tables that hold events, states and gaps, with their indexes and large values.
_SIZE: Final = """
SELECT sum(pg_total_relation_size(name::regclass))::bigint
FROM unnest(ARRAY['tail_a', 'tail_b', 'segment', 'repo', 'gap', 'account']) AS name
"""
# In one snapshot: what the leader says was so when the log had this newest position.
_BEAT: Final = "SELECT beat, (SELECT max(last_us) FROM tail) FROM leader"
# The statement of a look is planned once: planning takes longer than what it does.
PLAN_ONCE: Final = "SET plan_cache_mode = force_generic_plan"


class LogFollower:
    """Lets a `FollowedLog` look at the database, from `start` until `close`. `monotonic` gives seconds."""

    def __init__(
        self,
        address: str,
        log: FollowedLog,
        leader: LeaderWatch,
        conditions: Conditions,
        poll_s: float,
        monotonic: Callable[[], float],
        primary: bool,
    ) -> None:
        """Connect to nothing yet. `primary` leaves out replicas."""
        self._address = address
        self._name = shown(address)
        self._log = log
        # Whether another process writes; told so about once a second.
        self._leader = leader
        self._conditions = conditions
        # Seconds between two looks without a notification.
        self._poll_s = poll_s
        self._primary = primary
        self._monotonic = monotonic
        # Looks that were begun, and the last one that has succeeded; when that was.
        self._begun = self._done = 0
        self.looked_at = -math.inf
        # The size of the tables when they were measured last.
        self.bytes = 0
        # The server's process of the connection with which this process appends; 0: it does not.
        self.own_process = 0
        # When the heartbeat is looked at and the tables are measured again, in monotonic seconds.
        self._beat_at = self._measure_at = -math.inf
        # Wakes those that wait for a higher tip, and those that wait for the next look.
        self.moved, self._looked = Notifier(), Notifier()
        # Set by a notification, and by what cannot wait for the next look.
        self._woken = asyncio.Event()
        # Follows the log.
        self._task: asyncio.Task[None] | None = None
        self._logger = structlog.get_logger(__name__)

    async def start(self, *, wait: bool) -> None:
        """Look once, and follow the log from then on.

        With `wait`, waits for a database that does not answer or has no tables yet. Raises LogUnreachable,
        LogFormat for tables of a version that this program does not read, LogError if there are none.
        """
        connection = await self._opened(wait=wait)
        self._task = asyncio.create_task(self._follow(connection))

    async def _opened(self, *, wait: bool) -> asyncpg.Connection:
        """Return a connection with which the log was read.

        Raises what `start` raises. While it waits, it tries every `RECONNECT_S` seconds, and says so
        once.
        """
        waiting = False
        while True:
            connection = None
            try:
                with translated(self._address):
                    connection = await self._connected()
                    await self._look(connection)
                    return connection
            except BaseException as error:
                await drop(connection)
                if not wait or not isinstance(error, LogError) or isinstance(error, LogFormat):
                    raise
                if not waiting:
                    self._logger.info("log: waiting for it", problem=error.problem, address=self._name)
                waiting = True
            await asyncio.sleep(RECONNECT_S)

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def run(self) -> None:
        """Wait until following ends, which only an error does: it is raised.

        Errors that may pass do not end it: they are the condition `log_unreadable` until a look succeeds.
        """
        assert self._task is not None
        await asyncio.shield(self._task)

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    async def looked_again(self) -> None:
        """Return after a look that began after this call, and succeeded.

        Without a deadline: it waits while the database does not answer.
        """
        wanted = self._begun + 1
        self.wake()
        while self._done < wanted:
            await self._looked.wait()

    async def _follow(self, connection: asyncpg.Connection) -> None:
        """Look at the database until cancelled, with a new connection whenever the last one is lost.

        An outage is not counted as silence of the leader.
        """
        try:
            while True:
                try:
                    await self._follow_with(connection)
                except (*LOST, asyncpg.PostgresError, LogError) as error:
                    self._conditions.begin("log_unreadable", f"{self._name}: {describe(error)}")
                await drop(connection)
                connection = await self._reconnected()
                self._leader.excuse(self._monotonic() - self.looked_at)
        finally:
            await drop(connection)

    async def _follow_with(self, connection: asyncpg.Connection) -> None:
        """Look at the database until the connection is lost."""
        while True:
            more = await self._look(connection)
            self._conditions.end("log_unreadable")
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._woken.wait()
            self._woken.clear()

    async def _reconnected(self) -> asyncpg.Connection:
        """Connect again, as soon as the database answers."""
        while True:
            await asyncio.sleep(RECONNECT_S)
            with suppress(*LOST, asyncpg.PostgresError, LogError):
                return await self._connected()

    async def _connected(self) -> asyncpg.Connection:
        """Connect, and be notified of appends, if the server can do so.

        Raises LogFormat for tables of another version, LogError without tables, one of `LOST`, or
        asyncpg.PostgresError.
        """
        connection = await connect(self._address, primary=self._primary, answer_s=ANSWER_S)
        try:
            await check_version(connection, self._address)
            with suppress(asyncpg.PostgresError):
                await connection.execute(PLAN_ONCE)
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
        """Read what is new; return whether there may be more.

        The time of a look is when it began: what it has read is at least as new as that.
        """
        self._begun += 1
        begun, at, tip = self._begun, self._monotonic(), self._log.tip
        more = await self._log.look(connection)
        if at >= self._measure_at:
            await self._measure(connection, at)
        if at >= self._beat_at:
            await self._look_at_leader(connection, at)
        self.looked_at = at
        self._done = begun
        self._looked.notify()
        if self._log.tip != tip:
            self.moved.notify()
        return more

    async def _look_at_leader(self, connection: asyncpg.Connection, at: float) -> None:
        """Note whether some process writes, and how far it is."""
        self._beat_at = at + BEAT_S
        self._leader.look(*await connection.fetchrow(_BEAT))
        self._conditions.set("writer_gone", self._leader.reason)

    async def _measure(self, connection: asyncpg.Connection, at: float) -> None:
        """Measure the tables, if this database can."""
        self._measure_at = at + MEASURE_S
        with suppress(asyncpg.UndefinedFunctionError):
            self.bytes = await connection.fetchval(_SIZE) or 0
