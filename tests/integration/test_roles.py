"""One server reads upstream and others serve subscribers, from one log: nothing lost, nothing twice.

All run in this process, each with a log, files and sockets of its own. tests/foreign has them as processes
that are killed.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.builders import identity
from tests.integration.test_refusals import UPGRADE
from tests.relay import Relay
from tests.serving import LOOPBACK, figures, get, health, reconnecting_at_once, running, until
from tests.subscriber import Event, subscribe
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from jetstream.app import Service
from jetstream.clock import unix_us
from jetstream.errors import LogLocked
from jetstream.eventlog.sqlite.edge import EdgeLog
from jetstream.eventlog.sqlite.schema import DATABASE
from jetstream.eventlog.watermark import COUNTS
from jetstream.limits import DeliveryLimits, Limits, LogLimits
from jetstream.roles import Role
from jetstream.settings import Settings
from jetstream.settings.values import LogUrl

LIMITS = reconnecting_at_once(Limits(log=LogLimits(segment_events=200, heartbeat_s=0.02, poll_s=0.02)))


SUBSCRIPTIONS = ("/subscribe", "/v1/subscribe", "/events", "/xrpc/network.bsky.jetstream.subscribeEvents")


class Run:
    """Runs servers on one log. Each stops with the test, or when it is told to."""

    def __init__(self, relay: Relay, directory: Path, stack: AsyncExitStack) -> None:
        self._relay = relay
        self._directory = directory
        self._stack = stack
        self._stacks: dict[Service, AsyncExitStack] = {}

    async def __call__(
        self, role: Role, *, limits: Limits = LIMITS, clock: Callable[[], int] = unix_us, **settings: Any
    ) -> Service:
        given: dict[str, Any] = {
            "role": role,
            "log": LogUrl(self._directory / "log"),
            "data_dir": self._directory / f"data{len(self._stacks)}",
            "listen": LOOPBACK,
            "upstream": self._relay.url,
            "drain": 0.01,
        }
        service = Service(Settings(**given | settings), limits, clock=clock)
        stack = await self._stack.enter_async_context(AsyncExitStack())
        await stack.enter_async_context(running(service))
        self._stacks[service] = stack
        return service

    async def ingest(self, **settings: Any) -> Service:
        """Run a server that reads the relay from its beginning."""
        return await self("ingest", upstream_cursor=0, **settings)

    async def stop(self, service: Service) -> None:
        await self._stacks[service].aclose()


@pytest.fixture
async def run(relay: Relay, tmp_path: Path) -> AsyncIterator[Run]:
    async with AsyncExitStack() as stack:
        yield Run(relay, tmp_path, stack)


def publish(relay: Relay, first: int, stop: int) -> None:
    relay.publish([(seq, identity(seq)) for seq in range(first, stop)])


def numbers(events: list[Event]) -> list[int]:
    return [event["identity"]["seq"] for event in events]


async def stored(ingest: Service, seq: int) -> None:
    await until(lambda: (each := next(iter(ingest.log.cursors.values()), None)) and each.seq >= seq)


async def test_edges_serve_what_an_ingest_reads(relay: Relay, run: Run) -> None:
    publish(relay, 1, 301)
    ingest = await run.ingest()
    await stored(ingest, 300)
    edges = [await run("edge") for _ in range(2)]
    received = []
    for edge in edges:
        async with subscribe(edge.port, cursor=1) as all_, subscribe(edge.port) as live:
            past = await all_.events(300)
            publish(relay, len(relay.history) + 1, len(relay.history) + 11)
            received.append((past, await live.events(10), await all_.events(len(relay.history) - 300)))
    assert received[0][0] == received[1][0]
    assert numbers(received[0][0]) == list(range(1, 301))
    assert numbers(received[0][1]) == list(range(301, 311))
    assert numbers(received[1][1]) == list(range(311, 321))
    assert numbers(received[1][2]) == list(range(301, 321))


async def test_an_edge_may_be_added_to_a_server_that_does_everything(relay: Relay, run: Run) -> None:
    everything = await run("all", upstream_cursor=0)
    edge = await run("edge")
    async with subscribe(everything.port) as here, subscribe(edge.port) as there:
        publish(relay, 1, 51)
        assert await here.events(50) == await there.events(50)


@pytest.mark.parametrize("path", SUBSCRIPTIONS)
async def test_a_cursor_that_cannot_be_judged_is_refused(
    path: str, relay: Relay, run: Run, tmp_path: Path
) -> None:
    """It may be of another edge, which has read more, or be in the future."""
    publish(relay, 1, 11)
    await stored(await run.ingest(), 10)
    edge = await run("edge")
    database, aside = tmp_path / "log" / DATABASE, tmp_path / "aside"
    database.rename(aside)
    await until(lambda: isinstance(edge.reader, EdgeLog) and edge.reader.status(0).unread_s > 0.5)
    url = f"http://127.0.0.1:{edge.port}{path}?cursor={edge.reader.tip + 1_000}"
    headers = {} if path == "/events" else UPGRADE
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        text = await response.text()
    aside.rename(database)
    assert (response.status, "Retry-After" in response.headers) == (503, True)
    assert "the log cannot be read now (" in text
    assert text.rstrip('\n"}').endswith("try again later")
    seen = await figures(edge.port)
    assert seen['jetstream_refused_total{reason="log_unreadable"}'] == 1


async def test_a_second_writer_is_refused(run: Run) -> None:
    await run.ingest()
    roles: tuple[Role, ...] = ("ingest", "all")
    for role in roles:
        with pytest.raises(LogLocked):
            await run(role)


async def test_an_ingest_serves_figures_and_no_subscribers(relay: Relay, run: Run) -> None:
    publish(relay, 1, 11)
    ingest = await run.ingest(ready_lag=None)
    await stored(ingest, 10)
    for path in SUBSCRIPTIONS:
        status, text = await get(ingest.port, path)
        assert (status, "connect to an edge" in text) == (404, True)
    for path in ("/cursors", "/explain", "/filters", "/subscribers.json", "/zstd-dictionary"):
        assert (await get(ingest.port, path))[0] == 404
    status = json.loads((await get(ingest.port, "/status.json"))[1])
    assert (status["role"], status["edge"], status["log"]["events"]) == ("ingest", None, 10)
    assert (await get(ingest.port, "/ready"))[0] == 200
    assert (await health(ingest.port))[1]["upstreams"][0]["state"] == "connected"
    assert 'role="ingest"' in (await get(ingest.port, "/metrics"))[1]
    text = (await get(ingest.port, "/"))[1]
    assert "/status.json" in text
    assert "/v1/subscribe" not in text
    assert "events/s" in (await get(ingest.port, "/", accept="text/html"))[1]


async def test_an_edge_says_where_it_stands(relay: Relay, run: Run) -> None:
    quick = replace(LIMITS, log=replace(LIMITS.log, writer_gone_s=0.5))
    ingest = await run.ingest()
    edge = await run("edge", limits=quick)
    publish(relay, 1, 11)
    await stored(ingest, 10)
    await until(lambda: edge.reader.tip == ingest.log.tip)
    await until(lambda: edge.status().not_ready == [])
    assert (await get(edge.port, "/ready"))[0] == 200
    status = json.loads((await get(edge.port, "/status.json"))[1])
    assert (status["role"], status["upstreams"], status["log"]["events"]) == ("edge", [], 10)
    assert status["edge"]["lag_s"] == 0.0
    assert "jetstream_edge_lag_seconds 0.0" in (await get(edge.port, "/metrics"))[1]
    ingest.stop()
    await until(lambda: "writer_gone" in edge.conditions.names)
    code, text = await get(edge.port, "/ready")
    assert (code, [each["check"] for each in json.loads(text)["not_ready"]]) == (503, ["writer_gone"])
    code, body = await health(edge.port)
    assert (code, body["status"]) == (200, "degraded")
    # What there is, is served.
    async with subscribe(edge.port, cursor=1) as subscriber:
        assert numbers(await subscriber.events(10)) == list(range(1, 11))


async def test_a_future_cursor_starts_live_at_every_endpoint(relay: Relay, run: Run) -> None:
    publish(relay, 1, 11)
    ingest = await run.ingest()
    edge = await run("edge")
    await stored(ingest, 10)
    handshake = {
        "Connection": "upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for path in SUBSCRIPTIONS:
        url = f"http://127.0.0.1:{edge.port}{path}?cursor={ingest.log.tip + 10**9}"
        headers = {} if path == "/events" else handshake
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
            assert response.status == (101 if headers else 200)
            # The edge has looked at the log for this.
            assert response.headers["Jetstream-Cursor"] == str(ingest.log.tip + 1)
            assert edge.reader.tip == ingest.log.tip


@pytest.mark.parametrize("ahead_us", [30_000_000, 0, -30_000_000])
async def test_a_stream_ends_by_the_clock_of_the_writer(ahead_us: int, relay: Relay, run: Run) -> None:
    now_us = 1_700_000_000_000_000
    end = now_us + 10_240_000
    limits = replace(LIMITS, delivery=DeliveryLimits(watch_interval_s=0.01))
    ingest = await run.ingest(clock=lambda: now_us)
    edge = await run("edge", limits=limits, clock=lambda: now_us + ahead_us)
    async with subscribe(edge.port, cursor=1, until=end) as subscriber:
        publish(relay, 1, 2)
        assert numbers(await subscriber.events(1)) == [1]
        now_us += 10_240_000 - COUNTS
        await until(lambda: edge.reader.watermark == now_us)
        await edge.delivery.check(time.monotonic(), ping=False)
        publish(relay, 2, 3)
        assert numbers(await subscriber.events(1)) == [2]
        tip = ingest.log.tip
        now_us += COUNTS
        assert await subscriber.ended_at() == (
            1000,
            "done: until is reached, to go on connect with this cursor",
            tip + 1,
        )


# Stopping


async def test_an_edge_closes_its_connections_one_after_another(relay: Relay, run: Run) -> None:
    await run.ingest()
    edge = await run("edge", drain=0.5)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(subscribe(edge.port)) for _ in range(10)]
        publish(relay, 1, 6)
        for client in clients:
            await client.events(5)
        edge.stop()
        ends = [asyncio.create_task(client.ended_at()) for client in clients]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        assert not all(end.done() for end in ends)
        assert (await get(edge.port, "/ready"))[0] == 503
        # One that comes meanwhile is served until its turn.
        async with subscribe(edge.port, cursor=1) as late:
            assert numbers(await late.events(5)) == [1, 2, 3, 4, 5]
            closes = [await end for end in ends]
            closes.append(await late.ended_at())
    assert {(code, text) for code, text, _ in closes} == {
        (1001, "the server is shutting down: connect again")
    }
    assert {cursor for _, _, cursor in closes} == {edge.reader.tip + 1}


async def test_an_edge_that_waits_for_its_log_can_be_stopped(tmp_path: Path) -> None:
    settings = Settings(role="edge", data_dir=tmp_path, listen=LOOPBACK)
    service = Service(settings, LIMITS)
    task = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    service.stop()
    async with asyncio.timeout(20):
        await task
    assert not service.started.is_set()


# The law


class Roamer:
    """A client that changes edges with nothing but its cursor."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.cursor = 1
        self.events: list[Event] = []

    async def roam(self, ports: Callable[[], list[int]], last: int) -> None:
        """Read some events at each edge, until the last one has come."""
        while not self.events or seq_of(self.events[-1]) < last:
            with suppress(ConnectionClosed, OSError, EOFError, InvalidHandshake):
                await self._stay(self._dice.choice(ports()), self._dice.randrange(1, 200), last)

    async def _stay(self, port: int, count: int, last: int) -> None:
        async with subscribe(port, cursor=self.cursor) as subscriber:
            try:
                for _ in range(count):
                    event = await subscriber.event()
                    self.events.append(event)
                    self.cursor = event["time_us"] + 1
                    if seq_of(event) == last:
                        return
            finally:
                subscriber.connection.transport.abort()


def seq_of(event: Event) -> int:
    return int(event["identity"]["seq"])


async def test_clients_that_change_edges_see_everything_once(relay: Relay, run: Run) -> None:
    """Each edge is started again meanwhile, and the ingest."""
    frames = 1_200
    ingest = await run.ingest()
    edges = [await run("edge") for _ in range(2)]
    roamers = [Roamer(seed) for seed in range(4)]

    async def disturb() -> None:
        nonlocal ingest
        for first in range(1, frames, 50):
            publish(relay, first, first + 50)
            await asyncio.sleep(0.005)
            if first in (301, 901):
                place = first // 900
                await run.stop(edges[place])
                edges[place] = await run("edge")
            if first == 601:
                await run.stop(ingest)
                ingest = await run("ingest")

    def ports() -> list[int]:
        return [edge.port for edge in edges]

    async with asyncio.timeout(60):
        await asyncio.gather(disturb(), *(roamer.roam(ports, frames) for roamer in roamers))
    for roamer in roamers:
        times = [event["time_us"] for event in roamer.events]
        assert times == sorted(set(times))
        assert list(map(seq_of, roamer.events)) == list(range(1, frames + 1))
