"""Which process writes: one leads, the others stand by.

A standby looks at the term, the newest row and the heartbeat a few times a second. When none of them has
changed for `takeover_after_s`, by its own monotonic clock, it takes over: it writes the next epoch over the
one that it has seen. The database lets one such change pass. Clocks of different machines are never
compared, but with one
exception: a process whose clock is far from the database's must not stamp events, and does not lead.

    standby   ··look··look··look··│ take over ▶ read ▶ lead
    leader    beat · append · ✗     └── the row of the term: waits for appends that are under way

The new term reads what the log holds after its epoch is committed, so nothing is stored behind its back.
Where the database may have lost commits, which is so after another server was promoted, positions continue
above what was
reserved: readers may have seen positions that the log does not hold any more.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final, NamedTuple

import asyncpg
import structlog

from jetstream.clock import STEP_US, unix_us
from jetstream.errors import LogUnreachable
from jetstream.eventlog.postgresql.connection import LOST, connect, describe, drop, shown, translated
from jetstream.eventlog.postgresql.schema import SEALED, Epoch, check_version, create
from jetstream.eventlog.postgresql.store import PostgresLog
from jetstream.eventlog.postgresql.term import Stored, Term, cursors_after
from jetstream.eventlog.states import records_of
from jetstream.upstreams import is_mirror

TAKEOVER_S: Final = 3.0
LOOK_S: Final = 0.25  # between two looks of a standby
_RETRY_S: Final = 1.0
_WATCH: Final = """
SELECT t.epoch, t.holder, l.beat, (SELECT max(id) FROM tail) AS newest,
    (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now_us FROM term t, leader l
"""
_CLAIM: Final = (
    "UPDATE term SET epoch = epoch + 1, holder = $3 WHERE epoch = $1 AND holder = $2 RETURNING epoch"
)
_NEWEST: Final = "SELECT id, last_us, appended FROM tail ORDER BY id DESC LIMIT 1"
_STATE: Final = f"""
SELECT s.tail, s.folded_id, s.repos, l.reserved_us, l.base_us, {SEALED} AS sealed_us,
    (SELECT coalesce(sum(events), 0)::bigint FROM tail WHERE last_us <= {SEALED}) AS sealed_events,
    (SELECT count(*) FROM gap) AS gaps FROM state s, leader l
"""
_CURSORS: Final = "SELECT source, seq, provisional, fell_from, stored_to, unstored FROM cursor"
_CHANGED: Final = (
    "SELECT id, cursors, repos FROM tail WHERE cursors IS NOT NULL OR repos IS NOT NULL ORDER BY id"
)
_ACCOUNTS: Final = "SELECT source, did, state FROM account"
# Differs after each promotion of another server. Not every compatible database has it.
_TIMELINE: Final = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
# Positions continue above `base_us`: above what was reserved when the timeline was found to be another.
_SET_TIMELINE: Final = """
UPDATE leader SET timeline = $3,
    base_us = CASE WHEN timeline = $3 AND $3 <> '' THEN base_us ELSE reserved_us END
FROM term WHERE term.epoch = $1 AND term.holder = $2 RETURNING base_us
"""


class Candidate(NamedTuple):
    """A process that would lead, and when."""

    takeover_s: float = TAKEOVER_S
    look_s: float = LOOK_S
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

    epoch: int
    holder: str
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
    """Stand by until this process leads; return its term. Tries again while the database does not answer."""
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
        # What was seen last, and since when, in monotonic seconds.
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
            self._connection = await connect(self._log.address, writes=True)
        seen = await self._look(self._connection)
        now = self._candidate.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        is_free = not seen.holder
        if not is_free and now - self._since < self._candidate.takeover_s:
            return None
        self.refusal = self.refusal or await self._other_sources(self._connection)
        if self.refusal is not None:
            return None
        return await self._take_over(self._connection, seen)

    async def _look(self, connection: asyncpg.Connection) -> Seen:
        before = self._candidate.clock()
        *seen, now_us = await connection.fetchrow(_WATCH)
        after = self._candidate.clock()
        off_us = max(before - now_us, now_us - after, 0)
        self.refusal = None
        if off_us > STEP_US:
            self.refusal = f"its clock is {off_us / 1e6:,.0f} s off the database's; set the clock right"
        return Seen(*seen)

    async def _other_sources(self, connection: asyncpg.Connection) -> str | None:
        """Return what is wrong if the log's upstreams are not those of this process."""
        sources = self._candidate.sources
        if sources is None:
            return None
        stored = cursors_after(
            await connection.fetch(_CURSORS),
            [row["cursors"] for row in await connection.fetch(_CHANGED) if row["cursors"] is not None],
        )
        if not stored or stored.keys() == set(sources):
            return None
        return (
            f"the log's upstreams are {', '.join(sorted(stored))}, and its own are"
            f" {', '.join(sorted(sources))}; give all processes the same --upstream, or --upstream-cursor if"
            " it is to change"
        )

    async def _take_over(self, connection: asyncpg.Connection, seen: Seen) -> Term | None:
        holder = f"{self._candidate.name}:{token_hex(8)}"
        number = await self._claim(connection, seen, holder)
        if number is None:
            return None
        epoch = Epoch(number, holder)
        stored = await self._read(self._connection or connection, epoch)
        while self._log.tip < stored.last_us:  # so that it is read up to where the term begins
            await self._log.looked_again()
        return Term(self._log, epoch, stored, self._candidate.erase)

    async def _claim(self, connection: asyncpg.Connection, seen: Seen, holder: str) -> int | None:
        """Write the next epoch, if the one that was seen is still there. A lost answer is asked for."""
        try:
            number: int | None = await connection.fetchval(_CLAIM, seen.epoch, seen.holder, holder)
        except LOST:
            await self.disconnect()
            self._connection = await connect(self._log.address, writes=True)
            now = await self._look(self._connection)
            number = now.epoch if now.holder == holder else None
        return number

    async def _read(self, connection: asyncpg.Connection, epoch: Epoch) -> Stored:
        """Read what the log holds, in one snapshot."""
        await connection.fetchval(_SET_TIMELINE, *epoch, await _timeline(connection))
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            last_id, last_us, appended = await connection.fetchrow(_NEWEST)
            state = await connection.fetchrow(_STATE)
            cursors = await connection.fetch(_CURSORS)
            changed = await connection.fetch(_CHANGED)
            accounts = await connection.fetch(_ACCOUNTS)

        known = cursors_after(cursors, [row["cursors"] for row in changed if row["cursors"] is not None])
        goes_on = self._candidate.mirrors and is_mirror((each.seq for each in known.values()), last_us)
        repos: dict[bytes, bytes | None] = {}
        for row in changed:
            if row["repos"] is not None and row["id"] > state["folded_id"]:
                repos.update(records_of(row["repos"]))
        return Stored(
            last_id=last_id,
            last_us=last_us,
            begin_us=max(last_us, 0, 0 if goes_on else state["base_us"]),
            appended=appended,
            reserved_us=state["reserved_us"],
            tail=state["tail"],
            sealed_us=state["sealed_us"],
            sealed_events=state["sealed_events"],
            folded_id=state["folded_id"],
            cursors=known,
            repos=repos,
            repo_rows=state["repos"],
            accounts={(source, did): packed for source, did, packed in accounts},
            gaps=state["gaps"],
        )


async def _timeline(connection: asyncpg.Connection) -> str:
    """Return what differs after a promotion; empty where nobody knows, or commits do not wait."""
    with suppress(asyncpg.PostgresError):
        if await connection.fetchval("SHOW synchronous_commit") != "off":
            return str(await connection.fetchval(_TIMELINE))
    return ""


async def open_leading(address: str, candidate: Candidate = Candidate(), **options: Any) -> Term:
    """Open a log, create its tables if needed, and return when this process leads. Raises LogError."""
    await create_tables(address)
    log = await PostgresLog.open(address, **options)
    try:
        return await lead(log, candidate)
    except BaseException:
        await log.close()
        raise
