"""The messages of a connection to a Jetstream: text, where a firehose sends binary messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from picows import WSFrame, WSMsgType, WSTransport

from jetstream.upstream.inbox import Inbox

_TEXT: Final = WSMsgType.TEXT


class TextInbox(Inbox):
    """Collects text messages as `Inbox` does binary ones. `on_text` is called for binary ones instead."""

    @property
    def answer(self) -> Mapping[str, str]:
        """The header of the response that has accepted the connection."""
        return self._transport.response.headers

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Handle a WebSocket frame."""
        kind = frame.msg_type
        if self._cut:
            return
        if kind == _TEXT and frame.fin:
            payload = frame.get_payload_as_bytes()
            if len(payload) >= self._limits.tiny_bytes or self._spend("tiny"):
                self._append(payload)
        elif kind == _TEXT:
            self._assemble(transport, frame)
        elif kind == WSMsgType.BINARY:
            self._pass_over(frame)
        else:
            super().on_ws_frame(transport, frame)
