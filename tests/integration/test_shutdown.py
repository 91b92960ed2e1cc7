"""A clean shutdown, whatever the clients do."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from tests.relay import Relay
from tests.serving import LOOPBACK, Start, running, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.limits import Limits, RuntimeLimits, WebLimits
from jetstream.settings import Settings

# What clients that do not answer are given.
SOON = Limits(web=WebLimits(shutdown_timeout_s=0.3, close_timeout_s=0.3), runtime=RuntimeLimits(close_s=0.3))

HANDSHAKE = (
    b"GET /subscribe HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_clients_in_every_state_are_closed(relay: Relay, tmp_path: Path) -> None:
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path)
    async with AsyncExitStack() as server:
        service = await server.enter_async_context(running(Service(settings, SOON)))
        address = ("127.0.0.1", service.port)
        with (
            socket.create_connection(address),  # says nothing
            socket.create_connection(address) as between_requests,
            socket.create_connection(address) as in_the_middle,
            socket.create_connection(address) as deaf,
        ):
            between_requests.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            in_the_middle.sendall(HANDSHAKE[:40])
            deaf.sendall(HANDSHAKE)
            for client in (between_requests, deaf):
                assert (await asyncio.to_thread(client.recv, 4096)).startswith(b"HTTP/1.1 ")
            async with (
                subscribe(service.port) as live,
                subscribe(service.port, requireHello="true") as before_its_hello,
            ):
                service.stop()
                for subscriber in (live, before_its_hello):
                    assert (await subscriber.ended())[0] == 1001
            await server.aclose()  # it ends, without an error
            last = await asyncio.to_thread(deaf.recv, 4096)
            assert last[:1] == b"\x88"
            assert last[2:4] == (1001).to_bytes(2, "big")


async def test_no_new_request_is_served_during_shutdown(relay: Relay, start: Start) -> None:
    service = await start()
    async with subscribe(service.port):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\n}\n")).startswith(b"HTTP/1.1 200")
        service.stop()
        await until(lambda: service.subscribe._closed)
        writer.write(HANDSHAKE)
        answer = await reader.read()
        writer.close()
    assert not answer or b"\r\n\r\n\x88" in answer or answer.startswith(b"HTTP/1.1 503")
