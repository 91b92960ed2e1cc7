"""A log that another process writes: an edge shows all of it, once, and nothing that is erased.

The writer and the edges are in one process here, each with files and connections of its own, as processes
have them. tests/foreign has them in processes that are killed.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.serving import until
from tests.unit.eventlog.reading import times_from
from tests.unit.eventlog.trimming import trim

from jetstream.conditions import Conditions
from jetstream.errors import LogCorrupt, LogError
from jetstream.eventlog import Changes, Cursors, Gap, LogReader, SourceCursor
from jetstream.eventlog.sqlite.edge import EdgeLog
from jetstream.eventlog.sqlite.journal import FILE as JOURNAL
from jetstream.eventlog.sqlite.rebase import rebase
from jetstream.eventlog.sqlite.repair import repair
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.eventlog.sqlite.tailing import Snapshot
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, Event
from jetstream.model.filter import EVERYTHING, Filter

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(upkeep_interval_s=3600.0, segment_events=100)
QUICK = replace(BY_HAND, poll_s=0.01, heartbeat_s=0.01)
SECRET = b'{"text":"what only this account said"}'


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def writer(tmp_path: Path, cursor: Cursors) -> AsyncIterator[SqliteLog]:
    log = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await log.append(Batch.of((), ()), Changes(cursor))  # a new source is committed
    yield log
    await log.close()


@asynccontextmanager
async def edge_of(
    directory: Path, limits: LogLimits = BY_HAND, **arguments: object
) -> AsyncIterator[EdgeLog]:
    edge = await EdgeLog.open(directory, limits=limits, **arguments)  # type: ignore[arg-type]
    try:
        yield edge
    finally:
        await edge.close()


@asynccontextmanager
async def following(edge: EdgeLog) -> AsyncIterator[None]:
    """Let an edge follow its writer."""
    task = asyncio.create_task(edge.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def append(log: SqliteLog, batch: Batch, seq: int = 1) -> None:
    await log.append(batch, Changes({"relay.example:443": SourceCursor(seq)}))


async def append_each(log: SqliteLog, batch_of: BatchOf, times: range) -> None:
    """Append events one by one: small appends, which go to the journal."""
    for time in times:
        await append(log, batch_of(range(time, time + 1)), time)


async def test_it_is_a_log(writer: SqliteLog, tmp_path: Path) -> None:
    async with edge_of(tmp_path) as edge:
        interface: LogReader = edge
        assert (interface.tip, interface.floor, interface.oldest_us) == (0, 0, None)
        assert interface.statistics().newest_us is None


async def test_it_has_what_is_in_the_database_and_in_the_journal(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    await append(writer, batch_of(range(1, 250)))
    await writer.maintain()
    await append_each(writer, batch_of, range(250, 260))
    async with edge_of(tmp_path) as edge:
        assert await times_from(edge) == list(range(1, 260))
        assert edge.statistics().events == 259
        assert (edge.tip, edge.oldest_us) == (259, 1)


async def test_what_is_appended_is_seen_at_the_next_look(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    async with edge_of(tmp_path) as edge:
        await append_each(writer, batch_of, range(1, 4))
        assert edge.tip == 0
        await edge.look()
        await append(writer, batch_of(range(4, 60)))  # takes along what is in the journal
        await append_each(writer, batch_of, range(60, 63))
        await edge.look()
        assert await times_from(edge) == list(range(1, 63))
        await writer.maintain()  # empties the journal, and writes nothing new
        await append_each(writer, batch_of, range(63, 65))
        await edge.look()
        assert await times_from(edge) == list(range(1, 65))
        assert edge.statistics().events == writer.statistics().events == 64


async def test_it_learns_of_events_without_being_asked(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    counted: list[int] = []
    async with edge_of(tmp_path, on_read=lambda batch: counted.extend(batch.times)) as edge, following(edge):
        async with asyncio.timeout(20):
            await append_each(writer, batch_of, range(1, 4))
            await edge.wait(3)
            await append(writer, batch_of(range(4, 90)))
            await edge.wait(89)
        assert counted == list(range(1, 90))


async def test_it_looks_now_and_then_where_nothing_is_told(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    async with edge_of(tmp_path, QUICK) as edge:
        edge._on_change = lambda names: None  # type: ignore[method-assign]
        async with following(edge), asyncio.timeout(20):
            await append_each(writer, batch_of, range(1, 4))
            await edge.wait(3)
            await append(writer, batch_of(range(4, 90)))
            await edge.wait(89)


async def test_a_backlog_is_read_in_parts(writer: SqliteLog, tmp_path: Path, batch_of: BatchOf) -> None:
    small = replace(BY_HAND, batch_events=10, segment_events=10_000)
    async with edge_of(tmp_path, small) as edge:
        for first in range(1, 301, 20):
            await append(writer, batch_of(range(first, first + 20)))
        await edge.look()
        assert edge.tip == 300
        await append_each(writer, batch_of, range(301, 311))
        await edge.look()
        assert await times_from(edge) == list(range(1, 311))


async def test_events_that_were_sealed_before_they_were_read_are_read_from_segments(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    await append(writer, batch_of(range(1, 50)))
    async with edge_of(tmp_path) as edge:
        for first in range(50, 450, 50):
            await append(writer, batch_of(range(first, first + 50)))
            await writer.maintain()
        await append_each(writer, batch_of, range(450, 455))
        await edge.look()
        assert edge.tip == 454
        assert await times_from(edge, 45) == list(range(45, 455))
        await append_each(writer, batch_of, range(455, 458))
        await edge.look()
        assert await times_from(edge, 440) == list(range(440, 458))


async def test_a_reader_below_the_floor_is_told_so(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    for first in range(1, 501, 100):
        await append(writer, batch_of(range(first, first + 100)))
    await writer.maintain()
    async with edge_of(tmp_path) as edge:
        await trim(writer, 301)
        assert edge.floor == 0
        batch = await edge.read(5, 1_000, EVERYTHING)
        assert batch is not None
        # What was skipped is below the floor that the reader sees now.
        assert edge.floor == writer.floor == 301
        assert batch.first == 301
        assert edge.oldest_us == 301


# Erasing


def secret_of(did: bytes) -> Event:
    return Event(CREATE, did, b"app.bsky.feed.post", b"rkey", b"rev", b"cid", SECRET)


def end_of(did: bytes) -> Event:
    return Event(ACCOUNT, did, b"", b"", b"", b"", b'{"active":false,"status":"deleted"}')


async def bodies(log: LogReader, position: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while (batch := await log.read(position, 1 << 62, EVERYTHING)) is not None:
        found += batch.bodies[batch.index(position) :]
        position = batch.last + 1
    return found


@pytest.mark.usefixtures("only_new_objects")
async def test_what_is_erased_is_gone_from_memory_at_the_next_look(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    await append(writer, Batch.of([secret_of(b"did:plc:a"), secret_of(b"did:plc:b")], [1, 2]))
    await append(writer, batch_of(range(3, 120)))
    await writer.maintain()  # sealed
    await append(writer, Batch.of([secret_of(b"did:plc:a")], [120]))
    async with edge_of(tmp_path) as edge:
        assert (await bodies(edge)).count(SECRET) == 3
        sealed, hot = await edge.read(1, 2, EVERYTHING), await edge.read(120, 121, EVERYTHING)
        assert sealed is not None
        assert hot is not None
        dropped = [weakref.ref(sealed), weakref.ref(hot)]
        del sealed, hot
        await append(writer, Batch.of([end_of(b"did:plc:a")], [121]))
        await edge.look()

        def are_gone() -> bool:  # threads and the event loop refer to what they have just returned
            gc.collect()
            return all(each() is None for each in dropped)

        await until(are_gone)
        # The file still has them; what is read of it has not.
        assert (await bodies(edge)).count(SECRET) == 1
        await append_each(writer, batch_of, range(122, 125))
        await writer.maintain()
        await edge.look()
        assert (await bodies(edge)).count(SECRET) == 1
        assert await times_from(edge, 3) == [*range(3, 120), *range(121, 125)]


async def test_an_erasure_that_came_and_went_between_two_looks_is_noticed(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    await append(writer, Batch.of([secret_of(b"did:plc:a")], [1]))
    async with edge_of(tmp_path) as edge:
        assert await bodies(edge) == [SECRET]
        await append(writer, Batch.of([end_of(b"did:plc:a")], [2]))
        await writer.maintain()
        await writer.maintain()
        await edge.look()
        assert edge._log._tombstones == {}
        assert SECRET not in await bodies(edge)


async def test_an_erasure_during_a_read_is_noticed(writer: SqliteLog, tmp_path: Path) -> None:
    await append(writer, Batch.of([secret_of(b"did:plc:a")], [1]))
    async with edge_of(tmp_path, replace(BY_HAND, hot_tail_events=1, batch_events=1)) as edge:
        await append(writer, Batch.of([secret_of(b"did:plc:b")], [2]))
        await writer.maintain()
        await edge.look()
        await append(writer, Batch.of([secret_of(b"did:plc:b")], [3]))
        await writer.maintain()
        await edge.look()
        assert edge._log.hot_tail.start > 1
        await append(writer, Batch.of([end_of(b"did:plc:a")], [4]))  # the edge has not looked since
        assert await bodies(edge) == [SECRET, SECRET, end_of(b"").body]


async def test_nothing_is_served_while_the_log_cannot_be_looked_at(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    await append(writer, batch_of(range(1, 50)))
    clock, conditions, aside = Clock(), Conditions(), tmp_path / "aside"
    async with edge_of(tmp_path, QUICK, clock=clock, conditions=conditions) as edge, following(edge):
        (tmp_path / DATABASE).rename(aside)
        await until(lambda: edge._problem)
        clock.now += 0.9
        assert await edge.read(1, 50, EVERYTHING) is not None
        clock.now += 0.2
        reading = asyncio.create_task(edge.read(1, 50, EVERYTHING))
        await until(lambda: "log_unreadable" in conditions.names)
        assert not reading.done()
        assert not edge.status(50).readable
        with pytest.raises(LogError):
            await edge.look()
        aside.rename(tmp_path / DATABASE)
        async with asyncio.timeout(20):
            batch = await reading
        assert batch is not None
        assert batch.times[:3] == [1, 2, 3]
        await until(lambda: "log_unreadable" not in conditions.names)


async def test_after_a_pause_of_the_process_the_log_is_looked_at_before_anything_is_served(
    writer: SqliteLog, tmp_path: Path
) -> None:
    clock = Clock()
    await append(writer, Batch.of([secret_of(b"did:plc:a")], [1]))
    async with edge_of(tmp_path, clock=clock) as edge:
        await append(writer, Batch.of([end_of(b"did:plc:a")], [2]))
        clock.now += 5.0
        assert SECRET not in await bodies(edge)


# The writer


async def test_an_edge_knows_below_which_position_nothing_more_comes_once_it_has_read_what_there_is(
    tmp_path: Path, batch_of: BatchOf
) -> None:
    writer = await SqliteLog.open(tmp_path, limits=QUICK)
    async with edge_of(tmp_path) as edge:
        assert edge.watermark == 0
        await append(writer, batch_of(range(1, 5)))
        writer.next_position = lambda: 1_024

        def told() -> bool:
            edge._look_at_writer()
            return edge._writer.watermark(4) == 1_024

        await until(told)
        assert (edge.tip, edge.watermark) == (0, 0)
        await edge.look()
        assert (edge.tip, edge.watermark) == (4, 1_024)
        async with following(edge):
            writer.next_position = lambda: 2_048
            await until(lambda: edge.watermark == 2_048)
    await writer.close()


async def test_an_edge_waits_for_its_log(tmp_path: Path, cursor: Cursors, batch_of: BatchOf) -> None:
    directory = tmp_path / "later"
    with capture_logs() as lines:
        opening = asyncio.create_task(EdgeLog.open(directory, limits=QUICK))
        await until(lambda: lines)
        writer = await SqliteLog.open(directory, limits=QUICK)
        await append(writer, batch_of(range(1, 5)))
        async with asyncio.timeout(20):
            edge = await opening
        await edge.look()
        assert await times_from(edge) == [1, 2, 3, 4]
    assert [line["event"] for line in lines].count("log: waiting for the process that writes it") == 1
    await edge.close()
    await writer.close()


async def test_a_file_without_tables_is_waited_for_and_another_version_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        connection.execute("PRAGMA user_version = 7")
        opening = asyncio.create_task(EdgeLog.open(tmp_path, limits=QUICK))
        await asyncio.sleep(0)
        connection.execute("CREATE TABLE songs (name)")
        connection.commit()
    async with asyncio.timeout(20):
        with pytest.raises(LogCorrupt, match="not a Jetstream log"):
            await opening


async def test_a_writer_that_starts_again_is_followed(
    tmp_path: Path, cursor: Cursors, batch_of: BatchOf
) -> None:
    writer = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await append_each(writer, batch_of, range(1, 5))
    async with edge_of(tmp_path) as edge:
        for first in 5, 10, 15:
            await writer.close()
            await edge.look()
            writer = await SqliteLog.open(tmp_path, limits=BY_HAND)
            await append_each(writer, batch_of, range(first, first + 5))
            await edge.look()
            assert await times_from(edge) == list(range(1, first + 5))
        await writer.close()


async def test_a_journal_that_is_replaced_under_its_writer_is_followed(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    async with edge_of(tmp_path) as edge:
        await append_each(writer, batch_of, range(1, 4))
        await edge.look()
        (tmp_path / JOURNAL).unlink()
        await append_each(writer, batch_of, range(4, 6))
        await writer.maintain()
        await edge.look()
        await append_each(writer, batch_of, range(6, 9))
        await edge.look()
        assert edge._log.stored_to == 5
        assert await times_from(edge) == list(range(1, 9))


async def test_a_writer_that_is_gone_is_a_condition(
    tmp_path: Path, cursor: Cursors, batch_of: BatchOf
) -> None:
    clock, conditions = Clock(), Conditions()
    writer = await SqliteLog.open(tmp_path, limits=QUICK)
    await append(writer, batch_of(range(1, 5)))
    async with edge_of(tmp_path, QUICK, clock=clock, conditions=conditions) as edge, following(edge):
        await until(lambda: edge.status(5).writer_alive)
        await writer.close()
        await until(lambda: edge._log.stored_to == 4)

        def is_gone() -> bool:
            clock.now += 1.0  # the last heartbeat may not have been read yet
            return "writer_gone" in conditions.names

        await until(is_gone)
        assert not edge.status(5).writer_alive
        await until(lambda: edge.status(5).readable)
        assert await times_from(edge) == [1, 2, 3, 4]
        writer = await SqliteLog.open(tmp_path, limits=QUICK)
        await until(lambda: "writer_gone" not in conditions.names)
        await writer.close()


async def test_the_lag_is_what_is_not_published(writer: SqliteLog, tmp_path: Path, batch_of: BatchOf) -> None:
    clock = Clock()
    async with edge_of(tmp_path, QUICK, clock=clock) as edge, following(edge):
        await append(writer, batch_of(range(1, 5)))
        await until(lambda: edge._writer._lag._marks)
        clock.now += 2.0
        assert edge.status(5).lag_s == 0.0
        await append(writer, batch_of(range(5, 9)))
        await until(lambda: edge.status(5).lag_s > 0.0 or edge._writer._lag._marks)
        clock.now += 3.0
        assert edge.status(5).lag_s == 3.0
        assert edge.status(9).lag_s == 0.0


# Another file


async def test_a_repaired_log_is_read_in_the_place_of_the_damaged_one(
    tmp_path: Path, cursor: Cursors, batch_of: BatchOf
) -> None:
    writer = await SqliteLog.open(tmp_path, limits=QUICK)
    for first in range(1, 401, 100):
        await append(writer, batch_of(range(first, first + 100)))
    await writer.maintain()
    async with edge_of(tmp_path, QUICK) as edge, following(edge):
        await writer.close()
        with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
            connection.execute("UPDATE segment SET bodies = zeroblob(10) WHERE last_us = 200")
            connection.commit()
        _, aside = repair(tmp_path)
        assert aside is not None
        writer = await SqliteLog.open(tmp_path, limits=QUICK)
        await append(writer, batch_of(range(writer.tip + 1, writer.tip + 51)))
        async with asyncio.timeout(20):
            await edge.wait(writer.tip)
        assert await times_from(edge) == await times_from(writer)
        await writer.close()


async def test_a_journal_that_was_replaced_is_read(tmp_path: Path, batch_of: BatchOf) -> None:
    writer = await SqliteLog.open(tmp_path, limits=BY_HAND)
    await append_each(writer, batch_of, range(1, 5))
    async with edge_of(tmp_path) as edge:
        assert edge.tip == 4
        await writer.close()
        (tmp_path / JOURNAL).rename(tmp_path / "aside")  # as when files are restored from a backup
        writer = await SqliteLog.open(tmp_path, limits=BY_HAND)
        await append_each(writer, batch_of, range(5, 9))
        await edge.look()
        assert await times_from(edge) == list(range(1, 9))
        await append_each(writer, batch_of, range(9, 11))
        await edge.look()
        assert edge.tip == 10
        await writer.close()


async def test_a_writer_that_is_quicker_than_the_edge_has_not_set_back_its_log(
    writer: SqliteLog, tmp_path: Path, batch_of: BatchOf
) -> None:
    """It moves the journal to the database between the edge's looks at the one and at the other."""
    async with edge_of(tmp_path) as edge:
        await append_each(writer, batch_of, range(1, 4))
        await edge.look()
        take, state = edge._log._snapshot, writer._state

        def snapshot() -> Snapshot:
            found = take()
            state.empty_journal()
            state.journal.wipe()
            return found

        edge._log._snapshot = snapshot  # type: ignore[method-assign]
        edge._log.reopen()
        await edge.look()
        assert await times_from(edge) == [1, 2, 3]
        await append_each(writer, batch_of, range(4, 6))
        await edge.look()
        assert await times_from(edge) == [1, 2, 3, 4, 5]


