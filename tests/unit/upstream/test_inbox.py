"""What one connection sends, without a socket: whole messages, budgets, pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast
from unittest.mock import Mock, call

import pytest
from picows import WSCloseCode, WSFrame, WSMsgType, WSProtocolError, WSTransport

from jetstream.limits import UpstreamLimits
from jetstream.token_bucket import Rate
from jetstream.upstream.inbox import Inbox, ReadThrottle

BINARY, TEXT, PARTS = WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CONTINUATION
# Budgets a hundredth of the real ones: a frame is a mock, which takes a millisecond to make.
LIMITS = UpstreamLimits(control=Rate(1.0, 2), tiny=Rate(10.0, 20), text=Rate(1.0, 2))


class Socket:
    """A connection that is told what to do, and an inbox that takes what comes."""

    def __init__(self, limits: UpstreamLimits = LIMITS) -> None:
        self.texts = 0
        self.floods: list[str] = []
        self.transport = Mock(spec=WSTransport)
        self.under = Mock()
        self.under.is_closing.return_value = False
        self.under.get_write_buffer_size.return_value = 0
        self.transport.underlying_transport = self.under
        self.now = 1_000.0
        self.inbox = Inbox(self._text, self.floods.append, limits, lambda: self.now)
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

    async def waiting(self) -> list[bytes]:
        """Return all that waits, without waiting for more."""
        self.inbox.on_ws_disconnected(cast(WSTransport, self.transport))
        return await self.inbox.wait(1_000)


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


async def test_whole_messages_between_two_parts_are_handled_as_others(socket: Socket) -> None:
    socket.send(b"a" * 20, fin=False).send(b"b" * 20).send(b"{}", TEXT).send(b"c", PARTS)
    assert (socket.texts, await socket.frames()) == (1, [b"b" * 20, b"a" * 20 + b"c"])


FIRST, LAST = False, True


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize(
    "frames",
    [
        [(PARTS, LAST)],
        [(PARTS, FIRST)],
        [(BINARY, LAST), (PARTS, LAST)],
        [(TEXT, LAST), (PARTS, FIRST)],
        [(BINARY, FIRST), (PARTS, LAST), (PARTS, LAST)],
        [(TEXT, FIRST), (PARTS, LAST), (PARTS, LAST)],
        [(BINARY, FIRST), (BINARY, FIRST)],
        [(BINARY, FIRST), (TEXT, FIRST)],
        [(TEXT, FIRST), (BINARY, FIRST)],
        [(TEXT, FIRST), (PARTS, FIRST), (TEXT, FIRST)],
    ],
)
async def test_parts_in_no_order_end_the_connection(
    frames: list[tuple[WSMsgType, bool]], size: int, socket: Socket
) -> None:
    *before, (kind, fin) = frames
    for each, is_last in before:
        socket.send(b"x" * size, each, fin=is_last)
    with pytest.raises(WSProtocolError, match=r"RFC 6455 section 5\.4") as caught:
        socket.send(b"x" * size, kind, fin=fin)
    assert caught.value.code == WSCloseCode.PROTOCOL_ERROR
    taken = await socket.waiting()
    socket.send(b"x" * size, kind, fin=fin).send(b"x" * 20)
    assert await socket.waiting() == taken


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


async def test_parts_that_are_too_big_together_end_the_connection() -> None:
    socket = Socket(UpstreamLimits(message_bytes_max=100))
    socket.send_parts([b"a" * 50] * 2)
    assert not socket.inbox.too_big
    socket.send_parts([b"b" * 50] * 3)
    assert socket.inbox.too_big
    socket.transport.send_close.assert_called_once_with(WSCloseCode.MESSAGE_TOO_BIG)
    assert await socket.frames() == [b"a" * 100]


# Budgets


@pytest.mark.parametrize(
    ("name", "kind", "payload", "fin", "rate"),
    [
        ("control", WSMsgType.PING, b"", True, LIMITS.control),
        ("control", WSMsgType.PONG, b"", True, LIMITS.control),
        ("tiny", WSMsgType.BINARY, b"", True, LIMITS.tiny),
        ("tiny", WSMsgType.CONTINUATION, b"x", False, LIMITS.tiny),
        ("text", WSMsgType.TEXT, b"{}", True, LIMITS.text),
    ],
)
async def test_too_much_of_what_is_no_firehose_ends_the_connection(
    name: str, kind: WSMsgType, payload: bytes, fin: bool, rate: Rate, socket: Socket
) -> None:
    if kind == PARTS:
        socket.send(b"x" * LIMITS.tiny_bytes, fin=False)
    for _ in range(rate.burst):
        socket.send(payload, kind, fin=fin)
    socket.now += 1.0  # earns a second's worth
    for _ in range(int(rate.per_s)):
        socket.send(payload, kind, fin=fin)
    assert socket.floods == []
    socket.send(payload, kind, fin=fin)
    assert socket.floods == [name]
    socket.transport.disconnect.assert_called_once_with(graceful=False)


async def test_large_messages_and_parts_have_no_budget(socket: Socket) -> None:
    for _ in range(LIMITS.tiny.burst * 2):
        socket.send(b"x" * LIMITS.tiny_bytes)
    socket.send_parts([b"x" * LIMITS.tiny_bytes] * LIMITS.tiny.burst * 2)
    assert socket.floods == []


async def test_each_part_of_what_is_passed_over_spends(socket: Socket) -> None:
    socket.send(b"{", TEXT, fin=False)
    for _ in range(LIMITS.tiny.burst):
        socket.send(b"x" * LIMITS.tiny_bytes, PARTS, fin=False)
    assert socket.floods == []
    socket.send(b"x" * LIMITS.tiny_bytes, PARTS, fin=False)
    assert socket.floods == ["tiny"]


async def test_a_peer_that_does_not_read_its_pongs_is_cut_off(socket: Socket) -> None:
    socket.under.get_write_buffer_size.return_value = LIMITS.unsent_bytes_max
    socket.send(b"?", WSMsgType.PING)
    assert socket.floods == []
    socket.under.get_write_buffer_size.return_value += 1
    socket.send(b"!", WSMsgType.PING)
    assert socket.floods == ["pongs"]
    socket.transport.send_pong.assert_called_once_with(b"?")
    socket.transport.disconnect.assert_called_once_with(graceful=False)


# Pauses


async def test_every_message_counts_for_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = Socket(UpstreamLimits(buffer_bytes_max=1_000, frame_overhead_bytes=10))
    throttle = Mock(spec=ReadThrottle)
    monkeypatch.setattr(socket.inbox, "_throttle", throttle)
    for _ in range(100):
        socket.send(b"")
    assert throttle.pause.call_args_list == []
    socket.send(b"").send(b"")
    assert throttle.pause.call_args_list == [call(True)]
    while messages := await socket.waiting():
        assert (call(False) in throttle.pause.call_args_list) == (len(messages) < 50)
        socket.inbox.drop(1)
    assert throttle.pause.call_args_list == [call(True), call(False)]
    assert socket.inbox._cost == 0


async def test_what_was_read_of_a_connection_that_is_closed_is_dropped(
    socket: Socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle = Mock(spec=ReadThrottle)
    monkeypatch.setattr(socket.inbox, "_throttle", throttle)
    socket.inbox.close()
    throttle.discard.assert_called_once_with()
    socket.transport.disconnect.assert_called_once_with(graceful=False)
    socket.send(b"x" * 100)
    assert await socket.waiting() == []


# Reading in slices


class Parser(asyncio.BufferedProtocol):
    """Notes what it is given, in a buffer that is full after `room` bytes."""

    def __init__(self, room: int) -> None:
        self.buffer = bytearray(room)
        self.given: list[bytes | str] = []

    def get_buffer(self, sizehint: int) -> memoryview:
        assert sizehint == -1
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.given.append(bytes(self.buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self.given.append(f"lost: {exc}")


class Reading:
    """A socket that is read in slices of four bytes; a turn is used up after each of them, or never."""

    def __init__(self, *, over: bool = False, room: int = 1 << 20) -> None:
        limits = UpstreamLimits(slice_bytes_max=4, read_bytes_max=1_000, turn_s=-1.0 if over else 60.0)
        self.parser = Parser(room)
        self.given = self.parser.given
        self.socket = Mock(spec=asyncio.Transport)
        self.socket.is_closing.return_value = False
        self.throttle = ReadThrottle(self.parser, self.socket, limits)

    def read(self, raw: bytes) -> None:
        buffer = self.throttle.get_buffer(1 << 16)
        assert len(buffer) == 1_000
        buffer[: len(raw)] = raw
        self.throttle.buffer_updated(len(raw))

    @property
    def pauses(self) -> list[str]:
        """How the socket was paused and resumed."""
        return [each[0] for each in self.socket.method_calls if each[0] != "is_closing"]


async def test_the_socket_is_left_alone_while_the_source_rests(socket: Socket) -> None:
    resting = asyncio.create_task(socket.inbox.rest(0.001))
    await asyncio.sleep(0)
    assert [each[0] for each in socket.under.method_calls][-1] == "pause_reading"
    await resting
    await asyncio.sleep(0)
    assert [each[0] for each in socket.under.method_calls][-1] == "resume_reading"


async def test_what_is_read_is_parsed_in_slices() -> None:
    reading = Reading()
    reading.read(b"abcdefghij")
    reading.read(b"k")
    await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([b"abcd", b"efgh", b"ij", b"k"], [])


async def test_a_slice_fits_what_the_parser_has_room_for() -> None:
    reading = Reading(room=3)
    reading.read(b"abcdefgh")
    assert reading.given == [b"abc", b"def", b"gh"]


async def test_a_short_read_is_parsed_at_once_and_ends_no_turn() -> None:
    reading = Reading(over=True)
    reading.read(b"abcd")
    reading.read(b"ef")
    assert (reading.given, reading.pauses) == ([b"abcd", b"ef"], [])


async def test_the_rest_of_a_short_read_waits_while_the_inbox_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = Reading(room=3)
    updated = reading.parser.buffer_updated

    def updated_and_full(nbytes: int) -> None:
        updated(nbytes)
        reading.throttle.pause(True)

    with monkeypatch.context() as patch:
        patch.setattr(reading.parser, "buffer_updated", updated_and_full)
        reading.read(b"abcd")
    await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([b"abc"], ["pause_reading"])
    reading.throttle.pause(False)
    await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([b"abc", b"d"], ["pause_reading", "resume_reading"])


async def test_the_socket_is_not_read_until_what_was_read_is_parsed() -> None:
    reading = Reading(over=True)
    reading.read(b"abcdefghij")
    assert (reading.given, reading.pauses) == ([b"abcd"], ["pause_reading"])
    await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([b"abcd", b"efgh"], ["pause_reading"])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([b"abcd", b"efgh", b"ij"], ["pause_reading", "resume_reading"])


@pytest.mark.parametrize("over", [False, True])
async def test_nothing_is_parsed_while_held(over: bool) -> None:
    reading = Reading(over=over)
    reading.throttle.pause(True)
    reading.read(b"abcdefghij")
    for _ in range(5):
        await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([], ["pause_reading"])
    reading.throttle.pause(False)
    assert reading.given == []  # not in the turn of who takes the frames
    for _ in range(5):
        await asyncio.sleep(0)
    assert (reading.given, reading.pauses) == ([b"abcd", b"efgh", b"ij"], ["pause_reading", "resume_reading"])


async def test_a_socket_that_is_held_with_all_parsed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading()
    monkeypatch.setattr(
        reading.parser, "buffer_updated", lambda _nbytes: reading.throttle.pause(True)
    )  # the first slice fills the inbox
    reading.read(b"abcd")
    await asyncio.sleep(0)
    assert reading.pauses == ["pause_reading"]
    reading.throttle.pause(False)
    await asyncio.sleep(0)
    assert reading.pauses == ["pause_reading", "resume_reading"]


async def test_the_end_of_the_connection_comes_after_what_was_read() -> None:
    reading = Reading(over=True)
    reading.read(b"abcdefgh")
    reading.socket.is_closing.return_value = True
    reading.throttle.connection_lost(OSError("reset"))
    assert reading.given == [b"abcd"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert reading.given == [b"abcd", b"efgh", "lost: reset"]
    assert reading.pauses == ["pause_reading"]


async def test_the_end_is_told_at_once_and_once_when_all_is_parsed() -> None:
    reading = Reading()
    reading.read(b"abcd")
    reading.throttle.connection_lost(None)
    assert reading.given == [b"abcd", "lost: None"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert reading.given == [b"abcd", "lost: None"]


async def test_the_end_of_a_held_connection_waits_or_comes_when_the_rest_is_dropped() -> None:
    reading = Reading()
    reading.throttle.pause(True)
    reading.read(b"abcd")
    reading.throttle.connection_lost(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert reading.given == []
    reading.throttle.discard()
    await asyncio.sleep(0)
    assert reading.given == ["lost: None"]
