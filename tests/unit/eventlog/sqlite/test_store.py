from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.eventlog.events import make_event

from jetstream.errors import LogCorrupt, LogLocked, LogUnwritable, SettingError
from jetstream.eventlog import Cursors, LogReader, SourceCursor
from jetstream.eventlog.columns import Damaged
from jetstream.eventlog.hot_tail import BATCH_BYTES
from jetstream.eventlog.segment import Block
from jetstream.eventlog.sqlite import store as sqlite
from jetstream.eventlog.sqlite import upkeep as maintenance
from jetstream.eventlog.sqlite.reader import READ_BYTES
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.eventlog.sqlite.upkeep import Maintenance
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, Event
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]


async def times_from(
    log: LogReader, position: int, wanted: Filter = EVERYTHING, stop: int = 1 << 62
) -> list[int]:
    """Read to the end as a subscriber does."""
    times: list[int] = []
    while (batch := await log.read(position, stop, wanted)) is not None:
        end = batch.index(stop)
        times += [batch.times[i] for i in wanted.select(batch, batch.index(position), end)]
        position = batch.times[end - 1] + 1
    return times


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
    await log.append(batch_of(range(10, 20)), cursor)
    await log.append(batch_of(range(20, 25)), cursor)
    assert await times_from(log, 0) == list(range(10, 25))
    assert await times_from(log, 17, stop=22) == [17, 18, 19, 20, 21]
    assert await log.read(25, 100, EVERYTHING) is None
    assert log.tip == 24


async def test_everything_survives_reopening(tmp_path: Path, batch_of: BatchOf, cursor: Cursors) -> None:
    first = await SqliteLog.open(tmp_path)
    for start in range(1, 3000, 7):
        await first.append(batch_of(range(start, start + 7)), cursor)
    before = first.statistics(), await times_from(first, 0)
    await first.close()
    again = await SqliteLog.open(tmp_path)
    after = again.statistics(), await times_from(again, 0)
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
    await log.append(batch_of(range(1, 2501)), cursor)
    await log.close()
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(2501, 5001)), cursor)
    assert await times_from(log, 0, wanted) == wanted_times(wanted, everything)
    assert await log.read(0, 5001, Filter.parse([], ["did:plc:nobody"]))
    await log.close()


async def test_a_cursor_moves_without_events(log: SqliteLog, batch_of: BatchOf) -> None:
    await log.append(Batch.of((), ()), {"a:1": SourceCursor(5)})
    assert log.cursors == {"a:1": SourceCursor(5)}
    assert log.tip == 0


async def test_waiting_ends_when_the_position_is_there(
    log: SqliteLog, batch_of: BatchOf, cursor: Cursors
) -> None:
    waiter = asyncio.create_task(log.wait(15))
    await log.append(batch_of(range(10, 12)), cursor)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiter.done()
    await log.append(batch_of(range(12, 16)), cursor)
    await waiter
    await log.wait(3)


async def test_a_waiter_that_is_cancelled_leaves_the_others(
    log: SqliteLog, batch_of: BatchOf, cursor: Cursors
) -> None:
    gone, stays = asyncio.create_task(log.wait(1)), asyncio.create_task(log.wait(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    await log.append(batch_of(range(1, 2)), cursor)
    await stays


async def test_trimmed_events_are_gone_for_good(tmp_path: Path, batch_of: BatchOf, cursor: Cursors) -> None:
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(1, 1001)), cursor)
    await log.append(batch_of(range(1001, 1011)), cursor)
    assert await log.trim(1005) == 1000
    assert (log.floor, log.statistics().events, log.statistics().oldest_us) == (1001, 10, 1001)
    assert await times_from(log, 0) == list(range(1001, 1011))
    assert await log.trim(5000) == 10
    await log.close()
    log = await SqliteLog.open(tmp_path)
    assert (log.floor, log.tip, log.statistics().events) == (1011, 1010, 0)
    assert await log.read(0, 5000, EVERYTHING) is None
    await log.close()


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
    await log.append(batch_of(range(1, 3)), cursor)
    log._writer.execute("PRAGMA max_page_count = 8")
    with pytest.raises(LogUnwritable, match="full"):
        await log.append(batch_of(range(3, 3000)), {"a:1": SourceCursor(9)})
    assert not log.statistics().writable
    assert (log.tip, log.cursors) == (2, cursor)
    assert await times_from(log, 0) == [1, 2]
    log._writer.execute("PRAGMA max_page_count = 100000")
    await log.append(batch_of(range(3, 3000)), cursor)
    assert log.statistics().writable
    assert await times_from(log, 0) == list(range(1, 3000))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "BLOCK_EVENTS", 100)


