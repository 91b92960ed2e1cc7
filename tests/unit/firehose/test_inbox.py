"""What one connection sends, without a socket: whole messages, budgets, pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast
from unittest.mock import Mock

import pytest
from picows import WSCloseCode, WSFrame, WSMsgType, WSTransport

from jetstream.firehose import inbox as module
from jetstream.firehose.inbox import BURST_S, CONTROL_PER_S, FRAME_COST, TINY_PER_S, Inbox, Slices

PARTS = WSMsgType.CONTINUATION


class Socket:
    """A connection that is told what to do, and an inbox that takes what comes."""

    def __init__(self) -> None:
        self.texts = 0
        self.floods: list[str] = []
        self.transport = Mock(spec=WSTransport)
        self.under = Mock()
        self.under.is_closing.return_value = False
        self.transport.underlying_transport = self.under
        self.now = 1_000.0
        self.inbox = Inbox(self._text, self.floods.append, lambda: self.now)
        self.inbox.on_ws_connected(cast(WSTransport, self.transport))

    def _text(self) -> None:
        self.texts += 1

    def send(self, payload: bytes, kind: WSMsgType = WSMsgType.BINARY, *, fin: bool = True) -> Socket:
        frame = Mock(spec=WSFrame, msg_type=kind, fin=fin)
        frame.get_payload_as_bytes.return_value = payload
        frame.get_close_code.return_value = 1008
        frame.get_close_reason.return_value = "ConsumerTooSlow"
        self.inbox.on_ws_frame(cast(WSTransport, self.transport), frame)
        return self

    def send_parts(self, parts: Iterable[bytes]) -> Socket:
        *first, last = parts
        kind = WSMsgType.BINARY
        for part in first:
            self.send(part, kind, fin=False)
            kind = PARTS
        return self.send(last, PARTS)

    async def frames(self, count: int = 100) -> list[bytes]:
        return await self.inbox.wait(count)


@pytest.fixture
async def socket() -> Socket:
    return Socket()


# Messages


async def test_messages_stay_until_they_are_dropped(socket: Socket) -> None:
    socket.send(b"a" * 20).send(b"b" * 20).send(b"c" * 20)
    assert await socket.frames(2) == [b"a" * 20, b"b" * 20]
    assert await socket.frames(2) == [b"a" * 20, b"b" * 20]
    socket.inbox.drop(2)
    assert await socket.frames() == [b"c" * 20]


async def test_a_message_in_parts_is_assembled_whatever_the_parts(socket: Socket) -> None:
    socket.send_parts([b"a" * 20, b"b" * 20, b"c"]).send_parts([b"", b""]).send(b"d" * 20)
    assert await socket.frames() == [b"a" * 20 + b"b" * 20 + b"c", b"", b"d" * 20]


async def test_a_ping_between_two_parts_is_answered(socket: Socket) -> None:
    socket.send(b"a" * 20, fin=False).send(b"?", WSMsgType.PING).send(b"b", PARTS)
    assert await socket.frames() == [b"a" * 20 + b"b"]
    socket.transport.send_pong.assert_called_once_with(b"?")


async def test_text_is_told_of_and_the_rest_of_it_passed_over(socket: Socket) -> None:
    socket.send(b"{", WSMsgType.TEXT, fin=False).send(b"}", PARTS).send(b"a" * 20)
    assert (socket.texts, await socket.frames()) == (1, [b"a" * 20])


async def test_a_close_frame_is_answered_and_its_reason_kept(socket: Socket) -> None:
    socket.send(b"", WSMsgType.CLOSE)
    assert socket.inbox.reason == "1008 ConsumerTooSlow"
    socket.transport.disconnect.assert_called_once_with()


async def test_what_came_is_taken_before_the_end_is_told(socket: Socket) -> None:
    waiting = asyncio.create_task(socket.frames())
    await asyncio.sleep(0)
    socket.send(b"a" * 20).inbox.on_ws_disconnected(cast(WSTransport, socket.transport))
    assert await waiting == [b"a" * 20]
    socket.inbox.drop(1)
    assert await socket.frames() == []


async def test_parts_that_are_too_big_together_end_the_connection(
    socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MESSAGE_BYTES_MAX", 100)
    socket.send_parts([b"a" * 50] * 2)
    assert not socket.inbox.too_big
    socket.send_parts([b"b" * 50] * 3)
    assert socket.inbox.too_big
    socket.transport.send_close.assert_called_once_with(WSCloseCode.MESSAGE_TOO_BIG)
    assert await socket.frames() == [b"a" * 100]


# Budgets


@pytest.mark.parametrize(
    ("name", "kind", "payload", "fin", "budget"),
    [
        ("control", WSMsgType.PING, b"", True, CONTROL_PER_S),
        ("control", WSMsgType.PONG, b"", True, CONTROL_PER_S),
        ("tiny", WSMsgType.BINARY, b"", True, TINY_PER_S),
        ("tiny", WSMsgType.CONTINUATION, b"x", False, TINY_PER_S),
        ("text", WSMsgType.TEXT, b"{}", True, module.TEXT_PER_S),
    ],
)
async def test_too_much_of_what_is_no_firehose_ends_the_connection(
    name: str, kind: WSMsgType, payload: bytes, fin: bool, budget: float, socket: Socket
) -> None:
    for _ in range(int(budget * BURST_S)):
        socket.send(payload, kind, fin=fin)
    socket.now += 1.0  # earns a second's worth
    for _ in range(int(budget)):
        socket.send(payload, kind, fin=fin)
    assert socket.floods == []
    socket.send(payload, kind, fin=fin)
    assert socket.floods == [name]
    socket.transport.disconnect.assert_called_once_with(graceful=False)


async def test_large_messages_and_parts_have_no_budget(socket: Socket) -> None:
    for _ in range(int(TINY_PER_S * BURST_S) * 2):
        socket.send(b"x" * module.TINY_BYTES)
    socket.send_parts([b"x" * module.TINY_BYTES] * int(TINY_PER_S * BURST_S) * 2)
    assert socket.floods == []


# Pauses


async def test_every_message_counts_for_what_it_costs(
    socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES_MAX", 100 * FRAME_COST)
    for count in range(100):
        assert socket.under.pause_reading.call_count == 0, count
        socket.send(b"")
    socket.send(b"")
    socket.under.pause_reading.assert_called_once_with()
    while socket.inbox._frames:
        socket.inbox.drop(len(await socket.frames(10)))
    socket.under.resume_reading.assert_called_once_with()
    assert socket.inbox._cost == 0


async def test_a_socket_is_read_again_when_both_reasons_are_over(
    socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES_MAX", 1_000)
    socket.send(b"x" * 2_000).inbox.on_turn_over(True)
    socket.inbox.on_turn_over(False)
    assert (socket.under.pause_reading.call_count, socket.under.resume_reading.call_count) == (1, 0)
    socket.inbox.drop(1)
    assert socket.under.resume_reading.call_count == 1


async def test_a_socket_that_is_gone_is_left_alone(socket: Socket) -> None:
    socket.under.is_closing.return_value = True
    socket.inbox.on_turn_over(True)
    assert socket.under.pause_reading.call_count == 0


class Parser(asyncio.BufferedProtocol):
    """Notes what it is given, in a buffer that is full after `room` bytes."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.buffer = bytearray(room)
        self.given: list[bytes] = []
        self.lost: list[Exception | None] = []

    def get_buffer(self, sizehint: int) -> memoryview:
        assert sizehint == -1
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.given.append(bytes(self.buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Reading:
    """A socket that is read through `Slices`, in turns that `over` ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 1 << 20) -> None:
        self.monkeypatch = monkeypatch
        self.turns: list[bool] = []
        self.parser = Parser(room)
        self.slices = Slices(self.parser, self.turns.append)

    def over(self, is_over: bool) -> None:
        self.monkeypatch.setattr(module, "TURN_S", -1.0 if is_over else 60.0)

    def read(self, raw: bytes) -> None:
        buffer = self.slices.get_buffer(1 << 16)
        assert len(buffer) == module.READ_BYTES_MAX
        buffer[: len(raw)] = raw
        self.slices.buffer_updated(len(raw))


async def test_what_is_read_is_parsed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch)
    reading.over(False)
    monkeypatch.setattr(module, "SLICE_BYTES_MAX", 4)
    reading.read(b"abcdefghij")
    reading.read(b"k")
    assert reading.parser.given == [b"abcd", b"efgh", b"ij", b"k"]
    await asyncio.sleep(0)
    assert True not in reading.turns


async def test_a_slice_fits_what_the_parser_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading(monkeypatch, room=3)
    reading.over(False)
    reading.read(b"abcdefgh")
    assert reading.parser.given == [b"abc", b"def", b"gh"]


async def test_the_socket_is_left_alone_until_what_was_read_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading(monkeypatch)
    monkeypatch.setattr(module, "SLICE_BYTES_MAX", 4)
    reading.over(True)
    reading.read(b"abcdefghij")
    assert (reading.parser.given, reading.turns) == ([b"abcd"], [True])
    await asyncio.sleep(0)
    assert (reading.parser.given[1:], reading.turns) == ([b"efgh"], [True])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (reading.parser.given[2:], reading.turns) == ([b"ij"], [True, False])


async def test_what_was_not_parsed_when_the_connection_is_lost_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading(monkeypatch)
    monkeypatch.setattr(module, "SLICE_BYTES_MAX", 4)
    reading.over(True)
    reading.read(b"abcdefghij")
    reading.slices.connection_lost(None)
    await asyncio.sleep(0)
    assert (reading.parser.given, reading.parser.lost) == ([b"abcd"], [None])
