"""Which process writes: one leads, the others stand by.

A standby looks at the term, the newest row and the heartbeat a few times a second. When none of them has
changed for `takeover_s`, by its own monotonic clock, it takes over: it writes the next epoch over the one
that it has seen. The database lets one such change pass.

Only time in which the database answers counts. After an outage, all of them come back at about the same time,
and the leader has `takeover_s` for that.

Clocks of different machines are never compared, but with one exception: a process whose clock is far from the
database's must not stamp events, and does not lead.

    standby   ··look··look··look··│ take over ▶ read ▶ lead
    leader    beat · append · ✗     └── the row of the term: waits for appends that are under way

The new term reads what the log holds after its epoch is committed: see `beginning`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Collection
from secrets import token_hex
from typing import Final, NamedTuple

import asyncpg
import structlog

from jetstream.clock import STEP_US, unix_us
from jetstream.errors import LogCorrupt, LogUnreachable
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.postgresql.beginning import read_beginning, read_cursors
from jetstream.eventlog.postgresql.connection import ANSWER_S, LOST, connect, describe, drop, translated
from jetstream.eventlog.postgresql.schema import Epoch, check_version, create, migrate
from jetstream.eventlog.postgresql.store import PostgresLog
from jetstream.eventlog.postgresql.term import Term
from jetstream.urls import shown

# Seconds without a sign of the leader. A shorter time takes over sooner, and also from one that is only
# slow.
TAKEOVER_S: Final = 3.0
LOOK_S: Final = 0.25  # between two looks of a standby
_RETRY_S: Final = 1.0
_ANSWER_S: Final = (
    30.0  # after which a database that does not answer counts as gone: what is read may be long
)
_WATCH: Final = """
SELECT t.epoch, t.holder, l.beat, (SELECT max(id) FROM tail) AS newest,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us FROM term t, leader l
"""
# Changes the term only if it is still the one that was seen: of two standbys, one gets a row back.
_CLAIM: Final = (
    "UPDATE term SET epoch = epoch + 1, holder = $3 WHERE epoch = $1 AND holder = $2 RETURNING epoch"
)


class Candidate(NamedTuple):
    """A process that would lead, and when."""

    # Seconds without a sign of the leader, as `--takeover-after` says, and between two looks at it.
    takeover_s: float = TAKEOVER_S
    look_s: float = LOOK_S
    # Statuses of account events that erase the account's records.
    erase: frozenset[str] = frozenset({"deleted"})
    # Whether positions may come from elsewhere: then a term goes on after the newest event.
    mirrors: bool = False
    # The names of the sources it reads; None: any. One whose sources differ from the log's does not lead.
    sources: Collection[str] | None = None
    clock: Callable[[], int] = unix_us  # unix microseconds
    monotonic: Callable[[], float] = time.monotonic
    # Told why it does not lead, or None.
    on_refusal: Callable[[str | None], None] = lambda _: None
    # Tells processes apart where people read it.
    name: str = f"{platform.node()}:{os.getpid()}"


class Seen(NamedTuple):
    """What a standby has seen of the leader."""

    # The term: its number, and the process that has it; empty: it has resigned.
    epoch: int
    holder: str
    # Signs of life: the heartbeat, and the number of the newest row of the tail.
    beat: int
    newest: int


async def create_tables(address: str) -> None:
    """Create the tables of a log in a database without them. Raises LogError or LogUnreachable."""
    connection = None
    with translated(address):
        try:
            connection = await connect(address, writes=True)
            await create(connection)
            await check_version(connection, address)
        finally:
            await drop(connection)


async def migrate_tables(address: str) -> int:
    """Create the tables, or change those of the version before; return their version.

    Raises LogError, LogFormat or LogUnreachable.
    """
    await create_tables(address)
    connection = None
    with translated(address):
        try:
            connection = await connect(address, writes=True)
            return await migrate(connection, address)
        finally:
            await drop(connection)


async def await_tables(address: str) -> None:
    """Create the tables if there are none; wait for a database that does not answer. Raises LogFormat."""
    logger, waiting = structlog.get_logger(__name__), False
    while True:
        try:
            await create_tables(address)
        except LogUnreachable as error:
            if not waiting:
                logger.info("log: waiting for it", problem=error.problem, address=shown(address))
            waiting = True
        else:
            return
        await asyncio.sleep(_RETRY_S)


async def lead(log: PostgresLog, candidate: Candidate = Candidate()) -> Term:
    """Stand by until this process leads; return its term. Tries again while the database does not answer.

    Without a deadline. Raises LogCorrupt for a log that cannot be continued. The term makes connections
    of its own.
    """
    logger, failing, refused = structlog.get_logger(__name__), False, None
    watch = _Watch(log, candidate)
    try:
        while True:
            try:
                term = await watch.step()
                problem = watch.refusal
                failing = False
            except (*LOST, asyncpg.PostgresError) as error:
                if not failing:
                    logger.warning(
                        "log: standing by without the database", address=log.name, error=describe(error)
                    )
                failing, term, problem = True, None, refused
                await watch.disconnect()
            if term is not None:
                candidate.on_refusal(None)
                logger.info(
                    "log: this process leads", epoch=term.epoch.number, tip=term.tip, address=log.name
                )
                return term
            watch.say_once()
            if problem != refused:
                refused = problem
                candidate.on_refusal(problem)
                if problem is not None:
                    logger.warning("log: this process does not lead", problem=problem)
            await asyncio.sleep(_RETRY_S if failing else candidate.look_s)
    finally:
        await watch.disconnect()


class _Watch:
    """Looks at the leader, and takes its place when it is gone."""

    def __init__(self, log: PostgresLog, candidate: Candidate) -> None:
        self._log = log
        self._candidate = candidate
        self._connection: asyncpg.Connection | None = None
        # What was seen last on this connection, and since when, in monotonic seconds. Time in which the
        # database does not answer is not counted: the leader has no answer either.
        self._seen: Seen | None = None
        self._since = 0.0
        # Whether the log says that this process stands by.
        self._said = False
        # Why this process would not lead now; None: it would.
        self.refusal: str | None = None

    def say_once(self) -> None:
        """Log that another process leads."""
        if not self._said and self._seen is not None:
            self._said = True
            leader, _, _ = self._seen.holder.rpartition(":")
            structlog.get_logger(__name__).info("log: standing by", leader=leader, address=self._log.name)

    async def disconnect(self) -> None:
        """Close the connection."""
        await drop(self._connection)
        self._connection = None

    async def step(self) -> Term | None:
        """Look once; return the term if this process leads now. Raises what asyncpg raises."""
        if self._connection is None:
            self._connection, self._seen = await self._connect(), None
        asked = self._candidate.monotonic()
        seen = await self._look(self._connection)
        now = self._candidate.monotonic()
        if seen == self._seen:
            self._since += now - asked
        else:
            self._seen, self._since = seen, now
        is_free = not seen.holder
        if not is_free and now - self._since < self._candidate.takeover_s:
            return None
        self.refusal = self.refusal or await self._problem(self._connection)
        if self.refusal is not None:
            return None
        return await self._take_over(self._connection, seen)

    async def _look(self, connection: asyncpg.Connection) -> Seen:
        """Read what shows the leader, and compare the clocks: `refusal` is set again from that.

        The database's clock is between two readings of ours, so a slow answer is not taken for a wrong
        clock.
        """
        before = self._candidate.clock()
        *seen, now_us = await connection.fetchrow(_WATCH, timeout=ANSWER_S)
        after = self._candidate.clock()
        off_us = max(before - now_us, now_us - after, 0)
        self.refusal = None
        if off_us > STEP_US:
            self.refusal = f"its clock is {off_us / 1e6:,.0f} s off the database's; set the clock right"
        return Seen(*seen)

    async def _connect(self) -> asyncpg.Connection:
        """Connect to the primary, with a time in which each statement must be answered."""
        return await connect(self._log.address, writes=True, answer_s=_ANSWER_S)

    async def _problem(self, connection: asyncpg.Connection) -> str | None:
        """Return why the log cannot be continued: its cursors are damaged, or not of the same upstreams."""
        sources = self._candidate.sources
        try:
            stored = await read_cursors(connection)
        except Damaged as error:
            return f"{error}; restore the database from a backup"
        if sources is None or not stored or stored.keys() == set(sources):
            return None
        return (
            f"the log's upstreams are {', '.join(sorted(stored))}, and its own are"
            f" {', '.join(sorted(sources))}; give all processes the same --upstream, or --upstream-cursor if"
            " it is to change"
        )

    async def _take_over(self, connection: asyncpg.Connection, seen: Seen) -> Term | None:
        """Begin the next term; return None if another process was faster.

        What the log holds is read only after the claim is committed. Then this process catches up with
        it, so that the term's own events follow the tip that its readers have. Raises LogCorrupt, and
        what asyncpg raises.
        """
        holder = f"{self._candidate.name}:{token_hex(8)}"
        number = await self._claim(connection, seen, holder)
        if number is None:
            return None
        epoch = Epoch(number, holder)
        try:
            stored = await read_beginning(
                self._connection or connection, epoch, mirrors=self._candidate.mirrors
            )
        except Damaged as error:
            raise LogCorrupt(self._log.name, str(error)) from error
        while self._log.tip < stored.last_us:  # so that it is read up to where the term begins
            await self._log.looked_again()
        return Term(self._log, epoch, stored, self._candidate.erase)

    async def _claim(self, connection: asyncpg.Connection, seen: Seen, holder: str) -> int | None:
        """Write the next epoch, if the one that was seen is still there. A lost answer is asked for.

        Returns the number of the new term, or None. `holder` has a random part, so the answer is certain.
        """
        try:
            number: int | None = await connection.fetchval(_CLAIM, seen.epoch, seen.holder, holder)
        except LOST:
            await self.disconnect()
            self._connection = await self._connect()
            now = await self._look(self._connection)
            number = now.epoch if now.holder == holder else None
        return number
