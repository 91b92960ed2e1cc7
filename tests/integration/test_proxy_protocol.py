"""The PROXY protocol over real sockets: who is believed, and what becomes of connections without a head."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs
from tests.serving import LOOPBACK, Start, get, until
from tests.unit.web.test_proxy_head import v1, v2, v2_of

from jetstream.app import Service
from jetstream.limits import Limits, WebLimits
from jetstream.settings import parse_networks
from jetstream.web.server import Server

PROXY = parse_networks("127.0.0.1")
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
EVENTS = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE_S = 20.0


async def answer(port: int, *pieces: bytes) -> bytes:
    """Send bytes, piece by piece; return what comes until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.fixture
async def service(start: Start) -> Service:
    return await start(proxy_protocol=True, trusted_proxies=PROXY)


HEADS = {
    v1("203.0.113.9"): "203.0.113.9",
    v1("2001:db8::1"): "2001:db8::1",
    v2("203.0.113.9"): "203.0.113.9",
    v2("2001:db8::1", more=b"\x04\0\1x"): "2001:db8::1",
    v2("203.0.113.9", command=0x20): "127.0.0.1",
    b"PROXY UNKNOWN\r\n": "127.0.0.1",
    v2_of(0x31, bytes(216)): "127.0.0.1",
    v2_of(0x00): "127.0.0.1",
}


@pytest.mark.parametrize("size", [1, 20, 1_000])
async def test_a_head_names_the_client(size: int, service: Service) -> None:
    for head, address in HEADS.items():
        data = head + EVENTS
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await asyncio.sleep(0)
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        assert service.subscribe.clients()[-1].sink.peer == address
        writer.close()


async def test_what_a_proxy_forwards_in_a_head_is_behind_what_it_forwards_in_a_field(
    service: Service,
) -> None:
    """A client that names itself in the field is not believed; a proxy whose health check does is."""
    forged = EVENTS.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n")
    for head, address in ((v1("203.0.113.9"), "203.0.113.9"), (b"PROXY UNKNOWN\r\n", "198.51.100.7")):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(head + forged)
        await reader.readline()
        assert service.subscribe.clients()[-1].sink.peer == address
        writer.close()


async def test_a_proxy_that_sends_no_head_is_not_answered(service: Service) -> None:
    wrong = (b"\x16\x03\x01\x02\0\x01", b"PROXY TCP4 1 2 3 4\r\n", v2("203.0.113.9", command=0x22))
    with capture_logs() as logs:
        for data in (HEALTH, *wrong):
            assert await answer(service.port, data) == b""
    assert service.metrics.bad_requests["malformed"]._value.get() == 4
    [line] = [line for line in logs if line["event"] == "request: not served, malformed"]
    assert line["problem"].endswith(": see --proxy-protocol")
    assert line["peer"] == "127.0.0.1"


@pytest.mark.parametrize("settings", [{"proxy_protocol": True}, {"trusted_proxies": PROXY}, {}], ids=str)
async def test_nobody_else_is_believed(settings: dict[str, object], start: Start) -> None:
    service = await start(**settings)  # type: ignore[arg-type]
    for head in (v1("203.0.113.9"), v2("203.0.113.9")):
        assert (await answer(service.port, head + HEALTH)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert (await answer(service.port, HEALTH)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_line_of_the_protocol_is_told_the_settings(start: Start) -> None:
    service = await start()
    text = await answer(service.port, v1("203.0.113.9") + HEALTH)
    assert text.endswith(b"the PROXY protocol is not expected: see --proxy-protocol and --trusted-proxies\n")


@pytest.mark.parametrize("part", [b"", b"PROXY TC", v2("203.0.113.9")[:20]])
async def test_a_head_must_be_whole_in_time(part: bytes, start: Start) -> None:
    limits = Limits(web=WebLimits(request_timeout_s=0.05, deadline_check_s=0.01))
    service = await start(proxy_protocol=True, trusted_proxies=PROXY, limits=limits)
    assert await answer(service.port, part) == b""
    assert service.metrics.bad_requests["timeout"]._value.get() == 1


async def test_a_proxy_that_goes_leaves_nothing_behind(service: Service) -> None:
    for part in (b"", b"PROXY TC", v2("203.0.113.9")[:20]):
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(part)
        await writer.drain()
        writer.close()
    server = connections(service)
    await until(lambda: not server)


def connections(service: Service) -> dict[object, None]:
    """Return all connections of a server that speak HTTP, or will."""
    server: Server = service.endpoints.servers[0]
    return server._connections._all  # type: ignore[return-value]


async def test_unfinished_heads_are_closed_when_others_need_their_room(start: Start) -> None:
    limits = Limits(web=WebLimits(connections_max=2))
    service = await start(proxy_protocol=True, trusted_proxies=PROXY, limits=limits)
    first = await asyncio.open_connection("127.0.0.1", service.port)
    await until(lambda: len(connections(service)) == 1)
    others = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(2)]
    async with asyncio.timeout(PATIENCE_S):
        assert await first[0].read() == b""
    assert service.metrics.evicted._value.get() == 1
    for _, writer in (first, *others):
        writer.close()


async def test_the_clients_of_a_head_have_limits(start: Start) -> None:
    service = await start(proxy_protocol=True, trusted_proxies=PROXY, address_connections=0)
    refused = await answer(service.port, v1("203.0.113.9") + HEALTH)
    assert refused.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert (await answer(service.port, v1("10.0.0.9") + HEALTH)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_subscribers_are_not_shown_to_clients_of_a_proxy(service: Service) -> None:
    page = HEALTH.replace(b"/health", b"/subscribers.json").replace(b"Host: x", b"Host: localhost")
    assert (await answer(service.port, v1("203.0.113.9") + page)).startswith(b"HTTP/1.1 403 ")
    assert (await answer(service.port, b"PROXY UNKNOWN\r\n" + page)).startswith(b"HTTP/1.1 200 ")


async def test_metrics_of_another_address_need_no_head(start: Start) -> None:
    service = await start(proxy_protocol=True, trusted_proxies=PROXY, metrics_listen=LOOPBACK)
    assert service.endpoints.metrics_port is not None
    assert (await get(service.endpoints.metrics_port, "/metrics"))[0] == 200
    health = await answer(service.port, b"PROXY UNKNOWN\r\n" + HEALTH)
    assert json.loads(health.partition(b"\r\n\r\n")[2])["status"] in {"ok", "degraded"}
