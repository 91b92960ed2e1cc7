"""A log that was copied from SQLite has the same events at the same positions, and goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from tests.foreign.postgresql.engine import PostgresEngine
from tests.unit.eventlog.reading import read_all, times_from
from tests.unit.eventlog.trimming import trim

from jetstream.errors import LogError, LogLocked
from jetstream.eventlog import Changes, Gap, SourceCursor
from jetstream.eventlog.postgresql.copying import Copied, copy
from jetstream.eventlog.postgresql.export import check, contents, selected
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]
LIMITS = LogLimits(segment_events=100, repo_changes=20, fold_repos=5, upkeep_interval_s=3600.0)
DIDS = [number.to_bytes(15, "big") for number in range(1, 60)]


async def filled(directory: Path, batch_of: BatchOf) -> SqliteLog:
    log = await SqliteLog.open(directory, limits=LIMITS)
    for start in range(1, 1_000, 20):
        did = DIDS[start % 59]
        changes = Changes(
            {
                "a": SourceCursor(start, stored_to=start + 5, unstored=(start + 2, start + 4)),
                "b": SourceCursor(7),
            },
            {did: None if start % 7 == 0 else start.to_bytes(24, "big")},
            [Gap(start + 3, "did:plc:a", "x", "y", "sync")] if start % 3 == 0 else [],
            {("a", f"did:plc:{start}"): b"state"} if start % 5 == 0 else {},
        )
        await log.append(batch_of(range(start, start + 20)), changes)
        if start % 300 == 1:
            await log.maintain()
    await trim(log, 250)
    return log


async def test_a_copy_is_the_same_log(tmp_path: Path, engine: PostgresEngine, batch_of: BatchOf) -> None:
    old = await filled(tmp_path, batch_of)
    expected = (
        await read_all(old, old.floor),
        old.floor,
        old.cursors,
        old.accounts(),
        await old.gaps(0, 1_000),
    )
    states = {did: old.repo(did) for did in DIDS}
    with pytest.raises(LogLocked):
        await copy(tmp_path, engine.address)
    await old.close()
    copied = await copy(tmp_path, engine.address)
    assert copied == Copied(len(expected[0]), copied.segments, 1_000)
    assert copied.segments >= 5
    log = await engine.open(limits=LIMITS)
    found = await read_all(log, log.floor), log.floor, log.cursors, log.accounts(), await log.gaps(0, 1_000)
    assert found == expected
    await log.load_repos(DIDS)
    assert {did: log.repo(did) for did in DIDS} == states
    assert log.statistics().events == len(expected[0])
    first = log.tip + 1
    await log.append(batch_of(range(first, first + 500)), Changes(log.cursors))
    await log.maintain()
    await log.upkeep.rotate()
    old_times = [time for time, _ in expected[0]]
    assert await times_from(log, log.floor) == [*old_times, *range(first, first + 500)]
    await log.close()
    with pytest.raises(LogError, match="has events already"):
        await copy(tmp_path, engine.address)


@pytest.mark.parametrize(
    "damage", ["UPDATE repo_change SET records = x'00'", "DROP TABLE gap", "UPDATE cursor SET unstored = 'x'"]
)
async def test_a_damaged_log_is_not_copied(
    tmp_path: Path, engine: PostgresEngine, batch_of: BatchOf, damage: str
) -> None:
    await (await filled(tmp_path, batch_of)).close()
    with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
        connection.execute(damage)
    with pytest.raises(LogError, match=r"jetstream\.db"):
        await copy(tmp_path, engine.address)
    assert await copied_segments(engine.address) == 0


async def copied_segments(address: str) -> int:
    """Return how many segments a database has."""
    connection = await asyncpg.connect(address)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM segment"))
    finally:
        await connection.close()


async def test_the_commands_read_a_log(engine: PostgresEngine, batch_of: BatchOf) -> None:
    log = await engine.open(limits=replace(LIMITS, segment_events=300))
    for start in range(1, 1_000, 20):
        await log.append(batch_of(range(start, start + 20)), Changes({"a": SourceCursor(start)}))
    await log.maintain()
    held = await asyncio.to_thread(contents, engine.address)
    assert (held.oldest_us, held.newest_us, held.segments) == (1, 1_000, 3)
    assert (held.cursors, sum(held.kinds.values())) == (log.cursors, 1_000)
    wanted = Filter.parse(["app.bsky.feed.post"], [])
    found = await asyncio.to_thread(lambda: list(selected(engine.address, 100, 950, wanted)))
    times = [batch.times[i] for batch, indices in found for i in indices]
    assert times == await times_from(log, 100, 950, wanted)
    assert (
        sum(
            len(batch)
            for batch, _ in await asyncio.to_thread(
                lambda: list(selected(engine.address, 0, None, EVERYTHING))
            )
        )
        == 1_000
    )
    found_whole = await asyncio.to_thread(check, engine.address)
    assert (found_whole.events, found_whole.segments, found_whole.problems) == (1_000, 3, [])
    await engine.execute(
        "UPDATE segment SET bodies = overlay(bodies placing '\\x00'::bytea from 40) WHERE last_us < 400"
    )
    await engine.execute("DELETE FROM tail_a WHERE last_us = 960")
    damaged = await asyncio.to_thread(check, engine.address)
    assert [problem.split(":")[0] for problem in damaged.problems] == [
        "the segment that ends at 300 is lost",
        "the row of the tail that ends at 980 follows 960, and what ends there is missing",
    ]
    assert damaged.events == 680
    await log.close()
