"""Text messages are collected, and binary ones are told of. All else is as in `Inbox`."""

from __future__ import annotations

from typing import cast
from unittest.mock import Mock

from picows import WSFrame, WSMsgType, WSTransport

from jetstream.limits import UpstreamLimits
from jetstream.token_bucket import Rate
from jetstream.upstream.mirror.text_inbox import TextInbox

LIMITS = UpstreamLimits(tiny=Rate(1.0, 2), text=Rate(1.0, 2))
TEXT, BINARY, PART = WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION


class Socket:
    """A connection that is told what to do, and an inbox that takes what comes."""

    def __init__(self) -> None:
        self.binaries = 0
        self.floods: list[str] = []
        self.transport = Mock(spec=WSTransport)
        self.transport.underlying_transport = Mock()
        self.transport.underlying_transport.is_closing.return_value = False
        self.transport.underlying_transport.get_write_buffer_size.return_value = 0
        self.transport.response.headers = {"Jetstream-Wire": "v2"}
        self.inbox = TextInbox(self._binary, self.floods.append, LIMITS, lambda: 1.0)
        self.inbox.on_ws_connected(cast(WSTransport, self.transport))

    def _binary(self) -> None:
        self.binaries += 1

    def send(self, payload: bytes, kind: WSMsgType = TEXT, *, fin: bool = True) -> Socket:
        frame = Mock(spec=WSFrame, msg_type=kind, fin=fin)
        frame.get_payload_as_bytes.return_value = payload
        self.inbox.on_ws_frame(cast(WSTransport, self.transport), frame)
        return self


async def test_text_is_collected_whole_or_in_parts() -> None:
    socket = Socket().send(b"a" * 20).send(b"b" * 20, fin=False).send(b"?", WSMsgType.PING).send(b"c", PART)
    assert await socket.inbox.wait(10) == [b"a" * 20, b"b" * 20 + b"c"]
    socket.transport.send_pong.assert_called_once_with(b"?")
    assert socket.inbox.answer == {"Jetstream-Wire": "v2"}


async def test_binary_messages_are_told_of_and_passed_over_up_to_a_budget() -> None:
    socket = Socket().send(b"a" * 20, BINARY, fin=False).send(b"b", PART).send(b"c" * 20)
    assert (socket.binaries, await socket.inbox.wait(10)) == (1, [b"c" * 20])
    socket.send(b"a", BINARY).send(b"a", BINARY)
    assert socket.floods == ["text"]


async def test_many_tiny_messages_are_a_flood() -> None:
    socket = Socket().send(b"a").send(b"a").send(b"a")
    assert socket.floods == ["tiny"]
    socket.send(b"b" * 20)
    assert await socket.inbox.wait(10) == [b"a", b"a"]
