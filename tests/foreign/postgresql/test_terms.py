"""Terms begin, end and begin again: what may pass does not end a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from tests.foreign.postgresql.engine import PostgresEngine

from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt, LogError, LogUnreachable, SettingError
from jetstream.eventlog import ReadWriteLog
from jetstream.eventlog.postgresql.leading import Candidate, create_tables
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.eventlog.postgresql.trimming import Retention
from jetstream.intake import Intake
from jetstream.terms import Terms

REFUSED = LogError("postgresql://database", "canceling statement due to lock timeout")


class OneIntake:
    """An intake that reads nothing. Its first one fails."""

    def __init__(self, opening: Exception | None, running: Exception | None) -> None:
        self._opening, self._running = opening, running

    async def open(self) -> None:
        if self._opening is not None:
            raise self._opening

    async def run(self, _reloading: asyncio.Event) -> None:
        if self._running is not None:
            raise self._running
        await asyncio.Event().wait()

    async def close(self) -> None:
        pass


@asynccontextmanager
async def terms_of(
    engine: PostgresEngine, *intakes: OneIntake
) -> AsyncIterator[tuple[Terms, asyncio.Task[None]]]:
    await create_tables(engine.address)
    log = await PostgresLog.open(engine.address, PostgresOptions(primary=True))
    waiting = iter(intakes)

    def new_intake(_log: ReadWriteLog) -> Intake:
        return cast(Intake, next(waiting))

    terms = Terms(log, Candidate(look_s=0.02), Retention(), new_intake, Conditions())
    running = asyncio.create_task(terms.run(asyncio.Event()))
    try:
        yield terms, running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await log.close()


@pytest.mark.parametrize(
    ("opening", "running"),
    [
        (REFUSED, None),  # not in a task group
        (None, REFUSED),
        (LogUnreachable("postgresql://database", "connection reset"), None),
    ],
)
async def test_what_may_pass_ends_the_term_and_another_one_begins(
    engine: PostgresEngine, opening: Exception | None, running: Exception | None
) -> None:
    second = OneIntake(None, None)
    async with terms_of(engine, OneIntake(opening, running), second) as (terms, task):
        while terms.intake is not cast(Any, second):
            assert not task.done(), task
            await asyncio.sleep(0.02)
        ((epoch,),) = await engine.execute("SELECT epoch FROM term")
        assert epoch == 2


@pytest.mark.parametrize(
    "error",
    [
        LogCorrupt("postgresql://database", "is damaged"),
        SettingError("--upstream", "x", "is wrong"),
        ValueError("a bug"),
    ],
)
@pytest.mark.parametrize("opens", [True, False])
async def test_what_does_not_pass_is_raised(engine: PostgresEngine, error: Exception, opens: bool) -> None:
    first = OneIntake(None, error) if opens else OneIntake(error, None)
    async with terms_of(engine, first) as (_, task):
        with pytest.raises((type(error), ExceptionGroup)) as raised:
            await task
        assert error in (raised.value, *getattr(raised.value, "exceptions", ()))
