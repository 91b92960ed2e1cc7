from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import WSMessage, WSMsgType

from jetstream.client import ClientLimits
from jetstream.client.connection import Connection, ConnectionLost

HEARTBEAT = WSMessage(WSMsgType.TEXT, b'{"time_us":1,"kind":"heartbeat","live":true}', None)
EVENT = WSMessage(WSMsgType.TEXT, b'{"time_us":2}', None)
PONG = WSMessage(WSMsgType.PONG, b"", None)


class FakeSocket:
    """A WebSocket that receives what a test puts into `messages`, and never answers a ping."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[WSMessage] = asyncio.Queue()
        self.pings = 0
        self.closed = False

    async def receive(self) -> WSMessage:
        return await self.messages.get()

    async def ping(self) -> None:
        self.pings += 1

    async def close(self) -> None:
        self.closed = True


class Waits:
    """A `sleep` of no length that ends the test after some waits. Before each, something may be received."""

    def __init__(self, socket: FakeSocket, *received: WSMessage | None, most: int = 10) -> None:
        self._socket = socket
        self._received = iter(received)
        self._left = most

    async def __call__(self, _seconds: float) -> None:
        if not self._left:
            raise asyncio.CancelledError
        self._left -= 1
        message = next(self._received, None)
        if message is not None:
            self._socket.messages.put_nowait(message)
        for _ in range(3):
            await asyncio.sleep(0)  # let `receive` run


def connection(socket: FakeSocket, waits: Waits, *, beats: bool = False) -> Connection:
    server = SimpleNamespace(limits=ClientLimits(), heartbeat_s=5.0, beats=beats)
    return Connection(cast("Any", socket), cast("Any", server), sleep=waits)


async def read(connection: Connection) -> None:
    while True:
        await connection.receive()


async def watch_pings(socket: FakeSocket, *received: WSMessage | None, receiving: bool = True) -> None:
    """Watch until the connection is closed, or for ten waits."""
    watched = connection(socket, Waits(socket, *received))
    reading = asyncio.create_task(read(watched)) if receiving else None
    await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await watched.watch_pings()
    if reading is not None:
        reading.cancel()


async def test_a_server_that_is_silent_while_the_reader_waits_is_pinged_and_then_disconnected() -> None:
    socket = FakeSocket()
    await watch_pings(socket)
    assert (socket.pings, socket.closed) == (1, True)


async def test_a_reader_that_pauses_is_not_mistaken_for_a_silent_server() -> None:
    socket = FakeSocket()
    await watch_pings(socket, receiving=False)
    assert (socket.pings, socket.closed) == (0, False)


async def test_a_message_ends_the_silence() -> None:
    socket = FakeSocket()
    await watch_pings(socket, *[EVENT] * 10)
    assert (socket.pings, socket.closed) == (0, False)


async def watch_heartbeats(
    socket: FakeSocket, *received: WSMessage | None, receiving: bool = True, beats: bool = False
) -> None:
    watched = connection(socket, Waits(socket, *received), beats=beats)
    reading = asyncio.create_task(read(watched)) if receiving else None
    await asyncio.sleep(0)
    with suppress(asyncio.CancelledError):
        await watched.watch_heartbeats(5.0)
    if reading is not None:
        reading.cancel()


@pytest.mark.parametrize(
    "received",
    [
        [HEARTBEAT],  # three intervals of silence after it
        [HEARTBEAT, None, None, EVENT],
        [HEARTBEAT, PONG, PONG, PONG],  # the machine lives, and the stream is dead
    ],
)
async def test_a_server_whose_heartbeats_stop_is_disconnected(received: list[WSMessage | None]) -> None:
    socket = FakeSocket()
    await watch_heartbeats(socket, *received)
    assert socket.closed


@pytest.mark.parametrize(
    "received",
    [
        [HEARTBEAT] * 10,
        [HEARTBEAT, None, None, EVENT, None, None, EVENT, None, None, HEARTBEAT],
        [],  # a server without heartbeats is only quiet
        [EVENT],
    ],
)
async def test_a_server_is_kept_that_sends_heartbeats_or_never_did(received: list[WSMessage | None]) -> None:
    socket = FakeSocket()
    await watch_heartbeats(socket, *received)
    assert not socket.closed


async def test_a_server_that_had_heartbeats_on_another_connection_is_known_to_have_them() -> None:
    socket = FakeSocket()
    await watch_heartbeats(socket, beats=True)
    assert socket.closed


async def test_the_heartbeats_behind_a_reader_that_pauses_are_not_missed() -> None:
    socket = FakeSocket()
    await watch_heartbeats(socket, receiving=False, beats=True)
    assert not socket.closed


async def test_the_end_of_a_connection_names_its_cause() -> None:
    socket = FakeSocket()
    socket.messages.put_nowait(WSMessage(WSMsgType.CLOSE, 1001, "bye"))
    with pytest.raises(ConnectionLost, match="closed by the server, 1001 bye") as raised:
        await connection(socket, Waits(socket)).receive()
    assert raised.value.code == 1001
