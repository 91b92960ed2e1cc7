"""Limits per address, over real sockets: of 127.0.0.1, and of the addresses that a proxy names."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from structlog.testing import capture_logs
from tests.builders import identity
from tests.relay import Relay, numbered
from tests.serving import Start, connected, get, published, until
from tests.subscriber import subscribe
from websockets.exceptions import InvalidStatus

from jetstream.app import Service
from jetstream.limits import Limits, WebLimits
from jetstream.settings import parse_networks

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
NONE: dict[str, Any] = {
    "address_connections": None,
    "address_connection_rate": None,
    "address_replays": None,
    "address_replay_rate": None,
    "address_replay_bytes": None,
    "address_exempt": (),
}
LOOPBACK = parse_networks("127.0.0.1")
CLIENT = {"X-Forwarded-For": "203.0.113.9"}


def refusals(service: Service, reason: str) -> float:
    value: float = service.metrics.refusals[reason]._value.get()
    return value


async def refused(service: Service, path: str = "/subscribe", **arguments: Any) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as caught:
        async with subscribe(service.port, path, **arguments):
            pass
    return caught.value


async def test_a_connection_too_many_is_told_when_to_try_again(start: Start) -> None:
    service = await start(**NONE | {"address_connections": 1})
    with capture_logs() as logs:
        async with subscribe(service.port):
            for path in ("/health", "/subscribe", "/events", "/nothing"):
                status, text = await get(service.port, path)
                assert (status, text) == (429, "1 connections of one address are open: try again later\n")
            response = (await refused(service)).response
            assert (response.status_code, response.headers["Retry-After"]) == (429, "10")
            response = (await refused(service, V2)).response
            assert (response.status_code, response.headers["Retry-After"]) == (503, "10")
            assert json.loads(response.body)["error"] == "ServiceUnavailable"
            assert refusals(service, "address_connections") == 6
        await until(lambda: not len(service.subscribe))
        async with subscribe(service.port):
            pass
    lines = Counter(line["event"] for line in logs if "refused" in line["event"])
    assert lines == {"connection: refused, address_connections": 1}


async def test_an_address_connects_no_faster_than_its_rate(start: Start) -> None:
    service = await start(**NONE | {"address_connection_rate": 0.001})
    assert (await get(service.port, "/health"))[0] == 200
    response = (await refused(service)).response
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1000")


async def test_a_flood_of_one_address_is_closed_without_an_answer(start: Start) -> None:
    limits = Limits(web=WebLimits(address_untold_max=2))
    service = await start(limits=limits, **NONE | {"address_connections": 0})
    waiting = [await connected(service.port) for _ in range(4)]
    loop = asyncio.get_running_loop()
    for sock in waiting[2:]:
        assert await loop.sock_recv(sock, 1) == b""
    await loop.sock_sendall(waiting[0], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await loop.sock_recv(waiting[0], 100)).startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    for sock in waiting:
        sock.close()


async def test_this_machine_has_no_limits_by_default(start: Start) -> None:
    service = await start(address_connections=0, address_replays=0)
    assert (await get(service.port, "/health"))[0] == 200


async def test_clients_behind_a_proxy_are_told_apart(start: Start) -> None:
    service = await start(trusted_proxies=LOOPBACK, **NONE | {"address_connections": 1})
    other = {"X-Forwarded-For": "203.0.113.10, 127.0.0.1"}
    async with subscribe(service.port, headers=CLIENT), subscribe(service.port, headers=other):
        for path, status in (("/subscribe", 429), (V2, 503)):
            response = (await refused(service, path, headers=CLIENT)).response
            assert (response.status_code, response.headers["Retry-After"]) == (status, "10")
        assert (await get(service.port, "/events", **CLIENT))[0] == 429
        assert (await get(service.port, "/health", **CLIENT))[0] == 200
    await until(lambda: not len(service.subscribe))
    async with subscribe(service.port, headers=CLIENT):
        assert refusals(service, "address_connections") == 3


@pytest.fixture
async def past(relay: Relay, start: Start) -> Callable[..., Any]:
    """Start a server with ten events, and clients behind a proxy."""

    async def start_with(**limits: Any) -> Service:
        relay.publish(numbered([identity(seq) for seq in range(1, 11)]))
        service = await start(upstream_cursor=0, trusted_proxies=LOOPBACK, **NONE | limits)
        await published(service, 10)
        return service

    return start_with


@pytest.mark.parametrize("path", ["/subscribe", "/events", V2])
async def test_a_replay_too_many_is_refused_and_a_live_subscription_is_not(
    path: str, past: Callable[..., Any]
) -> None:
    service = await past(address_replays=0)
    status, text = await get(
        service.port, f"{path}?cursor=0", **CLIENT, **(UPGRADE if path != "/events" else {})
    )
    assert status == (503 if path == V2 else 429)
    assert "0 replays of one address have not reached the newest event: try again later" in text
    assert refusals(service, "address_replays") == 1
    async with subscribe(service.port, headers=CLIENT):
        pass
    tip = service.log.tip + 1
    async with subscribe(service.port, headers=CLIENT, cursor=tip):
        pass


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize("query", [{}, {"limit": 1000}, {"requireHello": True}], ids=str)
async def test_a_replay_ends_at_the_newest_event(query: dict[str, Any], past: Callable[..., Any]) -> None:
    service = await past(address_replays=1)
    asked = {name: str(value).lower() for name, value in query.items()}
    path = f"/subscribe?{urlencode({'cursor': 0, **asked})}"
    async with subscribe(service.port, path, headers=CLIENT) as first:
        if asked.get("requireHello"):
            await refused(service, headers=CLIENT, cursor=0)
            await first.update()
        await first.events(10)
        subscribers = list(service.delivery._subscribers)
        await until(lambda: subscribers[0].replay is None)
        async with subscribe(service.port, headers=CLIENT, cursor=0) as second:
            await second.events(10)


async def test_a_replay_ends_with_its_connection(past: Callable[..., Any]) -> None:
    service = await past(address_replays=1)
    async with subscribe(service.port, headers=CLIENT, cursor=0, requireHello="true"):
        assert (await refused(service, headers=CLIENT, cursor=0)).response.status_code == 429
    await until(lambda: not len(service.subscribe))
    async with subscribe(service.port, headers=CLIENT, cursor=0) as reader:
        await reader.events(10)


async def test_an_address_begins_replays_no_faster_than_its_rate(past: Callable[..., Any]) -> None:
    service = await past(address_replay_rate=0.001)
    async with subscribe(service.port, headers=CLIENT, cursor=0) as reader:
        await reader.events(10)
    response = (await refused(service, headers=CLIENT, cursor=0)).response
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1000")
    assert refusals(service, "address_replay_rate") == 1


async def test_a_replay_over_its_bytes_goes_on_later_and_others_do_not_wait(
    past: Callable[..., Any], relay: Relay
) -> None:
    service = await past(address_replay_bytes=1)
    other = {"X-Forwarded-For": "203.0.113.10"}
    async with (
        subscribe(service.port, headers=CLIENT, cursor=0) as paced,
        subscribe(service.port, headers=CLIENT) as live,
        subscribe(service.port, headers=other) as elsewhere,
    ):
        await paced.events(10)
        relay.publish(numbered([identity(11)]))
        for each in (live, elsewhere):
            assert (await each.event())["identity"]["seq"] == 11
        [replaying] = [each for each in service.delivery._subscribers if each.replay is not None]
        assert not replaying.live
