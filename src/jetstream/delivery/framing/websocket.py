"""Messages as WebSocket frames (RFC 6455), as a server sends them.

A server's frames are not masked (section 5.1), so one frame serves every subscriber.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import pack
from typing import Final

# Section 5.2: FIN and the opcode, then the length in 7 bits, or 126 and 16 bits, or 127 and 64 bits.
_FIN: Final = 0x80
TEXT: Final = 1
BINARY: Final = 2
_CLOSE: Final = 0x88
_SHORT_MAX: Final = 125
_MEDIUM_MAX: Final = 0xFFFF
_REASON_BYTES_MAX: Final = 123  # section 5.5: a control frame has 125 bytes at most; the code takes two


def head(size: int, opcode: int = TEXT) -> bytes:
    """Return the head of a message of `size` bytes in one frame: 2, 4 or 10 bytes (section 5.2)."""
    first = _FIN | opcode
    if size <= _SHORT_MAX:
        return bytes((first, size))
    if size <= _MEDIUM_MAX:
        return pack(">BBH", first, 126, size)
    return pack(">BBQ", first, 127, size)


class WebSocketFraming:
    """One message per event, text or binary; pings keep the connection alive."""

    keep_alive: Final = b"\x89\x00"  # a ping without payload
    costly: bool = False

    def __init__(self, opcode: int = TEXT) -> None:
        self._opcode = opcode
        # The heads of nearly all events: to look one up is faster than to make it. Nothing is sent for an
        # event that the renderer declined, so there is no head before an empty message.
        self._heads = [b"", *(head(size, opcode) for size in range(1, 4096))]

    def frames(
        self,
        messages: list[bytes],
        times: Iterable[int] | None = None,  # noqa: ARG002 - part of the protocol
    ) -> list[bytes]:
        """Return each message with its head."""
        heads, known, opcode = self._heads, len(self._heads), self._opcode
        return [
            (heads[n] if (n := len(message)) < known else head(n, opcode)) + message for message in messages
        ]

    def end(self, code: int, reason: str, cursor: int | None = None) -> bytes:
        """Return a close frame, whose reason ends with `cursor`.

        A long reason is cut before that, between two characters: there are 123 bytes.
        """
        tail = b"" if cursor is None else b"; cursor=%d" % cursor
        text = reason.encode()[: _REASON_BYTES_MAX - len(tail)].decode(errors="ignore").encode() + tail
        return pack(">BBH", _CLOSE, 2 + len(text), code) + text


WEBSOCKET: Final = WebSocketFraming()
