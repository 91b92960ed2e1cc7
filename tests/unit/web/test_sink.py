"""What a WebSocket is sent beside events while something waits for its client: pongs, and the end.

What a client may send: test_websocket and tests/integration.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from struct import pack
from typing import Any, cast
from unittest.mock import patch

import pytest
from tests.unit.web.transport import Owner, Transport

from jetstream.delivery.framing.websocket import WEBSOCKET
from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.scheduling import Worker
from jetstream.steps import Steps
from jetstream.web.sink import Inbound, SocketSink
from jetstream.web.websocket import pong_frame

LIMIT = 1_000
LIMITS = WebLimits()
DONE = Close(1000, "done", "done")
PING, CLOSE = 0x89, 0x88
TEXT, TEXT_BEGINS, TEXT_ENDS = 0x81, 0x01, 0x80


def ignore(_message: bytes) -> Steps[None]:
    yield from ()


class Client:
    """A WebSocket, and its transport."""

    def __init__(self) -> None:
        self.transport = Transport()
        sink = SocketSink.__new__(SocketSink)
        self.transport.protocol = self.sink = sink
        self.inbound = Inbound(LIMIT)
        SocketSink.__init__(sink, cast(Any, self.transport), self.inbound, "")
        sink.owner = Owner()

    @property
    def pongs(self) -> int:
        """How many pongs without a payload the client was sent."""
        return len(self.transport.sent) // len(pong_frame(b""))

    async def served(self) -> None:
        """Return once nothing of it waits for its turn."""
        while self.sink.busy:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)

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


# Turns, so that one client holds the event loop for as long as others do


async def test_only_some_frames_are_handled_at_once_and_in_each_turn_after_that(client: Client) -> None:
    client.transport.room = 1 << 20
    client.inbound.frames = Worker(turn_s=0.0)  # one step in each turn of the event loop
    client.sink.data_received((bytes((PING, 0x80)) + bytes(4)) * 100)
    answered = [client.pongs]
    while len(client.inbound.frames):
        await asyncio.sleep(0)
        answered.append(client.pongs)
    assert answered[0] == LIMITS.frames_per_read
    assert answered[-1] == 100
    assert max(after - before for before, after in pairwise(answered)) == LIMITS.frames_per_step


@pytest.mark.parametrize("more", [0, 1, 100_000])
async def test_much_that_comes_at_once_is_not_unmasked_before_its_turn(client: Client, more: int) -> None:
    frame = b"\x82\xff" + pack(">Q", LIMITS.bytes_per_read - 14 + more) + bytes(4)
    client.sink.data_received(frame + bytes(LIMITS.bytes_per_read - 14 + more))
    waits = more > 0
    assert (len(client.inbound.frames), len(client.inbound.messages)) == (waits, not waits)
    assert client.sink.held == (LIMITS.bytes_per_read + more if waits else 0)
    await client.served()
    assert client.sink.held == 0


async def test_live_events_have_their_turns_between_messages(client: Client) -> None:
    loop = asyncio.get_running_loop()
    with patch.object(loop, "call_later", wraps=loop.call_later) as scheduled:
        client.say(TEXT, b"{}")
        await client.served()
    turn = client.inbound.messages._turn
    pauses = [call.args[0] for call in scheduled.call_args_list if call.args[1] == turn]
    assert len(pauses) == 1
    assert pauses[0] > 0


async def test_a_ping_between_two_fragments_gives_their_message_no_more_time(client: Client) -> None:
    client.say(TEXT_BEGINS, b"{")
    since = client.inbound.pending._entries[client.sink]
    client.say(PING)
    assert client.inbound.pending._entries[client.sink] == since
    client.say(TEXT_ENDS, b"}")
    assert client.sink.busy  # with the message


async def test_nothing_is_read_while_something_waits_for_its_turn(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(client.transport, "pause_reading", lambda: calls.append("pause"))
    monkeypatch.setattr(client.transport, "resume_reading", lambda: calls.append("resume"))
    client.say(TEXT, b"{}")
    assert calls == ["pause"]
    await client.served()
    assert calls[-1] == "resume"


@pytest.mark.parametrize("noticed", [False, True])
async def test_pings_of_a_client_that_has_gone_are_no_error(
    client: Client, monkeypatch: pytest.MonkeyPatch, noticed: bool
) -> None:
    def gone(_data: bytes) -> None:
        raise RuntimeError("the handler is closed")  # as uvloop does

    monkeypatch.setattr(client.transport, "is_closing", lambda: noticed)
    monkeypatch.setattr(client.transport, "write", gone)
    client.say(PING)
    client.say(CLOSE, pack(">H", 1000))
    assert client.sink.controls == 0
