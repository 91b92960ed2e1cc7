"""Edges on a replica that is behind: they know what they do not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.builders import commit
from tests.foreign.postgresql.engine import PostgresEngine
from tests.foreign.postgresql.server import Server
from tests.relay import Relay
from tests.serving import LOOPBACK, reconnecting_at_once, running
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.clock import unix_us
from jetstream.eventlog import Changes, Cursors
from jetstream.eventlog.postgresql.log_end import AHEAD_US
from jetstream.eventlog.postgresql.store import PostgresLog, PostgresOptions
from jetstream.limits import Limits, LogLimits
from jetstream.model.batch import Batch
from jetstream.roles import Role
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl

BatchOf = Callable[[range], Batch]
BY_HAND = LogLimits(segment_events=100, upkeep_interval_s=3600.0)
HOUR_US = 3_600_000_000


class Replicated(NamedTuple):
    primary: Server
    replica: Server

    async def pause(self) -> None:
        """Let the replica stay behind from now on."""
        await PostgresEngine(self.replica.address).execute("SELECT pg_wal_replay_pause()")

    async def resume(self) -> None:
        await PostgresEngine(self.replica.address).execute("SELECT pg_wal_replay_resume()")

    @property
    def both(self) -> str:
        """The address of both, the replica first."""
        hosts = f"127.0.0.1:{self.replica.port},127.0.0.1:{self.primary.port}"
        return f"postgresql://postgres@{hosts}/postgres"


@pytest.fixture
async def servers(own_server: Callable[..., Server]) -> AsyncIterator[Replicated]:
    primary = own_server()
    await (await PostgresEngine(primary.address).open()).close()
    replica = primary.standby()
    yield Replicated(primary, replica)
    replica.kill()


async def test_an_edge_on_a_replica_asks_the_primary_how_far_the_log_is(
    servers: Replicated, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await PostgresEngine(servers.primary.address).open(limits=BY_HAND)
    edge = await PostgresLog.open(servers.both, PostgresOptions(BY_HAND, poll_s=0.02))
    await leader.append(batch_of(range(1, 51)), Changes(cursor))
    await edge.wait(50)
    await servers.pause()
    await leader.append(batch_of(range(51, 101)), Changes(cursor))
    await edge.look()
    assert (edge.tip, edge.newest, edge.cursor_max) == (50, 100, 101)
    await servers.resume()
    await edge.wait(100)
    await edge.close()
    await leader.close()


async def test_an_edge_that_cannot_ask_takes_no_cursor_of_the_last_minute_for_one_of_the_future(
    servers: Replicated, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await PostgresEngine(servers.primary.address).open(limits=BY_HAND)
    edge = await PostgresLog.open(servers.replica.address, PostgresOptions(BY_HAND, poll_s=0.02))
    now = unix_us()
    await leader.append(batch_of(range(now, now + 50)), Changes(cursor))
    await edge.wait(now + 49)
    await servers.pause()
    await leader.append(batch_of(range(now + 50, now + 100)), Changes(cursor))
    assert edge.cursor_max < now + 100
    await edge.look()
    assert (edge.tip, edge.newest) == (now + 49, now + 49)
    assert now + 100 < edge.cursor_max
    assert now < edge.cursor_max - AHEAD_US < now + HOUR_US
    await servers.resume()
    await edge.close()
    await leader.close()


async def test_a_replica_that_is_behind_does_not_say_that_nothing_more_comes(
    servers: Replicated, batch_of: BatchOf, cursor: Cursors
) -> None:
    leader = await PostgresEngine(servers.primary.address).open(limits=BY_HAND)
    now = 0.0
    options = PostgresOptions(BY_HAND, poll_s=0.02, monotonic=lambda: now)
    edge = await PostgresLog.open(servers.replica.address, options)

    async def told(next_position: int) -> int:
        """Return what the edge knows when the leader has told something."""
        nonlocal now
        leader.term.next_position = lambda: next_position
        await leader.upkeep._transactions.beat()
        now += 10.0  # the heartbeat is looked at again
        await edge.looked_again()
        return edge.watermark

    while await told(768) != 768:
        await asyncio.sleep(0.02)
    await servers.pause()
    await leader.append(batch_of(range(1_000, 1_050)), Changes(cursor))
    for _ in range(5):
        assert await told(2_048) <= 768
    await servers.resume()
    while await told(2_048) != 2_048:
        await asyncio.sleep(0.02)
    assert edge.tip == 1_049
    await edge.close()
    await leader.close()


async def test_a_subscriber_that_comes_from_an_edge_that_was_ahead_is_sent_nothing_twice(
    servers: Replicated, relay: Relay, tmp_path: Path
) -> None:
    limits = reconnecting_at_once(Limits())

    def service(role: Role, address: str) -> Service:
        settings: dict[str, Any] = {
            "role": role,
            "log": LogUrl(address=address),
            "upstream": relay.url,
            "data_dir": tmp_path / role,
            "listen": LOOPBACK,
            "drain": 0.01,
        }
        return Service(Settings(**settings), limits)

    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(running(service("all", servers.primary.address)))
        edge = await stack.enter_async_context(running(service("edge", servers.replica.address)))
        await relay.wait_accepted(1)
        async with subscribe(leader.port) as subscriber:
            relay.publish((seq, commit(seq)) for seq in range(1, 11))
            await subscriber.events(10)
            await edge.reader.wait(leader.reader.tip)
            await servers.pause()
            relay.publish((seq, commit(seq)) for seq in range(11, 21))
            seen = await subscriber.events(10)
        cursor = seen[-1]["time_us"] + 1
        assert edge.reader.tip < cursor - 1
        async with subscribe(edge.port, cursor=cursor) as subscriber:
            relay.publish((seq, commit(seq)) for seq in range(21, 31))
            await leader.reader.wait(cursor + 1)
            await servers.resume()
            seen = await subscriber.events(10)
        assert list(map(rkey_of, seen)) == [str(seq) for seq in range(21, 31)]


def rkey_of(event: dict[str, Any]) -> str:
    rkey: str = event["rkey"] if "rkey" in event else event["commit"]["rkey"]
    return rkey
