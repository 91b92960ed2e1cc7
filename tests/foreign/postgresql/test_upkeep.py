"""What the process that leads does in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import asyncpg
import pytest
from tests.foreign.postgresql.engine import Leading, PostgresEngine
from tests.foreign.postgresql.proxy import Proxy, proxied
from tests.foreign.postgresql.server import Server
from tests.logs.contract import LEAVER, SECRET, account_deleted
from tests.unit.eventlog.events import make_event
from tests.unit.eventlog.reading import times_from

from jetstream.errors import LogUnreachable
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.postgresql.connection import connect
from jetstream.eventlog.postgresql.folding import Folding
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, upkeep_interval_s=3600.0)
PLENTY = 1 << 40
SUM = "SELECT coalesce(sum(bytes), 0)::bigint FROM segment"


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    async with proxied(server.port) as proxy:
        yield proxy


async def append(log: Leading, batch_of: BatchOf, cursor: Cursors, times: range) -> None:
    for start in range(times.start, times.stop, 50):
        await log.append(batch_of(range(start, start + 50)), Changes(cursor))


async def test_the_size_of_the_segments_is_counted_once_and_kept(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=BY_HAND, retention_bytes=PLENTY)

    async def is_known() -> bool:
        return await engine.execute(SUM) == [(log.term.segment_bytes,)]

    await append(log, batch_of, cursor, range(1, 501))
    await log.maintain()
    assert await is_known()
    said = Event(CREATE, LEAVER, b"app.bsky.feed.post", b"k", b"r", b"bafy", SECRET)
    for time in range(501, 700):
        await log.append(Batch.of([said, make_event(time)], [2 * time, 2 * time + 1]), Changes(cursor))
    await log.maintain()
    assert await is_known()
    await log.append(Batch.of([account_deleted()], [2_000]), Changes(cursor))
    await engine.settle(log)
    assert await is_known()
    await engine.trim(log, 250)
    assert await is_known()
    # It is not read again: somebody else's change of it goes unnoticed.
    await engine.execute("UPDATE segment SET bytes = 2000000000")
    await log.maintain()
    assert log.floor == 201
    await log.close()


async def test_the_oldest_segments_go_until_the_others_fit(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await engine.open(limits=BY_HAND)
    await append(log, batch_of, cursor, range(1, 2_001))
    await log.maintain()
    sizes = [size for (size,) in await engine.execute("SELECT bytes FROM segment ORDER BY last_us")]
    await log.close()
    log = await engine.open(limits=BY_HAND, retention_bytes=sum(sizes[-3:]))
    await log.maintain()
    assert await engine.execute("SELECT bytes FROM segment ORDER BY last_us") == [(n,) for n in sizes[-3:]]
    assert await times_from(log, log.floor) == list(range(1_701, 2_001))
    await log.close()


async def test_a_database_that_is_away_turns_no_notifications_off(
    engine: PostgresEngine, server: Server, proxy: Proxy
) -> None:
    behind = PostgresEngine(engine.address.replace(f":{server.port}/", f":{proxy.port}/"))
    log = await behind.open(limits=BY_HAND)
    port, proxy._server_port = proxy._server_port, 1
    proxy.cut()
    with pytest.raises(LogUnreachable):
        await log.upkeep._check_queue()
    assert log.term.notifies
    proxy._server_port = port
    await log.upkeep._check_queue()  # it is asked again at once
    assert log.term.notifies
    await log.close()


async def test_a_sample_of_states_goes_on_at_the_start_of_the_table(engine: PostgresEngine) -> None:
    log = await engine.open(limits=BY_HAND)
    dids = [bytes([number]) * 15 for number in range(1, 21)]
    # The last ones are the newest.
    for number, did in enumerate(dids):
        await engine.execute("INSERT INTO repo VALUES ($1, $2)", did, number.to_bytes(24, "big"))
    await engine.execute("UPDATE state SET repos = 20")
    folding = Folding(log.term, log.upkeep._transactions, 0, sampled=10)
    assert await folding.forget_some(dids[-2]) == 5
    left = [did for (did,) in await engine.execute("SELECT did FROM repo ORDER BY did")]
    assert left == dids[5:]
    assert await engine.execute("SELECT repos FROM state") == [(15,)]
    await log.close()


async def test_a_writer_that_leaves_a_transaction_open_holds_nobody_up(engine: PostgresEngine) -> None:
    """The server ends a session that was frozen inside a transaction, and with it its locks."""
    await (await engine.open()).close()
    frozen = await connect(engine.address, writes=True, idle_in_transaction_session_timeout="200")
    transaction = frozen.transaction()
    await transaction.start()
    await frozen.fetch("SELECT 1 FROM term FOR SHARE")
    async with asyncio.timeout(20):
        log = await engine.open()
    await log.close()
    frozen.terminate()


async def test_the_server_notices_when_a_writer_is_gone(engine: PostgresEngine) -> None:
    await (await engine.open()).close()
    for writes in (True, False):
        connection = await connect(engine.address, writes=writes)
        values = [
            await connection.fetchval(f"SHOW {name}")
            for name in (
                "idle_in_transaction_session_timeout",
                "tcp_keepalives_idle",
                "tcp_keepalives_interval",
                "tcp_keepalives_count",
            )
        ]
        assert (values == ["5s", "5", "2", "3"]) == writes
        await connection.close()


async def test_every_table_stays_small_while_a_snapshot_is_held(
    engine: PostgresEngine, batch_of: BatchOf, cursor: Cursors
) -> None:
    """Of an hour: 7,200 heartbeats, and the states of the repositories that have changed."""
    limits = replace(BY_HAND, repo_changes=10)
    log = await engine.open(limits=limits)
    other = await asyncpg.connect(engine.address)
    holding = other.transaction(isolation="repeatable_read")
    await holding.start()
    await other.fetch("SELECT * FROM repo")  # takes the snapshot

    async def sizes() -> dict[str, int]:
        names = ("leader", "state", "tail_a", "tail_b", "repo", "term", "cursor")
        return {
            name: (await engine.execute(f"SELECT pg_total_relation_size('{name}')"))[0][0] for name in names
        }

    async def work(start: int) -> None:
        for time in range(start, start + 300):
            did = (time % 50 + 1).to_bytes(15, "big")
            await log.append(
                batch_of(range(time, time + 1)), Changes(cursor, {did: time.to_bytes(24, "big")})
            )
            await log.upkeep._transactions.beat()
        await log.maintain()
        await log.upkeep.rotate()

    await work(1)
    before = await sizes()
    for turn in range(1, 5):
        await work(300 * turn + 1)
    grown = {name: size - before[name] for name, size in (await sizes()).items()}
    beats, folded = 1_200, 4 * 50
    assert grown["leader"] <= 110 * beats  # 0.8 MB in an hour
    assert grown["repo"] <= 2 * 110 * folded + 4 * 8_192
    assert grown["state"] <= 64 * 8_192
    assert all(grown[name] <= 8 * 8_192 for name in ("tail_a", "tail_b", "term", "cursor")), grown
    await holding.rollback()
    await other.close()
    await log.close()