async def filled(directory: Path, batch_of: BatchOf, cursor: Cursors, last: int, **options: Any) -> SqliteLog:
    """Open a log of events from 1 to `last`, sealed but for the end."""
    log = await SqliteLog.open(directory, **options)
    for start in range(1, last, 50):
        await log.append(batch_of(range(start, start + 50)), cursor)
    await log.maintain()
    return log


async def test_readers_share_a_block(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, small_blocks: None
) -> None:
    await (await filled(tmp_path, batch_of, cursor, 1000)).close()
    log = await SqliteLog.open(tmp_path)
    first, second = await asyncio.gather(log.read(1, 1000, EVERYTHING), log.read(50, 1000, EVERYTHING))
    assert first is not None
    assert first is second
    assert (first.first, first.last) == (1, 100)
    await log.close()


async def test_age_trims_by_the_clock_given(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, small_blocks: None
) -> None:
    log = await filled(tmp_path, batch_of, cursor, 1000, retention_s=0.0005, clock=lambda: 1050)
    assert log.floor == 501
    assert await times_from(log, log.floor) == list(range(501, 1001))
    assert log.statistics().oldest_us == 501
    await log.close()


async def test_the_files_stay_within_their_bound(
    tmp_path: Path, cursor: Cursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "WAL_BYTES", 1 << 20)
    monkeypatch.setattr(maintenance, "BLOCK_EVENTS", 500)
    monkeypatch.setattr(sqlite, "RETENTION_BYTES_MIN", 0)
    bound = 8 << 20
    dice = random.Random(3)
    log = await SqliteLog.open(tmp_path, retention_bytes=bound)
    largest = 0
    for start in range(1, 60_000, 1000):
        bodies = [b'{"x":"%s"}' % dice.randbytes(150).hex().encode() for _ in range(1000)]
        events = [make_event(start + n)._replace(body=body) for n, body in enumerate(bodies)]
        await log.append(Batch.of(events, range(start, start + 1000)), cursor)
        await log.maintain()
        largest = max(largest, log.statistics().bytes_on_disk)
    held = await times_from(log, log.floor)
    await log.close()
    assert bound * 0.7 < largest <= bound
    assert held == list(range(log.floor, 60_001))
    assert len(held) > 5_000


async def test_a_bound_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--retention-bytes"):
        await SqliteLog.open(tmp_path, retention_bytes=1_000_000)


async def test_a_deleted_accounts_records_are_in_no_file_and_no_memory(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, small_blocks: None
) -> None:
    secret, did = b'{"text":"what only this account said"}', b"did:plc:leaver"
    log = await filled(tmp_path, batch_of, cursor, 500)
    said = Event(CREATE, did, b"app.bsky.feed.post", b"k", b"r", b"bafy", secret)
    for time in range(1001, 1300):
        await log.append(Batch.of([said, make_event(time)], [2 * time, 2 * time + 1]), cursor)
    await log.maintain()
    assert await log.read(0, log.tip + 1, Filter(dids=frozenset({did}))) is not None
    gone = Event(ACCOUNT, did, b"", b"", b"", b"", b'{"active":false,"status":"deleted"}')
    await log.append(Batch.of([gone, said], [3000, 3001]), cursor)
    assert await times_from(log, log._recent.start, Filter(dids=frozenset({did}))) == [3000, 3001]
    await settled(log)
    assert await times_from(log, 0, Filter(dids=frozenset({did}))) == [3000, 3001]
    assert len(await times_from(log, 0)) == log.statistics().events == 500 + 299 + 2
    await log.close()
    again = await SqliteLog.open(tmp_path)
    assert len(await times_from(again, 0)) == again.statistics().events == 500 + 299 + 2
    await again.close()


async def settled(log: SqliteLog) -> None:
    """Let the background forget all that is to be forgotten."""
    await log.maintain()
    while await log._in_maintenance(log._maintenance.gone):
        await log.maintain()


