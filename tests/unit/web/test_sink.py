"""What a WebSocket is sent beside events while something waits for its client: pongs, and the end.

What a client may send: test_websocket and tests/integration.
"""

from __future__ import annotations

from struct import pack
from typing import Any, cast

import pytest
from tests.unit.web.transport import Owner, Transport

from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.subscriber import Close
from jetstream.web.sink import Inbound, SocketSink
from jetstream.web.websocket import pong_frame

LIMIT = 1_000
DONE = Close(1000, "done", "done")
PING, CLOSE = 0x89, 0x88


class Client:
    """A WebSocket, and its transport."""

    def __init__(self) -> None:
        self.transport = Transport()
        sink = SocketSink.__new__(SocketSink)
        self.transport.protocol = self.sink = sink
        SocketSink.__init__(sink, cast(Any, self.transport), Inbound(LIMIT), "")
        sink.owner = Owner()

    def write(self, data: bytes) -> None:
        self.sink.write(data)
        self.sink.written += len(data)

    def say(self, opcode: int, payload: bytes = b"") -> None:
        self.sink.data_received(bytes((opcode, 0x80 | len(payload))) + bytes(4) + payload)


@pytest.fixture
async def client() -> Client:
    return Client()


@pytest.fixture
async def slow(client: Client) -> Client:
    """Return a client for which writes are gathered, with one that the transport has not sent."""
    client.write(b"first ")
    for _ in range(2):
        client.sink.gather()
    return client


async def test_the_cursor_of_the_end_is_that_of_the_close(slow: Client) -> None:
    slow.write(b"second ")
    slow.sink.close(DONE)
    slow.sink.owner = Owner(8)  # a lane moves on
    await slow.transport.read(10_000)
    assert slow.transport.sent == b"first second " + WEBSOCKET.end(1000, "done", 7)


async def test_a_client_that_fails_is_sent_what_was_gathered_and_the_end(slow: Client) -> None:
    slow.write(b"second ")
    slow.sink.fail(DONE)
    assert not slow.transport.eof
    await slow.transport.read(10_000)
    assert slow.transport.sent == b"first second " + WEBSOCKET.end(1000, "done", 7)
    assert slow.transport.eof


@pytest.mark.parametrize("closed", [False, True])
async def test_a_client_that_leaves_is_not_sent_what_was_gathered(closed: bool, slow: Client) -> None:
    slow.write(b"second ")
    if closed:
        slow.sink.close(DONE)
    slow.say(CLOSE, pack(">H", 1001))
    assert slow.transport.closed
    await slow.transport.read(10_000)
    assert slow.transport.sent == b"first " + WEBSOCKET.end(1001, "")


async def test_the_close_frame_of_the_server_is_answered_once(client: Client) -> None:
    client.sink.close(DONE)
    client.say(CLOSE, pack(">H", 1000))
    await client.transport.read(10_000)
    assert client.transport.sent == WEBSOCKET.end(1000, "done", 7)


async def test_the_newest_ping_is_answered_when_a_slow_client_has_read(slow: Client) -> None:
    for number in range(100):
        slow.say(PING, b"%d" % number)
    assert slow.sink.buffered == len(b"first ")
    await slow.transport.read(6)
    assert slow.transport.waiting == [pong_frame(b"99")]
    await slow.transport.read(10_000)
    assert slow.transport.sent == b"first " + pong_frame(b"99")
    slow.say(PING)
    assert slow.transport.sent.endswith(pong_frame(b""))


async def test_a_pong_does_not_wait_for_all_that_is_gathered_later(slow: Client) -> None:
    slow.say(PING, b"1")
    slow.write(b"second ")
    await slow.transport.read(6)
    slow.write(b"third ")
    slow.say(PING, b"2")
    await slow.transport.read(7 + 3)
    assert slow.transport.sent == b"first second " + pong_frame(b"1")
    await slow.transport.read(10_000)
    assert slow.transport.sent == b"first second " + pong_frame(b"1") + b"third " + pong_frame(b"2")


async def test_a_ping_is_not_answered_behind_the_end(slow: Client) -> None:
    slow.say(PING)
    slow.write(b"second ")
    slow.sink.close(DONE)
    slow.say(PING)
    await slow.transport.read(10_000)
    assert slow.transport.sent == b"first second " + WEBSOCKET.end(1000, "done", 7)


async def test_a_ping_is_answered_when_a_full_buffer_has_drained(client: Client) -> None:
    client.write(bytes(LIMIT + 1))
    client.say(PING, b"1")
    client.say(PING, b"2")
    await client.transport.read(10_000)
    assert client.transport.sent == bytes(LIMIT + 1) + pong_frame(b"2")
