"""Servers over a log in PostgreSQL: they lead and stand by, and their subscribers miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.builders import commit, frame
from tests.foreign.postgresql.engine import PostgresEngine
from tests.relay import Relay
from tests.serving import LOOPBACK, get, reconnecting_at_once, running
from tests.signed import Account, fields_of
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.limits import Limits, LogLimits
from jetstream.roles import Role
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl
from jetstream.upstreams import Upstream

Serve = Callable[..., Any]
LIMITS = reconnecting_at_once(Limits(log=LogLimits(segment_events=200, upkeep_interval_s=0.1)))


@pytest.fixture
async def serve(engine: PostgresEngine, relay: Relay, tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers over one log. Each is stopped with its stack, or at the end."""
    async with AsyncExitStack() as all_servers:
        numbers = iter(range(99))

        async def serve(role: Role, stack: AsyncExitStack = all_servers, **given: Any) -> Service:
            settings: dict[str, Any] = {
                "role": role,
                "log": LogUrl(address=engine.address),
                "upstream": relay.url,
                "data_dir": tmp_path / str(next(numbers)),
                "listen": LOOPBACK,
                "takeover_after": 1.0,
                "drain": 0.01,
            }
            service = Service(Settings(**settings | given), LIMITS)
            return await stack.enter_async_context(running(service))

        yield serve


async def leading(service: Service) -> None:
    while service._reading is None:
        await asyncio.sleep(0.01)


async def test_one_leads_one_stands_by_and_an_edge_serves(serve: Serve, relay: Relay) -> None:
    first = AsyncExitStack()
    leader = await serve("all", first)
    await leading(leader)
    await relay.wait_accepted(1)
    standby = await serve("ingest")
    edge = await serve("edge")
    async with subscribe(edge.port) as subscriber:
        async with subscribe(leader.port) as other:
            relay.publish((seq, commit(seq)) for seq in range(1, 20))
            seen = await subscriber.events(19)
            assert await other.events(19) == seen
        assert standby._reading is None
        for server in (standby, edge):
            while (await get(server.port, "/ready"))[0] != 200:
                await asyncio.sleep(0.05)
        await first.aclose()  # it resigns
        await leading(standby)
        relay.publish((seq, commit(seq)) for seq in range(20, 40))
        seen += await subscriber.events(20)
    times = [event["time_us"] for event in seen]
    assert times == sorted(set(times))
    assert [event["rkey"] if "rkey" in event else event["commit"]["rkey"] for event in seen] == [
        str(seq) for seq in range(1, 40)
    ]


async def test_a_server_that_is_fenced_stands_by_and_leads_again(
    serve: Serve, relay: Relay, engine: PostgresEngine
) -> None:
    server = await serve("all")
    await leading(server)
    await relay.wait_accepted(1)
    async with subscribe(server.port) as subscriber:
        relay.publish((seq, commit(seq)) for seq in range(1, 10))
        seen = await subscriber.events(9)
        await engine.execute("UPDATE term SET epoch = epoch + 1, holder = 'somebody else'")
        relay.publish((seq, commit(seq)) for seq in range(10, 20))
        seen += await subscriber.events(10)
    times = [event["time_us"] for event in seen]
    assert times == sorted(set(times))


async def test_a_server_of_another_upstream_does_not_lead_and_says_so(
    serve: Serve, relay: Relay, engine: PostgresEngine
) -> None:
    first = AsyncExitStack()
    leader = await serve("ingest", first)
    await leading(leader)
    await relay.wait_accepted(1)
    relay.publish([(1, commit(1))])
    while not leader._terms.intake._log.cursors:
        await asyncio.sleep(0.01)
    await first.aclose()
    other = await serve("ingest", upstream="ws://127.0.0.1:1")
    while "not_leading" not in other.conditions.reasons:
        await asyncio.sleep(0.01)
    assert "the log's upstreams are" in other.conditions.reasons["not_leading"]
    assert other._reading is None


async def test_the_next_leader_knows_what_was_judged(serve: Serve, relay: Relay) -> None:
    """Two relays have the same messages; one of them is behind when another process takes over."""
    account = Account()
    frames = [
        (seq, frame("#commit", {"seq": seq, **fields_of(account.create(str(seq)))})) for seq in range(1, 81)
    ]
    async with Relay() as behind:
        upstream = (Upstream("a", relay.url), Upstream("b", behind.url))
        first = AsyncExitStack()
        leader = await serve("ingest", first, upstream=upstream)
        edge = await serve("edge")
        await leading(leader)
        for each in (relay, behind):
            await each.wait_accepted(1)
        async with subscribe(edge.port, "/v1/subscribe") as subscriber:
            relay.publish(frames[:40])
            behind.publish(frames[:20])
            seen = await subscriber.events(40)
            await first.aclose()
            await leading(await serve("ingest", upstream=upstream))
            behind.publish(frames[20:])
            relay.publish(frames[40:])
            seen += await subscriber.events(40)
    assert [event["commit"]["rkey"] for event in seen] == [str(seq) for seq in range(1, 81)]
    times = [event["time_us"] for event in seen]
    assert times == sorted(set(times))
