"""Servers over a log in PostgreSQL: they lead and stand by, and their subscribers miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.builders import commit
from tests.foreign.postgresql.engine import PostgresEngine
from tests.relay import Relay
from tests.serving import LOOPBACK, reconnecting_at_once, running
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl

Serve = Callable[..., Any]


@pytest.fixture
async def serve(engine: PostgresEngine, relay: Relay, tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers over one log. Each is stopped with its stack, or at the end."""
    async with AsyncExitStack() as all_servers:
        numbers = iter(range(99))

        async def serve(role: str, stack: AsyncExitStack = all_servers) -> Service:
            settings = Settings(
                role=role,  # type: ignore[arg-type]
                log=LogUrl(address=engine.address),
                upstream=(relay.url,),
                data_dir=tmp_path / str(next(numbers)),
                listen=LOOPBACK,
                zstd_dictionary="none",
                takeover_after=1.0,
                drain=None,
            )
            return await stack.enter_async_context(running(Service(settings)))

        yield serve


async def leading(service: Service) -> None:
    while service._reading is None:
        await asyncio.sleep(0.01)


async def test_one_leads_one_stands_by_and_an_edge_serves(serve: Serve, relay: Relay) -> None:
    first = AsyncExitStack()
    leader = await serve("all", first)
    await leading(leader)
    standby = await serve("ingest")
    edge = await serve("edge")
    async with subscribe(edge) as subscriber, subscribe(leader) as other:
        for seq in range(1, 20):
            await relay.send(commit(seq))
        seen = [await subscriber.next() for _ in range(19)]
        assert [await other.next() for _ in range(19)] == seen
        assert standby._reading is None
        await first.aclose()  # it resigns
        await leading(standby)
        for seq in range(20, 40):
            await relay.send(commit(seq))
        seen += [await subscriber.next() for _ in range(20)]
    assert len({event["time_us"] for event in seen}) == 39
    assert [event["time_us"] for event in seen] == sorted(event["time_us"] for event in seen)
