"""Messages as WebSocket frames (RFC 6455), as a server sends them.

A server's frames are not masked (section 5.1), so one frame serves every subscriber.
"""

from __future__ import annotations

from struct import pack
from typing import Final

# Section 5.2: FIN and the opcode, then the length in 7 bits, or 126 and 16 bits, or 127 and 64 bits.
_TEXT: Final = 0x81
_CLOSE: Final = 0x88
_SHORT_MAX: Final = 125
_MEDIUM_MAX: Final = 0xFFFF
_REASON_BYTES_MAX: Final = 123  # section 5.5: a control frame has 125 bytes at most; the code takes two


def head(size: int) -> bytes:
    """Return the head of a whole text message of `size` bytes."""
    if size <= _SHORT_MAX:
        return bytes((_TEXT, size))
    if size <= _MEDIUM_MAX:
        return pack(">BBH", _TEXT, 126, size)
    return pack(">BBQ", _TEXT, 127, size)


# The heads of nearly all events: to look one up is faster than to make it. Nothing is sent for an event that
# the renderer declined, so there is no head before an empty message.
_HEADS: Final = [b"", *(head(size) for size in range(1, 4096))]


class WebSocketFraming:
    """One text message per event; pings keep the connection alive."""

    keep_alive: Final = b"\x89\x00"  # a ping without payload

    def frames(self, messages: list[bytes]) -> list[bytes]:
        """Return each message with its head."""
        heads, known = _HEADS, len(_HEADS)
        return [(heads[n] if (n := len(message)) < known else head(n)) + message for message in messages]

    def end(self, code: int, reason: str) -> bytes:
        """Return a close frame. A long reason is cut to 123 bytes, between two characters."""
        text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
        return pack(">BBH", _CLOSE, 2 + len(text), code) + text


WEBSOCKET: Final = WebSocketFraming()
