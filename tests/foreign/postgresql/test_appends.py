"""Whatever happens to a connection, an append is stored once or not at all, and its caller knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from tests.foreign.postgresql.engine import PostgresEngine
from tests.foreign.postgresql.proxy import Proxy, proxied
from tests.foreign.postgresql.server import Server
from tests.unit.eventlog.reading import times_from

from jetstream.errors import Fenced, LogUnwritable
from jetstream.eventlog import Changes, Cursors, SourceCursor
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, upkeep_interval_s=3600.0)


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with proxied(server.port) as proxy:
        yield proxy


@pytest.fixture
def behind(engine: PostgresEngine, server: Server, proxy: Proxy) -> PostgresEngine:
    """The same log, by way of the proxy."""
    return PostgresEngine(engine.address.replace(f":{server.port}/", f":{proxy.port}/"))


async def test_an_append_whose_answer_is_lost_is_stored_once(
    engine: PostgresEngine, behind: PostgresEngine, proxy: Proxy, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await behind.open(limits=BY_HAND)
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    proxy.to_client.clear()
    appending = asyncio.create_task(log.append(batch_of(range(5, 10)), Changes({"a": SourceCursor(2)})))
    await proxy.held.wait()
    while await engine.execute("SELECT 1 FROM tail WHERE last_us = 9") == []:
        await asyncio.sleep(0.01)
    proxy.cut()
    proxy.to_client.set()
    await appending
    await log.append(batch_of(range(10, 12)), Changes(cursor))
    assert await times_from(log) == list(range(1, 12))
    assert await engine.execute("SELECT last_us FROM tail WHERE events > 0 ORDER BY id") == [
        (4,),
        (9,),
        (11,),
    ]
    await log.close()


async def test_an_append_that_never_came_is_sent_again(
    engine: PostgresEngine, behind: PostgresEngine, proxy: Proxy, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await behind.open(limits=BY_HAND)
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    proxy.to_server.clear()
    appending = asyncio.create_task(log.append(batch_of(range(5, 10)), Changes(cursor)))
    await proxy.held.wait()
    proxy.cut()
    proxy.to_server.set()
    await appending
    assert await times_from(log) == list(range(1, 10))
    assert await engine.execute("SELECT count(*) FROM tail WHERE events > 0") == [(2,)]
    await log.close()


async def test_an_append_that_the_server_still_works_on_is_not_stored_twice(
    engine: PostgresEngine, behind: PostgresEngine, proxy: Proxy, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await behind.open(limits=BY_HAND)
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    other = await asyncpg.connect(engine.address)
    locking = other.transaction()
    await locking.start()
    await other.execute("SELECT 1 FROM term FOR UPDATE")
    appending = asyncio.create_task(log.append(batch_of(range(5, 10)), Changes(cursor)))
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO tail%'"
    )
    while await engine.execute(waiting) != [(1,)]:
        await asyncio.sleep(0.01)
    proxy.cut()
    while await engine.execute(waiting) != [(2,)]:  # the second attempt waits behind the first
        await asyncio.sleep(0.01)
    await locking.rollback()
    await other.close()
    await appending
    assert await times_from(log) == list(range(1, 10))
    assert await engine.execute("SELECT count(*) FROM tail WHERE events > 0") == [(2,)]
    await log.close()


async def test_a_database_that_is_gone_stores_nothing_until_it_is_back(
    behind: PostgresEngine, proxy: Proxy, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await behind.open(limits=BY_HAND)
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    await log.term._appender.disconnect()
    port, proxy._server_port = proxy._server_port, 1
    proxy.cut()
    with pytest.raises(LogUnwritable, match=r"127\.0\.0\.1"):
        await log.append(batch_of(range(5, 10)), Changes(cursor))
    proxy._server_port = port
    await log.append(batch_of(range(5, 10)), Changes(cursor))
    assert (log.tip, await times_from(log)) == (9, list(range(1, 10)))
    await log.close()


async def test_what_the_database_refuses_is_not_stored(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=BY_HAND)
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    await engine.execute("ALTER TABLE tail_a ADD CONSTRAINT full_disk CHECK (last_us < 5)")
    with pytest.raises(LogUnwritable, match="full_disk"):
        await log.append(batch_of(range(5, 10)), Changes({"b": SourceCursor(1)}))
    assert (log.tip, log.cursors) == (4, cursor)
    await engine.execute("ALTER TABLE tail_a DROP CONSTRAINT full_disk")
    await log.append(batch_of(range(5, 10)), Changes(cursor))
    assert await times_from(log) == list(range(1, 10))
    await log.close()


async def test_a_cancelled_append_is_whole(
    engine: PostgresEngine, behind: PostgresEngine, proxy: Proxy, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await behind.open(limits=BY_HAND)
    proxy.to_client.clear()
    appending = asyncio.create_task(log.append(batch_of(range(1, 5)), Changes(cursor)))
    await proxy.held.wait()
    appending.cancel()
    await asyncio.sleep(0)
    assert not appending.done()
    proxy.to_client.set()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert log.tip == 4
    await log.append(batch_of(range(5, 6)), Changes(cursor))
    assert await times_from(log) == [1, 2, 3, 4, 5]
    await log.close()


async def test_a_process_that_was_replaced_stores_nothing_more(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    old = await engine.open(limits=BY_HAND)
    await old.append(batch_of(range(1, 5)), Changes(cursor))
    new = await engine.open(limits=BY_HAND)
    with pytest.raises(Fenced):
        await old.append(batch_of(range(5, 10)), Changes({"a": SourceCursor(9)}))
    assert old.term.ended.is_set()
    with pytest.raises(Fenced):
        await old.maintain()
    await new.append(batch_of(range(7, 9)), Changes(cursor))
    assert await times_from(new) == [1, 2, 3, 4, 7, 8]
    assert new.cursors == cursor
    await old.close()
    await new.append(batch_of(range(9, 10)), Changes(cursor))
    await new.close()


async def test_a_log_that_has_lost_what_was_stored_is_not_continued(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    """As after the promotion of a replica that was behind, with the same process leading."""
    log = await engine.open(limits=BY_HAND)
    await log.append(batch_of(range(1, 5)), Changes(cursor))
    await log.append(batch_of(range(5, 10)), Changes(cursor))
    await engine.execute("DELETE FROM tail_a WHERE last_us = 9")
    with pytest.raises(Fenced, match="lost what was stored"):
        await log.append(batch_of(range(10, 12)), Changes(cursor))
    await log.close()
