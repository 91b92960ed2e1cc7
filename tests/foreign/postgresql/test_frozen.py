"""A database that is frozen answers nothing and keeps its connections: a process that stops does not wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.builders import frame
from tests.foreign.postgresql.engine import PostgresEngine
from tests.foreign.postgresql.server import Server
from tests.relay import Relay
from tests.serving import LOOPBACK, get, reconnecting_at_once, running, until
from tests.signed import Account, fields_of
from tests.unit.eventlog.reading import times_from

from jetstream.app import Service
from jetstream.errors import LogUnreachable
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.postgresql.connection import connect
from jetstream.eventlog.postgresql.leading import Candidate, lead
from jetstream.eventlog.postgresql.pool import Pool
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.intake import Intake
from jetstream.limits import Limits, LogLimits
from jetstream.model.batch import Batch
from jetstream.model.filter import EVERYTHING
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl
from jetstream.upstreams import Upstream

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, hot_tail_events=50, upkeep_interval_s=3600.0)
ENDS_S = 25.0  # a process that waits for the database waits for ever


@pytest.fixture
async def frozen(own_server: Callable[..., Server]) -> AsyncIterator[Server]:
    """A server that a test may freeze."""
    server = own_server()
    yield server
    server.thaw()


async def test_an_edge_stops(frozen: Server, batch_of: BatchOf, cursor: Cursors) -> None:
    leader = await PostgresEngine(frozen.address).open(limits=BY_HAND)
    for start in range(1, 1_001, 50):
        await leader.append(batch_of(range(start, start + 50)), Changes(cursor))
    await leader.maintain()
    edge = await PostgresLog.open(frozen.address, PostgresOptions(BY_HAND, fresh_s=3600.0))
    assert len(await times_from(edge)) == 1_000  # connections are there
    frozen.freeze()
    reading = asyncio.create_task(edge.read(1, 100, EVERYTHING))
    asking = asyncio.create_task(edge.gaps(0, 10))
    assert edge._pool._pool is not None
    while edge._pool._pool.get_idle_size():
        await asyncio.sleep(0.01)
    async with asyncio.timeout(ENDS_S):
        for task in (reading, asking):
            task.cancel()
        assert await asyncio.gather(reading, asking, return_exceptions=True)
        await edge.close()
    frozen.thaw()
    await leader.close()


async def test_a_leader_stops(frozen: Server, batch_of: BatchOf, cursor: Cursors) -> None:
    leader = await PostgresEngine(frozen.address).open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 51)), Changes(cursor))
    await leader.maintain()
    frozen.freeze()
    appending = asyncio.create_task(leader.append(batch_of(range(51, 101)), Changes(cursor)))
    maintaining = asyncio.create_task(leader.maintain())
    while not leader.term.writing.locked():
        await asyncio.sleep(0.01)
    async with asyncio.timeout(ENDS_S):
        for task in (appending, maintaining):
            task.cancel()
        await asyncio.gather(appending, maintaining, return_exceptions=True)
        await leader.close()
    frozen.thaw()
    # What it has sent may be stored, whole.
    again = await PostgresEngine(frozen.address).open(limits=BY_HAND)
    assert await times_from(again) in (list(range(1, 51)), list(range(1, 101)))
    await again.close()


async def test_a_leader_stops_in_the_middle_of_upkeep(
    frozen: Server, batch_of: BatchOf, cursor: Cursors
) -> None:
    engine = PostgresEngine(frozen.address)
    leader = await engine.open(limits=replace(BY_HAND, upkeep_interval_s=0.02))
    await leader.append(batch_of(range(1, 51)), Changes(cursor))
    other = await asyncpg.connect(frozen.address)
    locking = other.transaction()
    await locking.start()
    await other.execute("SELECT 1 FROM term FOR UPDATE")
    await engine.execute("INSERT INTO tombstone VALUES ('b', 2)")
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR SHARE'"
    while not await engine.execute(waiting):
        await asyncio.sleep(0.01)
    frozen.freeze()
    async with asyncio.timeout(ENDS_S):
        await leader.close()
    other.terminate()


async def test_a_leader_that_has_nothing_to_do_resigns_or_leaves_it(
    frozen: Server, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await PostgresEngine(frozen.address).open(limits=BY_HAND)
    await leader.append(batch_of(range(1, 51)), Changes(cursor))
    frozen.freeze()
    async with asyncio.timeout(ENDS_S):
        await leader.term.resign()
        await leader.term.log.close()


async def test_a_process_that_stands_by_stops(frozen: Server) -> None:
    engine = PostgresEngine(frozen.address)
    leader = await engine.open(limits=BY_HAND)
    log = await PostgresLog.open(frozen.address, PostgresOptions(BY_HAND, primary=True))
    leading = asyncio.create_task(lead(log, Candidate(look_s=0.01)))
    looks = "SELECT 1 FROM pg_stat_activity WHERE query LIKE $1 AND pid <> pg_backend_pid()"
    while not await engine.execute(looks, "%FROM term t, leader l%"):
        await asyncio.sleep(0.01)
    frozen.freeze()
    async with asyncio.timeout(ENDS_S):
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
        await log.close()
    frozen.thaw()
    await leader.close()


async def test_a_statement_without_an_answer_is_given_up_and_asked_again(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    """As after a failover, where the old server is frozen: its connections never end."""
    leader = await engine.open(limits=BY_HAND)
    for start in range(1, 1_001, 50):
        await leader.append(batch_of(range(start, start + 50)), Changes(cursor))
    await leader.maintain()
    edge = await PostgresLog.open(engine.address, PostgresOptions(BY_HAND, read_s=0.2))
    other = await asyncpg.connect(engine.address)
    locking = other.transaction()
    await locking.start()
    await other.execute("LOCK TABLE segment IN ACCESS EXCLUSIVE MODE")
    reading = asyncio.create_task(times_from(edge))
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'relation' AND query LIKE '%FROM segment%'"
    seen: set[int] = set()
    async with asyncio.timeout(ENDS_S):
        while len(seen) < 2:
            seen |= {pid for (pid,) in await engine.execute(waiting)}
            await asyncio.sleep(0.01)
    await locking.rollback()
    await other.close()
    assert await reading == list(range(1, 1_001))
    await edge.close()
    await leader.close()


async def test_a_connection_that_is_not_waited_for_is_not_used_again(frozen: Server) -> None:
    pool = Pool(frozen.address, 1, read_s=0.2)
    await pool.open()
    ((first,),) = await pool.fetch("SELECT pg_backend_pid()")
    with pytest.raises(LogUnreachable):
        await pool.fetch("SELECT pg_sleep(60)")
    ((second,),) = await pool.fetch("SELECT pg_backend_pid()")
    assert second != first
    await pool.close()


async def test_a_host_that_is_frozen_does_not_keep_the_next_one_from_being_used(
    frozen: Server, server: Server
) -> None:
    hosts = f"127.0.0.1:{frozen.port},127.0.0.1:{server.port}"
    frozen.freeze()
    connection = await connect(f"postgresql://postgres@{hosts}/postgres", writes=True, connect_s=0.3)
    assert await connection.fetchval("SHOW port") == str(server.port)
    await connection.close()
    with pytest.raises(TimeoutError):
        await connect(frozen.address, connect_s=0.3)


@asynccontextmanager
async def ingest_of_two(address: str, relay: Relay, directory: Path) -> AsyncIterator[tuple[Service, Intake]]:
    """Run an ingest that reads a relay and another one: each message is compared with a state."""
    async with Relay() as other:
        settings: dict[str, Any] = {
            "role": "ingest",
            "log": LogUrl(address=address),
            "upstream": (Upstream("a", relay.url), Upstream("b", other.url)),
            "data_dir": directory,
            "listen": LOOPBACK,
        }
        service = Service(Settings(**settings), reconnecting_at_once(Limits()))
        async with running(service):
            for each in relay, other:
                await each.wait_accepted(1)
            assert service._reading is not None
            yield service, service._reading


def publish_commits(relay: Relay) -> None:
    """Have a relay send eight commits of one account."""
    account = Account()
    relay.publish(
        [(seq, frame("#commit", {"seq": seq, **fields_of(account.create(str(seq)))})) for seq in range(1, 9)]
    )


async def test_a_leader_answers_requests_while_its_database_is_frozen(
    frozen: Server, relay: Relay, tmp_path: Path
) -> None:
    """It has several upstreams, so each message is compared with a state that is in the database."""
    async with ingest_of_two(frozen.address, relay, tmp_path) as (service, intake):
        done = asyncio.Event()

        async def ask() -> None:
            while not done.is_set():
                async with asyncio.timeout(3.0):
                    await get(service.port, "/health")

        frozen.freeze()
        try:
            asking = asyncio.create_task(ask())
            publish_commits(relay)
            await until(lambda: any(source._frames for source in intake.sources))
            done.set()
            await asking
        finally:
            frozen.thaw()
        await until(lambda: service.reader.statistics().events == 8)


async def test_a_leader_goes_on_after_an_outage(
    own_server: Callable[..., Server], relay: Relay, tmp_path: Path
) -> None:
    """What several upstreams bring meanwhile is compared with the log when the database is back."""
    server = own_server()
    async with ingest_of_two(server.address, relay, tmp_path) as (service, intake):
        server.kill()
        publish_commits(relay)
        await until(lambda: any(source._frames for source in intake.sources))
        await asyncio.sleep(1.0)  # for which the database stays away
        server.start()
        await until(lambda: service.reader.statistics().events == 8)
        assert service._reading is intake