async def test_a_log_that_was_set_back_ends_the_edge(
    tmp_path: Path, cursor: Cursors, batch_of: BatchOf
) -> None:
    writer = await SqliteLog.open(tmp_path, limits=QUICK)
    await append(writer, batch_of(range(1_000, 1_050)))
    async with edge_of(tmp_path, QUICK) as edge:
        await writer.close()
        rebase(tmp_path, 500)
        with pytest.raises(LogCorrupt, match="was set back"):
            await edge.look()
        with pytest.raises(LogCorrupt, match="was set back"):
            await edge.run()


async def test_gaps_are_read(writer: SqliteLog, tmp_path: Path, cursor: Cursors) -> None:
    gap = Gap(5, "did:plc:a", "a", "b", "commit")
    await writer.append(Batch.of((), ()), Changes(cursor, gaps=[gap]))
    async with edge_of(tmp_path) as edge:
        assert await edge.gaps(0, 10) == [gap]


async def test_many_edges_follow_one_writer(tmp_path: Path, batch_of: BatchOf, cursor: Cursors) -> None:
    writer = await SqliteLog.open(tmp_path, limits=replace(QUICK, upkeep_interval_s=0.02))
    async with AsyncExitStack() as stack:
        edges = [await stack.enter_async_context(edge_of(tmp_path, QUICK)) for _ in range(3)]
        for edge in edges:
            await stack.enter_async_context(following(edge))
        for first in range(1, 2_001, 20):
            await append(
                writer, batch_of(range(first, first + 20)) if first % 3 else batch_of(range(first, first + 1))
            )
        async with asyncio.timeout(20):
            for edge in edges:
                await edge.wait(writer.tip)
        expected = await times_from(writer)
        wanted = Filter.parse(["app.bsky.feed.post"], ["did:plc:repo3"])
        for edge in edges:
            assert await times_from(edge) == expected
            assert await times_from(edge, wanted=wanted) == await times_from(writer, wanted=wanted)
    await writer.close()
