from __future__ import annotations

import pytest
from tests.unit.delivery.encodings import frames_of
from websockets.frames import Opcode

from jetstream.delivery.framing.websocket import WEBSOCKET, head

SIZES = [0, 1, 125, 126, 127, 4_095, 4_096, 65_535, 65_536, 2_000_000]


def texts(data: bytes) -> list[bytes]:
    frames = frames_of(data)
    assert all(frame.opcode is Opcode.TEXT and frame.fin for frame in frames)
    return [bytes(frame.data) for frame in frames]


@pytest.mark.parametrize("size", SIZES)
def test_heads_are_read_by_others(size: int) -> None:
    assert texts(head(size) + b"x" * size) == [b"x" * size]


def test_each_message_is_one_text_frame_whatever_its_length() -> None:
    messages = [b"x" * size for size in SIZES[1:]]

    assert texts(b"".join(WEBSOCKET.frames(messages))) == messages


def test_there_is_no_frame_for_an_event_that_was_declined() -> None:
    assert WEBSOCKET.frames([b"", b"{}", b""]) == [b"", b"\x81\x02{}", b""]


def test_a_ping_keeps_the_connection_alive() -> None:
    (ping,) = frames_of(WEBSOCKET.keep_alive)
    assert (ping.opcode, bytes(ping.data)) == (Opcode.PING, b"")


@pytest.mark.parametrize("reason", ["", "slow", "é" * 61, "x" + "é" * 61, "é" * 200])
@pytest.mark.parametrize("cursor", [0, 1_725_519_626_134_432, 10**20 - 1])
def test_a_long_reason_is_cut_before_the_cursor(reason: str, cursor: int) -> None:
    (close,) = frames_of(WEBSOCKET.end(1008, reason, cursor))
    text, _, tail = bytes(close.data[2:]).decode().rpartition("; ")

    assert tail == f"cursor={cursor}"
    assert reason.startswith(text)
    assert len(close.data) in {124, 125} or text == reason


@pytest.mark.parametrize("reason", ["", "slow", "é" * 61, "x" + "é" * 61, "é" * 200])
def test_the_end_is_a_close_frame_with_as_much_of_the_reason_as_fits(reason: str) -> None:
    (close,) = frames_of(WEBSOCKET.end(1008, reason))
    text = bytes(close.data[2:]).decode()

    assert (close.opcode, close.data[:2]) == (Opcode.CLOSE, b"\x03\xf0")
    assert reason.startswith(text)
    assert text == reason or len(text.encode()) in {122, 123}
