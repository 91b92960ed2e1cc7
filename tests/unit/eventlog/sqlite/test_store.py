from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from tests.unit.eventlog.reading import times_from

from jetstream.errors import LogCorrupt, LogLocked, LogUnwritable, SettingError
from jetstream.eventlog import Changes, Cursors, Gap, SourceCursor
from jetstream.eventlog.sqlite.connection import database_files
from jetstream.eventlog.sqlite.reservation import NEW_FILE
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING

BatchOf = Callable[[range], Batch]
LIMITS = LogLimits()


async def test_a_waiter_that_is_cancelled_leaves_the_others(
    log: SqliteLog, batch_of: BatchOf, cursor: Cursors
) -> None:
    gone, stays = asyncio.create_task(log.wait(1)), asyncio.create_task(log.wait(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    await log.append(batch_of(range(1, 2)), Changes(cursor))
    await stays


async def test_a_second_writer_is_refused(log: SqliteLog, tmp_path: Path) -> None:
    with pytest.raises(LogLocked, match=r"process [0-9]+ writes this log"):
        await SqliteLog.open(tmp_path)


async def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "jetstream.db") as other:
        other.execute("CREATE TABLE songs (name)")
    other.close()
    with pytest.raises(LogCorrupt, match="not a Jetstream log"):
        await SqliteLog.open(tmp_path)


async def test_a_file_that_is_no_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "jetstream.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(LogCorrupt, match=r"jetstream\.db.*jetstream log repair"):
        await SqliteLog.open(tmp_path)


async def test_what_a_killed_process_left_half_written_is_deleted(tmp_path: Path) -> None:
    left = [tmp_path / NEW_FILE, *database_files(tmp_path / f"{DATABASE}.new")]
    for path in left:
        path.touch()
    log = await SqliteLog.open(tmp_path)
    assert [path.name for path in left if path.exists()] == []
    await log.close()


async def test_a_later_format_is_refused(tmp_path: Path) -> None:
    await (await SqliteLog.open(tmp_path)).close()
    with sqlite3.connect(tmp_path / "jetstream.db") as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(LogCorrupt, match="format 99"):
        await SqliteLog.open(tmp_path)


async def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnwritable):
        await SqliteLog.open(tmp_path / "file" / "log")


async def test_a_full_disk_stores_nothing_and_ends_by_itself(
    log: SqliteLog, batch_of: BatchOf, cursor: Cursors
) -> None:
    await log.append(batch_of(range(1, 3)), Changes(cursor))
    log._state.writer.execute("PRAGMA max_page_count = 8")
    with pytest.raises(LogUnwritable, match="full"):
        await log.append(batch_of(range(3, 3000)), Changes({"a:1": SourceCursor(9)}))
    assert not log.statistics().writable
    assert (log.tip, log.cursors) == (2, cursor)
    assert await times_from(log) == [1, 2]
    log._state.writer.execute("PRAGMA max_page_count = 100000")
    await log.append(batch_of(range(3, 3000)), Changes(cursor))
    assert log.statistics().writable
    assert await times_from(log) == list(range(1, 3000))


LARGE: Final = LogLimits(journaled_bytes=0, batch_bytes=10_000)  # each append is committed at once
MANY: Final = {"a:1": SourceCursor(1), "b:1": SourceCursor(1)}