async def test_what_was_scrubbed_from_the_tail_is_overwritten_in_the_file(
    tmp_path: Path, cursor: Cursors
) -> None:
    secret, did = b'{"text":"what only this account said"}', b"did:plc:leaver"
    log = await SqliteLog.open(tmp_path)
    await log.append(Batch.of([Event(CREATE, did, b"a.b.c", b"k", b"r", b"bafy", secret)], [1]), cursor)
    body = b'{"active":false,"status":"deleted"}'
    await log.append(Batch.of([Event(ACCOUNT, did, b"", b"", b"", b"", body)], [2]), cursor)
    await settled(log)
    await log.close()
    stored = (tmp_path / DATABASE).read_bytes()
    assert body in stored
    assert secret not in stored


async def test_forgetting_can_be_turned_off(tmp_path: Path, cursor: Cursors) -> None:
    log = await SqliteLog.open(tmp_path, forget=frozenset())
    events = [
        make_event(1)._replace(did=b"did:plc:x"),
        Event(ACCOUNT, b"did:plc:x", b"", b"", b"", b"", b'{"active":false,"status":"deleted"}'),
    ]
    await log.append(Batch.of(events, [1, 2]), cursor)
    await log.maintain()
    assert await times_from(log, 0) == [1, 2]
    await log.close()


async def test_damage_that_hinders_storing_ends_the_upkeep_and_the_next_append_says_so(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(1, 6000)), cursor)

    def store_block(_maintenance: Maintenance, _block: Block) -> int:
        raise Damaged("a page of the tail")

    monkeypatch.setattr(Maintenance, "store_block", store_block)
    log._due.set()
    await asyncio.wait([log._maintaining])
    with pytest.raises(LogCorrupt, match=r"a page of the tail.*log repair"):
        await log.append(batch_of(range(6000, 6001)), cursor)
    await log.close()


@pytest.mark.parametrize(("backlog_events", "hurries"), [(5_000, True), (6_000, False)])
async def test_sealing_that_is_behind_does_not_wait_for_a_busy_loop(
    tmp_path: Path,
    batch_of: BatchOf,
    cursor: Cursors,
    monkeypatch: pytest.MonkeyPatch,
    backlog_events: int,
    hurries: bool,
) -> None:
    monkeypatch.setattr(sqlite, "BACKLOG_EVENTS", backlog_events)
    usual_s, next_block = sys.getswitchinterval(), Maintenance.next_block
    seen: list[bool] = []

    def watched(maintenance: Maintenance) -> Block | None:
        seen.append(sys.getswitchinterval() < usual_s)
        return next_block(maintenance)

    monkeypatch.setattr(Maintenance, "next_block", watched)
    log = await SqliteLog.open(tmp_path)
    await log.append(batch_of(range(1, 6_000)), cursor)
    await log.maintain()
    assert seen[0] is hurries
    assert seen[-1] is False  # nothing is left to seal
    assert sys.getswitchinterval() == usual_s
    await log.close()


async def test_the_write_ahead_log_begins_anew_when_it_is_long(
    tmp_path: Path, batch_of: BatchOf, cursor: Cursors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "WAL_BYTES", 200_000)
    log = await SqliteLog.open(tmp_path)
    wal = tmp_path / f"{DATABASE}-wal"
    for start in range(1, 40_000, 100):
        await log.append(batch_of(range(start, start + 100)), cursor)
        await log.maintain()
    assert wal.stat().st_size < 300_000
    (checkpoints,) = log._writer.execute("SELECT checkpoints FROM state").fetchone()
    assert 10 < checkpoints < 400  # now and then, and not each time
    assert await times_from(log, 0) == list(range(1, 40_001))
    await log.close()


async def test_a_large_append_is_whole_yet_no_reader_need_take_all_of_it(
    tmp_path: Path, cursor: Cursors
) -> None:
    sizes = [900_000, 10, 700_000, 2_000_000, 400_000, 400_000, 1]
    events = [Event(CREATE, b"did:plc:a", b"a.b.c", b"k", b"r", b"", b"x" * size) for size in sizes]
    log = await SqliteLog.open(tmp_path)
    await log.append(Batch.of(events, range(1, 8)), cursor)
    log._recent.drop_before(8)  # as if more had come since
    read: list[int] = []
    while (batch := await log.read(len(read) + 1, 8, EVERYTHING)) is not None:
        first = batch.index(len(read) + 1)
        assert batch.text_bytes() < READ_BYTES + max(BATCH_BYTES, *sizes) + 1_000
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
        await log.append(Batch.of([event], [time]), cursor)
    log._recent.drop_before(31)
    batch = await log.read(1, 31, EVERYTHING)
    assert batch is not None
    assert len(batch) == READ_BYTES // 100_000 + 1
