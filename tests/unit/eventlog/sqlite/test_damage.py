"""A damaged part of the log costs what is in it: readers and upkeep pass over it, and the operator knows."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.logs.copying import copied
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import times_from
from tests.unit.eventlog.trimming import trim

from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.damage import Damage, DamageRecord
from jetstream.eventlog.sqlite.rewrite import read_tombstones
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import ACCOUNT, Event
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]
SEALED = 100
LIMITS = LogLimits(segment_events=SEALED, upkeep_interval_s=3600.0, journal_bytes=0)
EVENTS = 2_000  # 20 segments, a second apart
STEP = 1_000_000
LIKES = Filter.parse(["app.bsky.feed.like"], [])
DELETED = b'{"active":false,"status":"deleted"}'


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory, batch_of: BatchOf, cursor: Cursors) -> Path:
    """A closed log of 20 segments, in runs a second apart, and nothing in the tail."""
    directory = tmp_path_factory.mktemp("log")

    async def write() -> None:
        log = await SqliteLog.open(directory, limits=LIMITS)
        for segment in range(1, EVENTS // SEALED + 1):
            await log.append(batch_of(range(segment * STEP, segment * STEP + SEALED)), Changes(cursor))
            await log.maintain()
        await log.close()

    asyncio.run(write())
    return directory


@pytest.fixture
def directory(whole_log: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(whole_log, tmp_path)


@asynccontextmanager
async def opened(directory: Path, **options: Any) -> AsyncIterator[tuple[SqliteLog, Conditions]]:
    conditions = Conditions()
    log = await SqliteLog.open(directory, conditions=conditions, **{"limits": LIMITS} | options)
    try:
        yield log, conditions
    finally:
        await log.close()


async def segments_read(log: SqliteLog, wanted: Filter = EVERYTHING) -> list[int]:
    """Return the numbers of the segments of which events are read, each as often as its first is."""
    position, seen = 0, []
    while (batch := await log.read(position, 1 << 62, wanted)) is not None:
        seen += sorted(
            {batch.times[i] // STEP for i in wanted.select(batch, batch.index(position), len(batch))}
        )
        position = batch.last + 1
    return seen


def alter(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
        connection.execute(statement, values)


def page_of(directory: Path, segment: int) -> int:
    """Return the number of a page of the middle of a segment, which is an overflow page of its bodies."""
    needle = b'{"n":%d}' % (segment * STEP + 1)
    with closing(sqlite3.connect(directory / DATABASE)) as connection:
        row = connection.execute("SELECT bodies FROM segment WHERE last_us = ?", (key(segment),)).fetchone()
    data = (directory / DATABASE).read_bytes()
    assert needle not in data  # compressed
    return data.index(row[0][:64]) // 4096


def key(segment: int) -> int:
    return segment * STEP + SEALED - 1


ALL = list(range(1, EVENTS // SEALED + 1))


@pytest.mark.parametrize("column", ["times", "kinds", "dids", "rkeys", "bodies"])
@pytest.mark.parametrize(
    "value", ["zeroblob(length(bodies))", "x''", "substr(bodies, 1, length(bodies) / 2)"]
)
@pytest.mark.parametrize("segment", [1, 7, 20])
async def test_a_reader_passes_over_a_damaged_segment(
    directory: Path, column: str, value: str, segment: int
) -> None:
    alter(directory, f"UPDATE segment SET {column} = {value} WHERE last_us = ?", key(segment))
    async with opened(directory) as (log, conditions):
        assert await segments_read(log) == [each for each in ALL if each != segment]
        assert log.statistics().damaged == 1
        assert str(directory / DATABASE) in conditions.reasons["damage"]
        assert f"from position {segment * STEP} to {key(segment)}" in conditions.reasons["damage"]
        assert "jetstream log repair" in conditions.reasons["damage"]


async def test_the_log_says_so_once_and_the_segment_is_not_read_again(
    directory: Path,
) -> None:
    alter(directory, "UPDATE segment SET bodies = x'00' WHERE last_us = ?", key(7))
    async with opened(directory) as (log, _):
        with capture_logs() as lines:
            for _again in range(5):
                await segments_read(log)
        assert log.statistics().damaged == 1
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
        "log: skipped a damaged part",
        "degraded: the log has a damaged part",
    ]


@pytest.mark.parametrize("column", ["collection_set", "accounts", "did_bits"])
async def test_what_a_segment_says_of_itself_may_be_damaged_and_its_events_are_whole(
    directory: Path, column: str
) -> None:
    alter(directory, f"UPDATE segment SET {column} = x'1234' WHERE last_us = ?", key(7))
    everyone = Filter(collections=LIKES.collections, dids=DidSet(b"did:plc:repo%d" % n for n in range(7)))
    async with opened(directory) as (log, _):
        for wanted in (EVERYTHING, LIKES, everyone):
            assert sorted(set(await segments_read(log, wanted))) == ALL


@pytest.mark.parametrize("value", ["9e18", "0", "'text'"])
async def test_a_segment_that_says_it_begins_elsewhere_is_read(directory: Path, value: str) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            f"UPDATE segment SET first_us = CAST({value} AS INTEGER) WHERE last_us = ?", (key(7),)
        )
    async with opened(directory) as (log, _):
        assert await segments_read(log) == ALL


async def test_a_filter_that_wants_nothing_of_a_damaged_segment_never_meets_it(directory: Path) -> None:
    alter(directory, "UPDATE segment SET bodies = x'00' WHERE last_us = ?", key(7))
    async with opened(directory) as (log, conditions):
        await segments_read(log, Filter.parse(["com.example.nothing"], []))
        assert not conditions.reasons


@pytest.mark.parametrize("junk", [b"\xff" * 4096, b"\0" * 4096])
async def test_a_lost_page_costs_what_was_on_it(directory: Path, junk: bytes) -> None:
    data = bytearray((directory / DATABASE).read_bytes())
    page = page_of(directory, 7)
    data[page * 4096 : page * 4096 + 4096] = junk
    (directory / DATABASE).write_bytes(data)
    async with opened(directory) as (log, conditions):
        seen = await segments_read(log)
        assert seen == sorted(set(seen))
        assert 7 not in seen
        assert len(seen) >= len(ALL) - 3
        assert "damage" in conditions.reasons


async def test_every_page_may_be_lost_and_the_rest_is_read_or_the_log_is_refused(directory: Path) -> None:
    """None of them makes a reader fail, or read anything twice."""
    data = (directory / DATABASE).read_bytes()
    served = 0
    for page in range(1, len(data) // 4096):
        (directory / DATABASE).write_bytes(data[: page * 4096] + b"\xa5" * 4096 + data[page * 4096 + 4096 :])
        try:
            async with opened(directory) as (log, _):
                seen = await segments_read(log)
        except LogCorrupt as error:
            assert "jetstream log repair" in str(error)  # noqa: PT017 - some are refused, and some not
            continue
        assert seen == sorted(set(seen))
        served += len(seen)
        (directory / f"{DATABASE}-wal").unlink(missing_ok=True)
    assert served > 10 * len(ALL)


@pytest.mark.parametrize("column", ["crc = crc + 1", "bodies = x'00'", "times = x'0102'"])
async def test_a_damaged_row_of_the_tail_is_passed_over_by_all(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, column: str
) -> None:
    unsealed = replace(LIMITS, segment_events=1_000)
    async with opened(tmp_path, limits=unsealed) as (log, _):
        for start in range(1, 500, 100):
            await log.append(batch_of(range(start, start + 100)), Changes(cursor))
    alter(tmp_path, f"UPDATE tail SET {column} WHERE last_us = 200")
    rest = [*range(1, 101), *range(201, 501)]
    async with opened(tmp_path, limits=unsealed) as (log, conditions):
        assert "from position 101 to 200" in conditions.reasons["damage"]
        assert await times_from(log) == rest
    async with opened(tmp_path) as (log, conditions):
        assert "from position 101 to 200" in conditions.reasons["damage"]
        assert await times_from(log) == rest
        await log.append(batch_of(range(501, 701)), Changes(cursor))
        await log.maintain()
        assert len(await times_from(log)) == 600
    async with opened(tmp_path) as (log, conditions):
        assert await times_from(log) == [*rest, *range(501, 701)]
        assert not conditions.reasons


@pytest.mark.parametrize("statement", ["bodies = x'00'", "did_bits = x'00'", "dids = x'00'"])
async def test_upkeep_goes_on_beside_a_damaged_segment(
    directory: Path, cursor: Cursors, batch_of: BatchOf, statement: str
) -> None:
    alter(directory, f"UPDATE segment SET {statement} WHERE last_us = ?", key(7))
    async with opened(directory) as (log, conditions):
        gone = Event(ACCOUNT, b"did:plc:repo3", b"", b"", b"", b"", DELETED)
        await log.append(Batch.of([gone], [100 * STEP]), Changes(cursor))
        for _ in range(10):
            await log.maintain()
        assert not read_tombstones(log._state.writer)
        await log.append(batch_of(range(101 * STEP, 101 * STEP + 2 * SEALED)), Changes(cursor))
        await log.maintain()
        assert not log._upkeep._task.done()
        assert log.statistics().writable
        await trim(log, 8 * STEP)
        assert await segments_read(log) == [*ALL[7:], 100, 101]
        assert "damage" not in conditions.reasons  # it was trimmed


async def test_retention_passes_what_cannot_be_deleted(directory: Path) -> None:
    data = bytearray((directory / DATABASE).read_bytes())
    page = page_of(directory, 7)
    data[page * 4096 : page * 4096 + 4] = b"\xff\xff\xff\xf0"  # the next page of the chain is nowhere
    (directory / DATABASE).write_bytes(data)
    async with opened(directory, retention_bytes=1 << 30) as (log, _):
        assert await trim(log, 15 * STEP) > 0
        assert log.floor > key(13)
        assert await segments_read(log) == ALL[14:]
        await log.maintain()
    async with opened(directory) as (log, _):
        assert log.floor > key(13)
        assert await segments_read(log) == ALL[14:]


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    conditions = Conditions()
    damages = DamageRecord(tmp_path, conditions, 3)
    with capture_logs() as lines:
        for n in range(10):
            damages.add([Damage(10 * n, 10 * n + 5, "lost")] * 2)
    assert [line["event"] for line in lines].count("log: skipped a damaged part") == 1  # in a minute
    assert (len(damages.by_end), damages.count) == (3, 10)
    assert damages.skip(92) == 96
    assert damages.skip(96) == 96
    damages.drop_before(1_000)
    assert not damages.by_end
    assert not conditions.reasons


async def test_events_that_are_made_are_those_that_are_read(directory: Path) -> None:
    async with opened(directory) as (log, _):
        batch = await log.read(7 * STEP, 8 * STEP, EVERYTHING)
        assert batch is not None
        assert batch.event(3) == make_event(7 * STEP + 3)
