from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest
from aiohttp import WSMessage, WSMsgType

from jetstream.client import ClientLimits, Message
from jetstream.client.subscription import Connection


def test_a_message_is_a_dict_with_its_bytes() -> None:
    raw = b'{"did":"did:web:x", "time_us":1725516666734038,"type":"com"}'
    message = Message.parse(raw)
    assert message == {"did": "did:web:x", "time_us": 1725516666734038, "type": "com"}
    assert message.raw == raw
    assert message.time_us == 1725516666734038


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xa1\x00",
        b"[]",
        b"[[1,2]]",
        b"1",
        b"null",
        b'"x"',
        b"{}",
        b'{"time_us":"1"}',
        b'{"time_us":true}',
    ],
)
def test_a_message_that_is_not_an_event_is_an_error(raw: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        Message.parse(raw)


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


async def watch(socket: FakeSocket, *, receiving: bool, waits: int = 10) -> None:
    """Watch a connection until it is closed, or for `waits` waits of no length."""
    left = waits

    async def sleep(_seconds: float) -> None:
        nonlocal left
        left -= 1
        await asyncio.sleep(0)  # let `receive` run
        if not left:
            raise asyncio.CancelledError

    connection = Connection(cast("Any", socket), ClientLimits(), sleep)
    reading = asyncio.create_task(connection.receive()) if receiving else None
    with suppress(asyncio.CancelledError):
        await connection.watch()
    if reading is not None:
        reading.cancel()


async def test_a_server_that_is_silent_while_the_reader_waits_is_pinged_and_then_disconnected() -> None:
    socket = FakeSocket()
    await watch(socket, receiving=True)
    assert (socket.pings, socket.closed) == (1, True)


async def test_a_reader_that_pauses_is_not_mistaken_for_a_silent_server() -> None:
    socket = FakeSocket()
    await watch(socket, receiving=False)
    assert (socket.pings, socket.closed) == (0, False)


async def test_a_message_ends_the_silence() -> None:
    socket = FakeSocket()
    socket.messages.put_nowait(WSMessage(WSMsgType.TEXT, b"{}", None))
    await watch(socket, receiving=True)
    assert (socket.pings, socket.closed) == (0, False)