@pytest.mark.parametrize(
    ("events", "changes", "at_once"),
    [
        (range(10, 20), Changes(MANY | {"b:1": SourceCursor(2)}), True),
        (range(10, 20), Changes(MANY | {"b:1": SourceCursor(5, 9, 7, 8, (6, 7))}), True),
        (range(10, 20), Changes(MANY), True),
        (range(10, 20), Changes({"a:1": SourceCursor(2), "b:1": SourceCursor(2)}), False),
        (range(10, 20), Changes(MANY | {"c:1": SourceCursor(1)}), False),
        (range(10, 20), Changes({"b:1": SourceCursor(3)}), False),
        (range(10, 20), Changes({}), False),
        (range(10, 20), Changes(MANY, {bytes(15): b"s" * 24}), False),
        (range(10, 20), Changes(MANY, gaps=[Gap(5, "did:plc:a", "", "3l3qo2vuowo2b", "sync")]), False),
        (range(10, 20), Changes(MANY, accounts={("a:1", "did:plc:a"): b"x"}), False),
        (range(0), Changes(MANY, accounts={("a:1", "did:plc:a"): b"x"}), False),
        (range(10, 2_000), Changes(MANY | {"b:1": SourceCursor(2)}), False),
    ],
)
async def test_one_row_and_one_cursor_are_one_statement(
    tmp_path: Path, batch_of: BatchOf, events: range, changes: Changes, at_once: bool
) -> None:
    log = await SqliteLog.open(tmp_path, limits=LARGE)
    await log.append(batch_of(range(1, 9)), Changes(MANY))
    executed: list[str] = []
    log._state.writer.set_trace_callback(executed.append)
    await log.append(batch_of(events), changes)
    log._state.writer.set_trace_callback(None)
    assert any("INTO append" in each for each in executed) == at_once
    assert ("BEGIN IMMEDIATE" in executed) == (not at_once)
    await log.close()
    again = await SqliteLog.open(tmp_path)
    assert again.cursors == changes.cursors
    assert again.statistics().events == 8 + len(events)
    assert await times_from(again) == [*range(1, 9), *events]
    await again.close()


@pytest.mark.parametrize("journaled_bytes", [0, LIMITS.journaled_bytes])
@pytest.mark.parametrize("cursors", [{}, MANY])
async def test_totals_are_stored_whatever_rows_there_are(
    tmp_path: Path, batch_of: BatchOf, journaled_bytes: int, cursors: Cursors
) -> None:
    """There may be no source, or a program that deletes what is stored of them."""
    log = await SqliteLog.open(tmp_path, limits=LogLimits(journaled_bytes=journaled_bytes))
    await log.append(batch_of(range(1, 9)), Changes(cursors))
    await log.maintain()
    log._state.writer.execute("DELETE FROM cursor")
    await log.append(batch_of(range(10, 20)), Changes(cursors))
    await log.close()
    again = await SqliteLog.open(tmp_path)
    assert again.statistics().events == 18
    assert bool(again.cursors) == bool(cursors)
    assert await times_from(again) == [*range(1, 9), *range(10, 20)]
    await again.close()


@pytest.mark.parametrize("pages", range(0, 12, 2))
async def test_a_full_disk_stores_neither_the_row_nor_the_cursor(
    tmp_path: Path, batch_of: BatchOf, pages: int
) -> None:
    log = await SqliteLog.open(tmp_path, limits=LARGE)
    await log.append(batch_of(range(1, 9)), Changes(MANY))
    await log.maintain()
    (count,) = log._state.writer.execute("PRAGMA page_count").fetchone()
    log._state.writer.execute(f"PRAGMA max_page_count = {count + pages}")
    with pytest.raises(LogUnwritable, match="full"):
        await log.append(batch_of(range(10, 400)), Changes(MANY | {"b:1": SourceCursor(2)}))
    assert not log._state.writer.in_transaction
    await log.close()
    again = await SqliteLog.open(tmp_path)
    assert (again.tip, again.cursors) == (8, MANY)
    assert await times_from(again) == list(range(1, 9))
    await again.close()


async def test_a_reader_in_the_middle_of_a_segment_waits_for_no_thread(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await SqliteLog.open(tmp_path, limits=LogLimits(segment_events=100))
    await log.append(batch_of(range(10, 110)), Changes(cursor))
    await log.append(batch_of(range(120, 220)), Changes(cursor))
    await log.maintain()
    await log.close()
    log = await SqliteLog.open(tmp_path)
    log._state.hot_tail.drop_before(220)  # as if more had come since
    batch = await log.read(1, 220, EVERYTHING)
    assert batch is not None
    for position, stop, found in ((10, 220, batch), (109, 110, batch), (50, 50, None), (50, 51, batch)):
        reading = log.read(position, stop, EVERYTHING)
        with pytest.raises(StopIteration) as ended:
            reading.send(None)
        assert ended.value.value is found
    assert await log.read(110, 120, EVERYTHING) is None
    later = await log.read(110, 220, EVERYTHING)
    assert later is not None
    assert later.first == 120
    await log.close()


async def test_a_bound_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--retention-bytes"):
        await SqliteLog.open(tmp_path, retention_bytes=1_000_000)
