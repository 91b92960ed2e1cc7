from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.eventlog.reading import times_from

from jetstream.errors import LogCorrupt, LogLocked, LogUnwritable, SettingError
from jetstream.eventlog import Changes, Cursors, LogReader, SourceCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]
LIMITS = LogLimits()


def wanted_times(wanted: Filter, batch: Batch) -> list[int]:
    return [batch.times[i] for i in wanted.select(batch, 0, len(batch))]


def test_it_is_a_log(log: SqliteLog) -> None:
    interface: LogReader = log
    assert interface.tip == 0


def test_an_empty_log_has_nothing(log: SqliteLog) -> None:
    assert (log.floor, log.tip, log.cursors) == (0, 0, {})
    statistics = log.statistics()
    assert (statistics.events, statistics.oldest_us, statistics.newest_us) == (0, None, None)


async def test_what_was_appended_is_read(log: SqliteLog, batch_of: BatchOf, cursor: Cursors) -> None:
    await log.append(batch_of(range(10, 20)), Changes(cursor))
    await log.append(batch_of(range(20, 25)), Changes(cursor))
    assert await times_from(log) == list(range(10, 25))
    assert await times_from(log, 17, stop=22) == [17, 18, 19, 20, 21]
    assert await log.read(25, 100, EVERYTHING) is None
    assert log.tip == 24


async def test_everything_survives_reopening(tmp_path: Path, batch_of: BatchOf, cursor: Cursors) -> None:
    first = await SqliteLog.open(tmp_path)
    for start in range(1, 3000, 7):
        await first.append(batch_of(range(start, start + 7)), Changes(cursor))
    before = first.statistics(), await times_from(first)
    await first.close()
    again = await SqliteLog.open(tmp_path)
    after = again.statistics(), await times_from(again)
    assert (again.tip, again.cursors) == (3003, cursor)
    await again.close()
    assert after[1] == before[1] == list(range(1, 3004))
    assert after[0].events == 3003
    assert (after[0].oldest_us, after[0].newest_us) == (1, 3003)


async def test_a_filter_reads_what_it_wants_from_disk_and_memory(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors
) -> None:
    everything = batch_of(range(1, 5001))
    wanted = Filter.parse(["app.bsky.feed.post"], ["did:plc:repo3", "did:plc:repo4"])
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(1, 2501)), Changes(cursor))
    await log.close()
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(2501, 5001)), Changes(cursor))
    assert await times_from(log, wanted=wanted) == wanted_times(wanted, everything)
    assert await log.read(0, 5001, Filter.parse([], ["did:plc:nobody"]))
    await log.close()


async def test_a_cursor_moves_without_events(log: SqliteLog, batch_of: BatchOf) -> None:
    await log.append(Batch.of((), ()), Changes({"a:1": SourceCursor(5)}))
    assert log.cursors == {"a:1": SourceCursor(5)}
    assert log.tip == 0


async def test_the_cursors_of_many_sources_survive_whichever_of_them_move(
    tmp_path: Path, batch_of: BatchOf
) -> None:
    cursors = {f"s{number}": SourceCursor(number) for number in range(300)}
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(1, 3)), Changes(cursors))
    for time_us, moved in (3, "s7"), (4, "s299"), (5, None), (6, "s7"):
        if moved is not None:
            cursors = cursors | {moved: SourceCursor(1_000 + time_us)}
        await log.append(batch_of(range(time_us, time_us + 1)), Changes(cursors))
        await log.close()
        log = await SqliteLog.open(tmp_path)
        assert (log.cursors, log.tip, log.statistics().events) == (cursors, time_us, time_us)
    await log.close()


async def test_waiting_ends_when_the_position_is_there(
    log: SqliteLog, batch_of: BatchOf, cursor: Cursors
) -> None:
    waiter = asyncio.create_task(log.wait(15))
    await log.append(batch_of(range(10, 12)), Changes(cursor))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiter.done()
    await log.append(batch_of(range(12, 16)), Changes(cursor))
    await waiter
    await log.wait(3)


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


async def test_readers_share_a_segment(tmp_path: Path, batch_of: BatchOf, cursor: Cursors) -> None:
    log = await SqliteLog.open(tmp_path, limits=LogLimits(segment_events=100, journal_bytes=0))
    for start in range(1, 1000, 50):
        await log.append(batch_of(range(start, start + 50)), Changes(cursor))
    await log.maintain()
    await log.close()
    log = await SqliteLog.open(tmp_path)
    first, second = await asyncio.gather(log.read(1, 1000, EVERYTHING), log.read(50, 1000, EVERYTHING))
    assert first is not None
    assert first is second
    assert (first.first, first.last) == (1, 100)
    await log.close()


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


async def test_a_large_append_is_whole_yet_no_reader_need_take_all_of_it(
    tmp_path: Path, cursor: Cursors
) -> None:
    sizes = [900_000, 10, 700_000, 2_000_000, 400_000, 400_000, 1]
    events = [Event(CREATE, b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * size) for size in sizes]
    log = await SqliteLog.open(tmp_path)
    await log.append(Batch.of(events, range(1, 8)), Changes(cursor))
    log._state.hot_tail.drop_before(8)  # as if more had come since
    read: list[int] = []
    while (batch := await log.read(len(read) + 1, 8, EVERYTHING)) is not None:
        first = batch.index(len(read) + 1)
        assert batch.text_bytes() < LIMITS.batch_bytes + max(LIMITS.batch_bytes, *sizes) + 1_000
        read += map(len, batch.bodies[first:])
    await log.close()
    assert read == sizes
    reopened = await SqliteLog.open(tmp_path)
    assert (reopened.tip, reopened.statistics().events, reopened.cursors) == (7, 7, cursor)
    await reopened.close()


async def test_small_appends_of_large_events_are_read_a_few_at_a_time(
    log: SqliteLog, cursor: Cursors
) -> None:
    event = Event(CREATE, b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * 100_000)
    for time in range(1, 31):
        await log.append(Batch.of([event], [time]), Changes(cursor))
    log._state.hot_tail.drop_before(31)
    batch = await log.read(1, 31, EVERYTHING)
    assert batch is not None
    assert len(batch) == LIMITS.batch_bytes // 100_000 + 1
