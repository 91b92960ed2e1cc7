"""Framings of a body in the chunked transfer coding of HTTP/1.1 (RFC 9112, section 7.1).

Each frame is a chunk of its own, head included: 7 bytes more, and nothing to do for each reader.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from jetstream.delivery.framing import Framing

LAST_CHUNK: Final = b"0\r\n\r\n"
# Close codes after which a body is complete: nothing more was to come (1000), or the server stops in good
# order. After any other, the last chunk is missing, so that the client's library reports an incomplete body.
COMPLETE: Final = frozenset({1000, 1001, 1012})


class BodyFraming(Framing, Protocol):
    """A framing for the body of an HTTP response."""

    @property
    def media_type(self) -> str:
        """The media type of the body."""

    @property
    def start(self) -> bytes:
        """What goes before all events."""


def chunk(data: bytes) -> bytes:
    """Return bytes as a chunk. None are no chunk: an empty one would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


class ChunkedFraming:
    """Another framing, in chunks."""

    def __init__(self, body: BodyFraming) -> None:
        self._body = body
        self.media_type = body.media_type
        self.start = chunk(body.start)
        self.keep_alive = chunk(body.keep_alive)
        self.costly = body.costly

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        """Return each frame as a chunk."""
        return [chunk(frame) for frame in self._body.frames(messages, times)]

    def end(self, code: int, reason: str, cursor: int | None = None) -> bytes:
        """Return the end, with the last chunk if the body is complete."""
        return chunk(self._body.end(code, reason, cursor)) + (LAST_CHUNK if code in COMPLETE else b"")
