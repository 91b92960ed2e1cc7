"""Mirrors with their log in PostgreSQL: they stand by and lead, and keep the positions of their upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.foreign.postgresql.engine import PostgresEngine
from tests.foreign.postgresql.test_serving import LIMITS, leading
from tests.integration.test_mirrors import V2, Stalled, filled, of, texts
from tests.relay import Relay
from tests.serving import LOOPBACK, running, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl


class Run:
    """Runs a server with a SQLite log, and servers over one log in PostgreSQL."""

    def __init__(self, engine: PostgresEngine, directory: Path, stack: AsyncExitStack) -> None:
        self._log = LogUrl(address=engine.address)
        self._directory = directory
        self._stack = stack
        self._started = 0

    async def __call__(self, upstream: Any, stack: AsyncExitStack | None = None, **settings: Any) -> Service:
        self._started += 1
        given: dict[str, Any] = {
            "upstream": upstream,
            "data_dir": self._directory / str(self._started),
            "listen": LOOPBACK,
            "drain": 0.01,
            "takeover_after": 1.0,
        }
        service = Service(Settings(**given | settings), LIMITS)
        return await (stack or self._stack).enter_async_context(running(service))

    async def mirror(self, above: Service, stack: AsyncExitStack | None = None, **settings: Any) -> Service:
        return await self(of(above), stack, log=self._log, **settings)


@pytest.fixture
async def run(engine: PostgresEngine, tmp_path: Path) -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        yield Run(engine, tmp_path, stack)


async def test_one_leads_one_stands_by_and_all_have_the_same_messages(relay: Relay, run: Run) -> None:
    above = await run(relay.url, upstream_cursor=0)
    first = AsyncExitStack()
    leader = await run.mirror(above, first)
    await leading(leader)
    standby = await run.mirror(above, role="ingest")
    edge = await run.mirror(above, role="edge")
    await filled(relay, above, 60)
    await until(lambda: edge.reader.tip == leader.reader.tip == above.log.tip)
    assert await texts(edge, V2, 60) == await texts(leader, V2, 60) == await texts(above, V2, 60)
    await first.aclose()  # it resigns
    await leading(standby)
    await filled(relay, above, 60)
    await until(lambda: edge.reader.tip == above.log.tip)
    assert await texts(edge, V2, 120) == await texts(above, V2, 120)


async def test_a_promotion_does_not_move_the_positions_of_a_mirror(
    relay: Relay, run: Run, engine: PostgresEngine
) -> None:
    """What is reserved is above what comes from upstream: a server that stamps would go on there."""
    above = await run(relay.url, upstream_cursor=0)
    first = AsyncExitStack()
    await leading(leader := await run.mirror(above, first))
    await filled(relay, above, 20)
    await until(lambda: leader.reader.tip == above.log.tip)
    await first.aclose()
    await engine.execute("UPDATE leader SET timeline = 'another'")
    await leading(leader := await run.mirror(above))
    await filled(relay, above, 20)
    await until(lambda: leader.reader.tip == above.log.tip)
    assert await texts(leader, V2, 40) == await texts(above, V2, 40)


async def test_an_edge_asks_the_upstream_where_a_client_is(relay: Relay, run: Run) -> None:
    above = await run(relay.url, upstream_cursor=0)
    await leading(leader := await run.mirror(above, role="ingest"))
    edge = await run.mirror(above, role="edge")
    await filled(relay, above, 10)
    await until(lambda: edge.reader.tip == above.log.tip)
    await (stall := Stalled(leader)).stop()
    await filled(relay, above, 10)
    cursor = above.log.tip
    async with subscribe(edge.port, V2, cursor=cursor) as subscriber:
        stall.go_on()
        assert str(await subscriber.connection.recv()) == (await texts(above, V2, 1, cursor))[0]
