"""A process that only reads sees every event once, in order, and nothing that was erased."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import asyncpg
from tests.foreign.postgresql.engine import Leading, PostgresEngine
from tests.foreign.postgresql.proxy import proxied
from tests.foreign.postgresql.server import Server
from tests.logs.contract import ALL_OF_LEAVER, LEAVER, SECRET, account_deleted
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import times_from

from jetstream.conditions import Conditions
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.postgresql.follower import PLAN_ONCE
from jetstream.eventlog.postgresql.following import POLL
from jetstream.eventlog.postgresql.pool import ReaderPool
from jetstream.eventlog.postgresql.reader import DatabaseReader
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.eventlog.postgresql.stored import StoredEvents
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.model.filter import EVERYTHING

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, hot_tail_events=150, batch_events=30, upkeep_interval_s=3600.0)
NEVER_S = 3600.0


async def follow(log: PostgresLog, last: int, seen: list[int]) -> None:
    """Read as a subscriber does, up to a position."""
    position = 1
    while position <= last:
        await log.wait(position)
        stop = log.tip + 1
        seen += await times_from(log, position, stop)
        position = stop


async def append(log: Leading, batch_of: BatchOf, cursor: Cursors, times: range, step: int = 10) -> None:
    for start in range(times.start, times.stop, step):
        await log.append(batch_of(range(start, min(start + step, times.stop))), Changes(cursor))


async def test_an_edge_is_notified(engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors) -> None:
    leader = await engine.open(limits=BY_HAND)
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    seen: list[int] = []
    following = asyncio.create_task(follow(edge, 500, seen))
    await append(leader, batch_of, cursor, range(1, 501))
    await following
    assert seen == list(range(1, 501))
    await edge.close()
    await leader.close()


async def test_an_edge_that_is_not_notified_polls_and_keeps_up_with_sealing_and_rotating(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    leader.term.notifies = False
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=0.01))
    seen: list[int] = []
    following = asyncio.create_task(follow(edge, 2_000, seen))
    for start in range(1, 2_000, 100):
        await append(leader, batch_of, cursor, range(start, start + 100))
        await leader.maintain()
        leader.term.notifies = False
        await leader.upkeep.rotate()
    await following
    assert seen == list(range(1, 2_001))
    assert edge.statistics().events == 2_000
    await edge.close()
    await leader.close()


async def test_an_edge_that_was_away_finds_what_was_sealed_meanwhile(
    engine: PostgresEngine, server: Server, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 51))
    async with proxied(server.port) as proxy:
        address = engine.address.replace(f":{server.port}/", f":{proxy.port}/")
        edge = await PostgresLog.open(address, PostgresOptions(BY_HAND))
        proxy.to_client.clear()
        await append(leader, batch_of, cursor, range(51, 1_001))
        await leader.maintain()
        await leader.upkeep.rotate()
        proxy.cut()
        proxy.to_client.set()
        seen: list[int] = []
        await follow(edge, 1_000, seen)
        assert seen == list(range(1, 1_001))
        await edge.close()
    await leader.close()


async def test_an_edge_waits_for_what_is_missing(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    leader.term.notifies = False
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    await append(leader, batch_of, cursor, range(1, 11))
    await edge.looked_again()
    await append(leader, batch_of, cursor, range(11, 51))
    await engine.execute("CREATE TABLE hidden AS SELECT * FROM tail_a WHERE last_us = 20")
    await engine.execute("DELETE FROM tail_a WHERE last_us = 20")
    await edge.looked_again()
    assert edge.tip == 10
    late = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    assert late.tip == 10
    await engine.execute("INSERT INTO tail_a SELECT * FROM hidden")
    for log in (edge, late):
        await log.looked_again()
        assert await times_from(log) == list(range(1, 51))
        await log.close()
    await leader.close()


async def test_a_reader_of_the_past_waits_for_what_is_missing(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 351))
    await leader.maintain()
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=0.01))
    await engine.execute("CREATE TABLE hidden AS SELECT * FROM segment WHERE last_us = 200")
    await engine.execute("DELETE FROM segment WHERE last_us = 200")
    reading = asyncio.create_task(times_from(edge))
    done, _ = await asyncio.wait([reading], timeout=0.1)
    assert not done
    await engine.execute("INSERT INTO segment SELECT * FROM hidden")
    assert await reading == list(range(1, 351))
    await edge.close()
    await leader.close()


async def test_a_reader_below_the_floor_learns_of_it(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 351))
    await leader.maintain()
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    await engine.trim(leader, 250)
    assert edge.floor == 0  # it has not looked since
    assert (await times_from(edge))[0] == 201
    assert edge.floor == 201
    await edge.close()
    await leader.close()


async def test_the_tail_stays_small_while_a_snapshot_is_held(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    other = await asyncpg.connect(engine.address)
    holding = other.transaction(isolation="repeatable_read")
    await holding.start()
    await other.fetch("SELECT * FROM repo")  # takes the snapshot
    sizes = []
    for start in range(1, 6_000, 1_000):
        await append(leader, batch_of, cursor, range(start, start + 1_000))
        await leader.maintain()
        await leader.upkeep.rotate()
        query = "SELECT pg_total_relation_size('tail_a') + pg_total_relation_size('tail_b')"
        sizes += [size for (size,) in await engine.execute(query)]
    assert max(sizes[1:]) <= sizes[0] + 8_192 * 4
    await holding.rollback()
    await other.close()
    await leader.close()


async def test_a_table_that_others_read_is_rotated_later(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 351))
    await leader.maintain()
    other = await asyncpg.connect(engine.address)
    reading = other.transaction()
    await reading.start()
    await other.fetch("SELECT 1 FROM tail_a")
    await leader.upkeep.rotate()
    assert leader.term.tail == "a"
    await append(leader, batch_of, cursor, range(351, 361))
    await reading.rollback()
    await other.close()
    await leader.upkeep.rotate()
    assert leader.term.tail == "b"
    await append(leader, batch_of, cursor, range(361, 371))
    assert await times_from(leader) == list(range(1, 371))
    await leader.close()


async def test_notifications_stop_while_their_queue_is_not_emptied(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    """A session that listens and stays in a transaction keeps the queue from being emptied."""
    leader = await engine.open(limits=BY_HAND)
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=0.01))
    stuck = await asyncpg.connect(engine.address)
    await stuck.execute("LISTEN jetstream")
    holding = stuck.transaction()
    await holding.start()
    await stuck.execute("SELECT 1")
    leader.upkeep._queue_max = 0.0
    for start in range(1, 301):
        await append(leader, batch_of, cursor, range(start, start + 1))
    await leader.upkeep._check_queue()
    assert not leader.term.notifies
    await append(leader, batch_of, cursor, range(301, 311))
    await edge.wait(310)
    await holding.rollback()
    await stuck.close()
    await edge.close()
    await leader.close()


async def test_what_was_erased_is_served_by_no_edge(engine: PostgresEngine, cursor: Cursors) -> None:
    leader = await engine.open(limits=BY_HAND)
    said = Event(CREATE, LEAVER, b"app.bsky.feed.post", b"k", b"r", b"bafy", SECRET)
    for time in range(1, 400):
        await leader.append(Batch.of([said, make_event(time)], [2 * time, 2 * time + 1]), Changes(cursor))
    await leader.maintain()
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    assert len(await times_from(edge, wanted=ALL_OF_LEAVER)) == 399
    await leader.append(Batch.of([account_deleted()], [1_000]), Changes(cursor))
    await edge.wait(1_000)
    # Before upkeep has rewritten anything, and after.
    assert await times_from(edge, wanted=ALL_OF_LEAVER) == [1_000]
    await engine.settle(leader)
    await edge.looked_again()
    assert await times_from(edge, wanted=ALL_OF_LEAVER) == [1_000]
    late = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    assert await times_from(late, wanted=ALL_OF_LEAVER) == [1_000]
    assert len(await times_from(late)) == len(await times_from(edge)) == 400
    for log in (late, edge, leader):
        await log.close()


async def test_an_edge_that_cannot_read_the_revision_serves_nothing_until_it_can(
    engine: PostgresEngine, server: Server, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 51))
    now = 100.0
    async with proxied(server.port) as proxy:
        address = engine.address.replace(f":{server.port}/", f":{proxy.port}/")
        edge = await PostgresLog.open(address, PostgresOptions(BY_HAND, poll_s=0.01, monotonic=lambda: now))
        proxy.to_client.clear()
        assert await edge.read(1, 51, EVERYTHING) is not None
        await proxy.held.wait()
        now = 102.0
        reading = asyncio.create_task(edge.read(1, 51, EVERYTHING))
        done, _ = await asyncio.wait([reading], timeout=0.1)
        assert not done
        proxy.to_client.set()
        assert await reading is not None
        await edge.close()
    await leader.close()


async def test_an_edge_knows_the_newest_position_of_the_log_before_it_has_read_it(
    engine: PostgresEngine, server: Server, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    leader.term.notifies = False
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    await append(leader, batch_of, cursor, range(1, 51))
    await edge.look()
    assert (edge.tip, edge.newest) == (0, 50)
    await edge.close()
    await leader.close()


async def test_an_edge_knows_below_which_position_nothing_more_comes_once_it_has_read_what_there_is(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader, now = await engine.open(limits=BY_HAND), 0.0
    leader.term.notifies = False
    never = PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S, monotonic=lambda: now)
    edge = await PostgresLog.open(engine.address, never)
    position = 0
    leader.term.next_position = lambda: position
    for position in 1_000, 1_501, 1_501:
        await leader.upkeep._transactions.beat()
        now += 10.0  # the heartbeat is looked at again
        await edge.looked_again()
        assert edge.watermark == position - position % 256
    await append(leader, batch_of, cursor, range(2_000, 2_350))
    leader.term.next_position = lambda: 3_072
    await leader.upkeep._transactions.beat()
    now += 10.0
    while edge.tip < 2_349:
        await edge.looked_again()
        assert edge.watermark == (3_072 if edge.tip == 2_349 else 0)
    await edge.close()
    await leader.close()


async def test_an_edge_takes_three_connections_at_most(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 2_001), 100)
    await leader.maintain()
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jetstream'"
    ((before,),) = await engine.execute(query)
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    await asyncio.gather(*(times_from(edge, start) for start in range(1, 2_000, 50)))
    ((after,),) = await engine.execute(query)
    assert after - before <= 3
    await edge.close()
    await leader.close()


async def test_edges_on_a_replica_poll(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    primary = own_server()
    leader = await PostgresEngine(primary.address).open(limits=BY_HAND)
    replica = primary.standby()
    try:
        edge = await PostgresLog.open(replica.address, PostgresOptions(BY_HAND, poll_s=0.02))
        seen: list[int] = []
        following = asyncio.create_task(follow(edge, 1_000, seen))
        for start in range(1, 1_000, 100):
            await append(leader, batch_of, cursor, range(start, start + 100))
            await leader.maintain()
            await leader.upkeep.rotate()
        await following
        assert seen == list(range(1, 1_001))
        await edge.close()
    finally:
        replica.kill()
        await leader.close()


async def test_a_server_that_is_killed_and_comes_back_costs_readers_nothing(
    own_server: Callable[..., Server], batch_of: BatchOf, cursor: Cursors
) -> None:
    server = own_server(fsync="on")
    leader = await PostgresEngine(server.address).open(limits=BY_HAND)
    edge = await PostgresLog.open(server.address, PostgresOptions(BY_HAND))
    seen: list[int] = []
    following = asyncio.create_task(follow(edge, 600, seen))
    await append(leader, batch_of, cursor, range(1, 301))
    await leader.maintain()
    await asyncio.to_thread(server.kill)
    restarting = asyncio.create_task(asyncio.to_thread(server.start))
    await restarting
    await append(leader, batch_of, cursor, range(301, 601))
    await following
    assert seen == list(range(1, 601))
    await edge.close()
    await leader.close()


async def test_a_reader_whose_query_was_cancelled_reads_on(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    """As a replica does when it must apply a change that a query is in the way of."""
    leader = await engine.open(limits=BY_HAND)
    await append(leader, batch_of, cursor, range(1, 351))
    await leader.maintain()
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    other = await asyncpg.connect(engine.address)
    locking = other.transaction()
    await locking.start()
    await other.execute("LOCK TABLE segment IN ACCESS EXCLUSIVE MODE")
    reading = asyncio.create_task(times_from(edge))
    waiting = "FROM pg_stat_activity WHERE wait_event = 'relation' AND query LIKE '%FROM segment%'"
    while not await engine.execute(f"SELECT pg_cancel_backend(pid) {waiting}"):
        await asyncio.sleep(0.01)
    while not await engine.execute(f"SELECT 1 {waiting}"):  # it asks again
        assert not reading.done()
        await asyncio.sleep(0.01)
    await locking.rollback()
    await other.close()
    assert await reading == list(range(1, 351))
    await edge.close()
    await leader.close()


async def test_an_outage_of_the_database_does_not_make_the_writer_gone(
    own_server: Callable[..., Server],
) -> None:
    """The edge is back first."""
    server, conditions, now = own_server(), Conditions(), 100.0
    leader = await PostgresEngine(server.address).open(limits=BY_HAND)
    options = PostgresOptions(BY_HAND, poll_s=0.01, conditions=conditions, monotonic=lambda: now)
    edge = await PostgresLog.open(server.address, options)
    while not edge.status(0).writer_alive:
        now += 1.0  # the heartbeat is looked at again
        await asyncio.sleep(0.05)
    await leader.abandon()
    await asyncio.to_thread(server.kill)
    while "log_unreadable" not in conditions.names:
        await asyncio.sleep(0.01)
    now += 60.0
    await asyncio.to_thread(server.start)
    while "log_unreadable" in conditions.names:
        await asyncio.sleep(0.01)
    assert edge.status(0).writer_alive
    assert "writer_gone" not in conditions.names
    now += 6.0
    while "writer_gone" not in conditions.names:
        await asyncio.sleep(0.01)
    assert not edge.status(0).writer_alive
    await edge.close()


class LatePool:
    """Readers whose answers come late."""

    def __init__(self, readers: ReaderPool) -> None:
        self._readers = readers
        self.has_read, self.may_return = asyncio.Event(), asyncio.Event()

    async def run(self, work: Callable[[DatabaseReader], Any], revision: int = 0) -> Any:
        result = await self._readers.run(work, revision)
        self.has_read.set()
        await self.may_return.wait()
        return result


async def test_a_segment_that_was_read_before_it_was_rewritten_is_kept_without_what_was_erased(
    engine: PostgresEngine, cursor: Cursors
) -> None:
    """The account's end is known when the segment is read, and is done with when it has been."""
    leader = await engine.open(limits=BY_HAND)
    said = Event(CREATE, LEAVER, b"app.bsky.feed.post", b"k", b"r", b"bafy", SECRET)
    for time in range(1, 101):
        await leader.append(Batch.of([said, make_event(time)], [2 * time, 2 * time + 1]), Changes(cursor))
    await leader.maintain()
    await leader.append(Batch.of([account_deleted()], [1_000]), Changes(cursor))
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND))
    late = LatePool(edge._pool)
    stored = StoredEvents(edge._log, cast(Any, late), edge._damages, BY_HAND)
    loading = asyncio.create_task(
        stored._load((await engine.execute("SELECT min(last_us) FROM segment"))[0][0])
    )
    await late.has_read.wait()
    await engine.settle(leader)
    await edge.looked_again()
    assert edge._log.tombstones == {}
    late.may_return.set()
    loaded = await loading
    assert loaded is not None
    assert LEAVER not in loaded.batch.dids
    await edge.close()
    await leader.close()


async def test_the_statement_of_a_look_is_planned_once_and_reads_by_an_index(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await engine.open(limits=BY_HAND)
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, poll_s=NEVER_S, fresh_s=NEVER_S))
    await append(leader, batch_of, cursor, range(1, 2_001), 2)
    await engine.execute("ANALYZE")
    connection = await asyncpg.connect(engine.address)
    await connection.execute(PLAN_ONCE)
    await connection.execute(f"PREPARE look(bigint) AS {POLL}")
    plan = "\n".join(line for (line,) in await connection.fetch("EXPLAIN EXECUTE look(1900)"))
    assert "Index Scan using tail_a_last_us" in plan
    assert "Seq Scan on tail" not in plan
    assert "$1" in plan  # it is of no certain tip
    await connection.close()
    await edge.close()
    await leader.close()
