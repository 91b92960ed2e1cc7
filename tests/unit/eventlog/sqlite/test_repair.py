from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.logs.copying import copied
from tests.unit.eventlog.reading import times_from

from jetstream.errors import LogCorrupt, LogError, LogFormat, LogLocked
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.sqlite.check import check
from jetstream.eventlog.sqlite.repair import repair
from jetstream.eventlog.sqlite.reservation import FILE
from jetstream.eventlog.sqlite.schema import DATABASE, SCHEMA_VERSION
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
EVENTS = 20_000
SEALED = 250  # events in a segment


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory, batch_of: BatchOf, cursor: Cursors) -> Path:
    """A closed log of 79 segments and a tail of 250 events, in runs a microsecond apart."""
    directory = tmp_path_factory.mktemp("log")

    async def write() -> None:
        log = await SqliteLog.open(directory, limits=LogLimits(segment_events=SEALED))
        for start in range(1, EVENTS, SEALED):
            times = range(1_000_000 * start, 1_000_000 * start + SEALED)
            await log.append(batch_of(times), Changes(cursor))
            if start < EVENTS - SEALED:
                await log.maintain()
        await log.close()

    asyncio.run(write())
    return directory


@pytest.fixture
def directory(whole_log: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(whole_log, tmp_path)


async def times_in(directory: Path) -> list[int]:
    log = await SqliteLog.open(directory)
    times = await times_from(log)
    await log.close()
    return times


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


async def test_a_whole_log_is_left_alone(directory: Path) -> None:
    before = (directory / DATABASE).read_bytes()
    found, aside = repair(directory)
    assert (found.events, found.problems, aside) == (EVENTS, [], None)
    assert (directory / DATABASE).read_bytes() == before


@pytest.mark.parametrize(
    ("version", "readers"),
    [(3, "Only versions before 0.1.0, .* not released"), (99, "A version after 0.1.0")],
)
async def test_a_log_of_another_format_is_not_damaged(tmp_path: Path, version: int, readers: str) -> None:
    await (await SqliteLog.open(tmp_path)).close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as other:
        other.execute(f"PRAGMA user_version = {version}")
    before = files_of(tmp_path)
    problem = f"has format {version}, and this program .* reads format {SCHEMA_VERSION}. {readers}"
    for command in (check, repair):
        with pytest.raises(LogFormat, match=problem):
            command(tmp_path)
    with pytest.raises(LogFormat, match=r"Nothing was changed$"):
        repair(tmp_path)
    after = files_of(tmp_path)  # a reader leaves an empty write-ahead log behind
    assert {name: after[name] for name in before} == before


async def test_a_version_that_is_none_is_damage(directory: Path) -> None:
    with closing(sqlite3.connect(directory / DATABASE)) as other:
        other.execute("PRAGMA user_version = 99999999")
    found, aside = repair(directory)
    assert found.events == EVENTS
    assert aside is not None


async def test_a_log_is_checked_beside_its_writer(directory: Path) -> None:
    log = await SqliteLog.open(directory)
    assert check(directory).problems == []
    with pytest.raises(LogLocked):
        repair(directory)
    await log.close()


async def test_a_damaged_value_costs_its_segment(directory: Path, cursor: Cursors) -> None:
    everything = await times_in(directory)
    with sqlite3.connect(directory / DATABASE) as connection:
        (key,) = connection.execute(
            "SELECT last_us FROM segment ORDER BY last_us LIMIT 1 OFFSET 7"
        ).fetchone()
        connection.execute("UPDATE segment SET bodies = zeroblob(length(bodies)) WHERE last_us = ?", (key,))
    connection.close()
    assert any(str(key) in problem for problem in check(directory).problems)
    found, aside = repair(directory)
    assert aside is not None
    assert aside.exists()
    assert found.events == EVENTS - SEALED
    assert await times_in(directory) == [time for time in everything if not key - SEALED < time <= key]
    assert check(directory).problems == []
    log = await SqliteLog.open(directory)
    assert (log.tip, log.cursors) == (everything[-1], cursor)
    await log.close()


@pytest.mark.parametrize("seed", range(8))
async def test_pages_lost_anywhere_cost_only_what_was_on_them(directory: Path, seed: int) -> None:
    """Overwrite three pages, never the first: that is the next test's."""
    everything = await times_in(directory)
    dice = random.Random(seed)
    size = (directory / DATABASE).stat().st_size
    with (directory / DATABASE).open("r+b") as file:
        for _ in range(3):
            file.seek(dice.randrange(20, size // 4096) * 4096)
            file.write(dice.randbytes(4096))
    found, aside = repair(directory)
    assert aside is not None
    kept = await times_in(directory)
    assert len(kept) == found.events
    assert set(kept) <= set(everything)
    # A page of the tree has the keys of some tens of segments at most.
    assert len(kept) >= EVENTS * 0.5
    assert check(directory).problems == []


async def test_a_file_that_is_no_database_is_put_aside_and_positions_go_on(directory: Path) -> None:
    log = await SqliteLog.open(directory)
    tip = log.tip
    await log.close()
    (directory / DATABASE).write_bytes(b"\0" * 50_000)
    with pytest.raises(LogCorrupt, match="log repair"):
        await SqliteLog.open(directory)
    found, aside = repair(directory)
    assert (found.events, found.segments) == (0, 0)
    assert aside is not None
    log = await SqliteLog.open(directory)
    assert log.tip >= tip
    assert log.floor <= log.tip + 1
    await log.close()


async def test_a_cut_file_is_refused_or_keeps_what_is_before_the_cut(directory: Path) -> None:
    everything = await times_in(directory)
    path = directory / DATABASE
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    assert check_fails(directory)
    repair(directory)
    kept = await times_in(directory)
    assert 0 < len(kept) < len(everything)
    assert set(kept) < set(everything)


def check_fails(directory: Path) -> bool:
    try:
        return bool(check(directory).problems)
    except LogError as error:
        return DATABASE in str(error)


async def test_a_damaged_reservation_is_made_again_and_the_events_stay_where_they_are(
    directory: Path,
) -> None:
    before = (directory / DATABASE).read_bytes()
    (directory / FILE).write_text("nonsense")
    assert [problem for problem in check(directory).problems if FILE in problem or "damaged" in problem]
    _, aside = repair(directory)
    assert aside is None
    assert check(directory).problems == []
    assert (directory / DATABASE).read_bytes() == before
    assert len(await times_in(directory)) == EVENTS


def test_where_no_log_is_there_is_nothing_to_check(tmp_path: Path) -> None:
    for command in (check, repair):
        with pytest.raises(LogError, match="no log was written"):
            command(tmp_path)
