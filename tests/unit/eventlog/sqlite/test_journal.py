"""Small appends are in the journal before they are in the database, and are lost from neither."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.logs.copying import copied
from tests.unit.eventlog.reading import times_from

from jetstream.atproto.compact_did import compact_did
from jetstream.eventlog import Changes, Cursors, SourceCursor
from jetstream.eventlog.columns import Columns
from jetstream.eventlog.sqlite.connection import open_reader
from jetstream.eventlog.sqlite.journal import FILE, Entry, Journal
from jetstream.eventlog.sqlite.rebase import rebase
from jetstream.eventlog.sqlite.schema import DATABASE, read_cursors
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.eventlog.sqlite.tailing import JournalReader
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, Event

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(upkeep_interval_s=3600.0)
NOTHING = Batch.of((), ())
DIDS = [compact_did(f"did:plc:{letter * 24}") for letter in "abc"]
STATE = b"s" * 24
SECRET = b'{"text":"what only this account said"}'


def cursors(seq: int) -> Cursors:
    return {"relay.example:443": SourceCursor(seq)}


def in_tail(directory: Path) -> int:
    """Return how many events are in rows of the tail."""
    with closing(open_reader(directory / DATABASE)) as connection:
        return int(connection.execute("SELECT ifnull(sum(events), 0) FROM tail").fetchone()[0])


def stored_seq(directory: Path) -> int | None:
    """Return the cursor that is in the database."""
    with closing(open_reader(directory / DATABASE)) as connection:
        return next((cursor.seq for cursor in read_cursors(connection).values()), None)


async def opened(directory: Path, limits: LogLimits = BY_HAND) -> SqliteLog:
    log = await SqliteLog.open(directory, limits=limits)
    await log.append(NOTHING, Changes(cursors(0)))  # a new source is committed
    return log


async def appended(log: SqliteLog, batch_of: BatchOf, first: int, last: int) -> None:
    """Append events one by one, each with its number as the cursor."""
    for number in range(first, last + 1):
        await log.append(batch_of(range(number, number + 1)), Changes(cursors(number)))


def taken(log: SqliteLog, directory: Path) -> Path:
    """Copy the files as they are at this moment: what `kill -9` leaves."""
    return copied(directory, directory.parent / f"{directory.name}-copy")


async def held(directory: Path) -> tuple[list[int], Cursors]:
    """Open a log, twice; return its events and cursors."""
    found = []
    for _ in range(2):
        log = await SqliteLog.open(directory, limits=BY_HAND)
        times = await times_from(log)
        assert log.statistics().events == len(times)
        found.append((times, log.cursors))
        await log.close()
    assert found[0] == found[1]
    return found[0]


def test_another_process_reads_entries_of_any_size(tmp_path: Path, batch_of: BatchOf) -> None:
    journal = Journal(tmp_path, 1 << 20, 10_000)
    reader = JournalReader(tmp_path)
    reader.follow(3, 10)
    assert reader.read() == []
    before, expected = 10, []
    for count in 1, 700, 2, 1, 300, 5:  # of 200 bytes each: more than is read at once
        batch = batch_of(range(before + 1, before + 1 + count))
        columns = Columns.of(batch)
        assert journal.append(Entry(batch.first, batch.last, columns, {}, {}), 3, before)
        expected.append((batch.last, columns))
        before = batch.last
        if count != 2:
            assert reader.read() == expected
            expected.clear()
    assert reader.read() == []
    # What follows after the database was written begins at the start of the file.
    journal.clear()
    assert journal.append(Entry(before + 1, before, None, {}, {}), 4, before)
    assert reader.read() == []
    reader.follow(4, before)
    assert reader.read() == [(before, None)]
    assert reader.tip == before
    reader.close()
    journal.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


async def test_small_appends_wait_for_upkeep_and_survive_a_kill(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 5)
    assert (in_tail(directory), stored_seq(directory)) == (0, 0)
    assert await times_from(log) == [1, 2, 3, 4, 5]
    copy = taken(log, directory)
    await log.maintain()
    assert (in_tail(directory), stored_seq(directory)) == (5, 5)
    await log.close()
    assert await held(copy) == await held(directory) == ([1, 2, 3, 4, 5], cursors(5))


async def test_a_large_append_takes_the_small_ones_before_it_along(
    directory: Path, batch_of: BatchOf
) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 3)
    await log.append(batch_of(range(4, 1_000)), Changes(cursors(4)))
    assert (in_tail(directory), stored_seq(directory)) == (999, 4)
    await appended(log, batch_of, 1_000, 1_001)
    copy = taken(log, directory)
    await log.close()
    assert await held(copy) == (list(range(1, 1_002)), cursors(1_001))


async def test_a_full_journal_is_emptied_by_the_next_append(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory, replace(BY_HAND, journal_bytes=2_000))
    await appended(log, batch_of, 1, 30)
    assert 0 < in_tail(directory) < 30
    copy = taken(log, directory)
    await log.close()
    assert await held(copy) == (list(range(1, 31)), cursors(30))


async def test_without_room_for_a_journal_appends_are_committed(
    directory: Path, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.posix_fallocate", refuse)
    with capture_logs() as lines:
        log = await opened(directory)
    assert [line["event"] for line in lines] == ["log: without a journal, each append is committed"]
    await appended(log, batch_of, 1, 3)
    assert in_tail(directory) == 3
    await log.close()


@pytest.mark.parametrize("cut", [1, 100, 300])
async def test_an_entry_that_is_torn_is_left_out_and_so_are_those_behind_it(
    directory: Path, batch_of: BatchOf, cut: int
) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 5)
    end = log._state.journal._end
    copy = taken(log, directory)
    await log.close()
    data = bytearray((copy / FILE).read_bytes())
    data[end - cut] ^= 1
    (copy / FILE).write_bytes(data)
    times, found = await held(copy)
    assert 0 < len(times) < 5
    assert (times, found) == (list(range(1, len(times) + 1)), cursors(len(times)))


async def test_what_follows_lost_commits_is_left_out(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 2)
    await log.maintain()
    earlier = taken(log, directory)
    # This commit has no event, so that the tip stays.
    await log.append(NOTHING, Changes(cursors(2), accounts={("relay.example:443", "did:plc:a"): b"gone"}))
    await appended(log, batch_of, 3, 4)
    shutil.copy(directory / FILE, earlier / FILE)
    await log.close()
    assert await held(earlier) == ([1, 2], cursors(2))


async def test_what_is_in_the_database_by_now_is_not_stored_again(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 2)
    await log.append(NOTHING, Changes(cursors(3)))
    old = (directory / FILE).read_bytes()
    await log.maintain()
    await log.append(NOTHING, Changes(cursors(9)))
    await log.close()
    (directory / FILE).write_bytes(old)
    assert await held(directory) == ([1, 2], cursors(9))


async def test_all_that_an_append_may_have_is_recovered(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    cursor = {"relay.example:443": SourceCursor(7, 300_007, 9_000, 12, (9, 11))}
    await log.append(NOTHING, Changes(cursors(1), repos={DIDS[0]: STATE, DIDS[1]: STATE}))
    await log.append(batch_of(range(1, 4)), Changes(cursor, repos={DIDS[1]: None, DIDS[2]: STATE[::-1]}))
    copy = taken(log, directory)
    await log.close()
    assert in_tail(copy) == 0
    for path in copy, directory:
        again = await SqliteLog.open(path)
        assert again.cursors == cursor
        assert [again.repo(did) for did in DIDS] == [STATE, None, STATE[::-1]]
        assert await times_from(again) == [1, 2, 3]
        await again.close()


async def test_an_append_that_moves_no_cursor_is_small_with_many_sources(
    directory: Path, batch_of: BatchOf
) -> None:
    log = await SqliteLog.open(directory, limits=replace(BY_HAND, journal_bytes=2_000))
    many = {f"pds-{number}.example:443": SourceCursor(number) for number in range(100)}
    await log.append(NOTHING, Changes(many))
    await log.append(batch_of(range(1, 3)), Changes(many))
    assert in_tail(directory) == 0
    await log.close()
    assert await held(directory) == ([1, 2], many)


@pytest.mark.parametrize(("count", "committed"), [(2_000, 0), (2_001, 1)])
async def test_a_cursor_with_many_numbers_is_committed(
    directory: Path, batch_of: BatchOf, count: int, committed: int
) -> None:
    log = await opened(directory)
    cursor = {"relay.example:443": SourceCursor(7, unstored=tuple(range(9, 9 + 3 * count, 3)))}
    await log.append(batch_of(range(1, 2)), Changes(cursor))
    assert in_tail(directory) == committed
    assert log._state.journal._end < 8_192
    copy = taken(log, directory)
    await log.close()
    assert await held(copy) == ([1], cursor)


async def test_an_account_that_is_deleted_takes_small_appends_with_it(directory: Path) -> None:
    log = await opened(directory)
    for number in range(1, 4):
        event = Event(b"c", b"did:plc:a", b"com.example.a", b"%d" % number, b"rev", b"cid", SECRET)
        await log.append(Batch.of([event], [number]), Changes(cursors(number)))
    gone = Event(ACCOUNT, b"did:plc:a", b"", b"", b"", b"", b'{"active":false,"status":"deleted"}')
    await log.append(Batch.of([gone], [4]), Changes(cursors(4)))
    copy = taken(log, directory)
    assert SECRET in (copy / FILE).read_bytes()
    await log.maintain()
    assert SECRET not in (directory / FILE).read_bytes()
    await log.close()
    again = await SqliteLog.open(copy)
    assert await times_from(again) == [4]
    await again.close()


async def test_a_log_that_is_opened_overwrites_old_entries(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 3)
    await log.close()
    assert any((directory / FILE).read_bytes())
    await (await SqliteLog.open(directory, limits=BY_HAND)).close()
    assert not any((directory / FILE).read_bytes())
    assert (await held(directory))[0] == [1, 2, 3]


@pytest.mark.parametrize("by", ["nothing", "another file"])
async def test_a_journal_that_is_replaced_under_the_writer_is_made_again(
    directory: Path, batch_of: BatchOf, by: str
) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 3)
    if by == "nothing":
        (directory / FILE).unlink()
    else:
        (directory / "old").write_bytes((directory / FILE).read_bytes())
        (directory / "old").rename(directory / FILE)
    await appended(log, batch_of, 4, 5)
    with capture_logs() as lines:
        await log.maintain()
        await appended(log, batch_of, 6, 8)
        await log.maintain()
    assert [line["event"] for line in lines if "journal" in line["event"]] == [
        "log: the journal was deleted or replaced, and is made again"
    ]
    await appended(log, batch_of, 9, 11)
    assert await held(taken(log, directory)) == (list(range(1, 12)), cursors(11))
    await log.close()


async def test_what_the_journal_refuses_is_committed(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 2)
    file = log._state.journal._file
    assert file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file)  # takes nothing
    os.close(full)
    await appended(log, batch_of, 3, 3)
    assert (in_tail(directory), stored_seq(directory)) == (3, 3)
    await log.close()
    assert await held(directory) == ([1, 2, 3], cursors(3))


def test_what_was_written_in_part_is_overwritten_too(
    directory: Path, batch_of: BatchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry may have what is erased later."""
    directory.mkdir(exist_ok=True)
    journal = Journal(directory, 4096, 100)
    entry = Entry(1, 9, Columns.of(batch_of(range(1, 10))), cursors(1), {})
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda file, data, at: write(file, data[: len(data) // 2], at))
    assert not journal.append(entry, 0, 0)
    monkeypatch.undo()
    assert any((directory / FILE).read_bytes())
    journal.wipe()
    assert not any((directory / FILE).read_bytes())
    journal.close()


async def test_readers_find_what_memory_no_longer_has(directory: Path, batch_of: BatchOf) -> None:
    limits = replace(BY_HAND, hot_tail_events=2, batch_events=1)
    log = await opened(directory, limits)
    await appended(log, batch_of, 1, 9)
    assert await times_from(log) == list(range(1, 10))
    await log.close()


async def test_keys_of_the_newest_appends_are_found(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 3)
    assert len(await log.keys_from(0, 10)) == 3
    await log.close()


async def test_keys_are_found_while_nothing_can_be_written(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 1, 3)
    await log.maintain()
    await appended(log, batch_of, 4, 9)
    with closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert await log.keys_from(2, 8) >= {batch_of(range(n, n + 1)).event(0).key for n in (2, 3, 4, 7)}
        assert batch_of(range(8, 9)).event(0).key not in await log.keys_from(2, 8)
    await log.close()


async def test_what_waits_counts_when_the_rest_is_trimmed_on_a_full_disk(
    directory: Path, batch_of: BatchOf
) -> None:
    limits = replace(BY_HAND, journal_bytes=2_000)
    log = await SqliteLog.open(directory, retention_s=1e-6, clock=lambda: 9, limits=limits)
    await log.append(batch_of(range(1, 4)), Changes(cursors(3)))
    await appended(log, batch_of, 10, 12)
    log._state.space.full = True
    await log.maintain()
    statistics = log.statistics()
    assert (statistics.events, statistics.oldest_us, log._state.tail_events) == (3, 10, 3)
    await log.close()


async def test_a_rebase_moves_them_too(directory: Path, batch_of: BatchOf) -> None:
    log = await opened(directory)
    await appended(log, batch_of, 100, 102)
    copy = taken(log, directory)
    await log.close()
    (copy / "jetstream.reserved").write_text("unknown 0\n")
    assert rebase(copy, 50).events == 3
    assert (await held(copy))[0] == [48, 49, 50]
