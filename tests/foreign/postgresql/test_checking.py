"""`jetstream log check` beside a server that seals, trims and rotates: it finds what is damaged, no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.foreign.postgresql.engine import PostgresEngine

from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.contents import Checked
from jetstream.eventlog.postgresql.export import checked, reading
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, upkeep_interval_s=3600.0)
READS_SEGMENT = "FROM segment WHERE last_us = $1"
READS_ROWS = "FROM tail WHERE"
READS_KEYS = "SELECT last_us FROM"


async def checked_while(
    engine: PostgresEngine, begins_with: str, times: int, work: Callable[[], Awaitable[object]]
) -> Checked:
    """Check a log; before the check's nth statement of one kind, let a server work."""
    loop, seen = asyncio.get_running_loop(), 0

    def run() -> Checked:
        with reading(engine.address) as fetch:

            def fetched(statement: str, *values: object) -> list[Any]:
                nonlocal seen
                if begins_with in statement:
                    seen += 1
                    if seen == times:
                        asyncio.run_coroutine_threadsafe(awaited(work), loop).result()
                return fetch(statement, *values)

            return checked(fetched)

    found = await asyncio.to_thread(run)
    assert seen >= times
    return found


async def awaited(work: Callable[[], Awaitable[object]]) -> None:
    await work()


@pytest.mark.parametrize("rotates", [False, True])
async def test_rows_that_are_sealed_meanwhile_are_found_in_segments(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors, rotates: bool
) -> None:
    log = await engine.open(limits=BY_HAND)
    for start in range(1, 461, 20):
        await log.append(batch_of(range(start, start + 20)), Changes(cursor))

    async def work() -> None:
        await log.maintain()
        if rotates:
            await log.upkeep.rotate()

    found = await checked_while(engine, READS_ROWS, 1, work)
    assert (found.events, found.segments, found.problems) == (460, 4, [])
    await log.close()


async def test_rows_that_were_checked_before_they_were_sealed_count_once(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=replace(BY_HAND, segment_events=150))
    for start in range(1, 2_001, 2):  # a thousand rows are read at once
        await log.append(batch_of(range(start, start + 2)), Changes(cursor))

    async def work() -> None:
        for start in range(2_001, 2_091, 10):
            await log.append(batch_of(range(start, start + 10)), Changes(cursor))
        await log.append(batch_of(range(2_091, 2_151)), Changes(cursor))
        await log.maintain()

    found = await checked_while(engine, READS_ROWS, 2, work)
    assert (found.events, found.problems) == (2_150, [])
    await log.close()


@pytest.mark.parametrize("kind", [READS_SEGMENT, READS_KEYS, READS_ROWS])
@pytest.mark.parametrize("times", [1, 2])
async def test_what_is_trimmed_meanwhile_is_not_missing(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors, kind: str, times: int
) -> None:
    if (kind, times) == (READS_ROWS, 2):
        times = 1
    log = await engine.open(limits=BY_HAND)
    for start in range(1, 461, 20):
        await log.append(batch_of(range(start, start + 20)), Changes(cursor))
    await log.maintain()
    found = await checked_while(engine, kind, times, lambda: engine.trim(log, 350))
    assert found.problems == []
    await log.close()


async def test_a_segment_that_is_gone_is_missing(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=BY_HAND)
    for start in range(1, 461, 20):
        await log.append(batch_of(range(start, start + 20)), Changes(cursor))
    await log.maintain()
    await engine.execute("DELETE FROM segment WHERE last_us IN (100, 300)")

    async def nothing() -> None:
        pass

    found = await checked_while(engine, READS_ROWS, 1, nothing)
    assert found.problems == [
        "the segment that ends at 200 follows 100, and what ends there is missing",
        "the segment that ends at 400 follows 300, and what ends there is missing",
    ]
    await log.close()
