"""How subscriptions are carried: WebSockets, and the event streams of `/events`. Pure.

An event stream comes in chunks, each with one event or with what is none. That is how this server writes
them. Like `stream`, it shares no code with the server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol
from urllib.parse import urlencode

from jetstream.bench import stream
from jetstream.bench.stream import Frame

_FIN: Final = 0x80
_HEAD_BYTES_MAX: Final = 8  # of a chunk: six digits and CR LF
_CLOSE_EVENT: Final = b"event: close\ndata: "


class Transport(Protocol):
    """One way to subscribe."""

    path: str
    """Where to subscribe, if not at the path of a wire."""

    accepted: int
    """The status of a response that begins a subscription."""

    keep_alive_bytes: int
    """The bytes of what the server sends while nothing happens."""

    pong: bytes
    """What a client sends now and then."""

    def request(self, host: str, path: str, query: Iterable[tuple[str, str]]) -> bytes:
        """Return a request to subscribe."""

    def frames(self, data: bytes) -> tuple[list[Frame], int]:
        """Return the complete frames at the start of `data`, and how many bytes they occupy."""

    def frame_at(self, data: bytes, start: int) -> Frame | None:
        """Return the frame that begins at `start`; None if it is incomplete."""

    def starts(self, data: bytes, opcode: int) -> Iterator[int]:
        """Yield where a frame of a message may begin, from the last place to the first."""

    def size(self, payload: bytes) -> int:
        """Return the bytes of the frame of a payload."""

    def message(self, payload: bytes) -> bytes:
        """Return the message of a payload. Raises ValueError for a payload that has none."""

    def answer(self, frame: Frame) -> bytes:
        """Return what a client answers to a frame that is no message."""

    def close(self, payload: bytes) -> str:
        """Return why the server ends the subscription."""


class WebSocket:
    """Frames of RFC 6455."""

    path: str = ""
    accepted: int = 101
    keep_alive_bytes: int = 2  # of a ping without payload
    pong: bytes = stream.control(stream.PONG)
    request = staticmethod(stream.request)
    frames = staticmethod(stream.frames)
    frame_at = staticmethod(stream.frame_at)
    close = staticmethod(stream.close_words)

    def starts(self, data: bytes, opcode: int) -> Iterator[int]:
        """Yield where the first byte of a message may be."""
        start = len(data)
        while (start := data.rfind(_FIN | opcode, 0, start)) >= 0:
            yield start

    def size(self, payload: bytes) -> int:
        """Return the bytes of the frame of a payload."""
        return len(payload) + stream.head_bytes(len(payload))

    def message(self, payload: bytes) -> bytes:
        """Return the payload."""
        return payload

    def answer(self, frame: Frame) -> bytes:
        """Return a pong, or a close frame with the same code."""
        if frame.opcode == stream.PING:
            return stream.control(stream.PONG, frame.payload)
        return stream.control(stream.CLOSE, frame.payload[:2])


class EventStream:
    """Chunks of HTTP/1.1: lines of JSON, or Server-Sent Events.

    Their frames have the opcodes of WebSockets: `TEXT` for an event, `PING` for what is none, and `CLOSE` for
    the last chunk and the event before it.
    """

    path: str = "/events"
    accepted: int = 200
    pong: bytes = b""

    def __init__(self, accept: str, begin: bytes, data: bytes, keep_alive_bytes: int) -> None:
        self.keep_alive_bytes = keep_alive_bytes
        self._accept = accept
        # What the payload of an event begins with, and what its message comes behind.
        self._begin = begin
        self._data = data

    def request(self, host: str, path: str, query: Iterable[tuple[str, str]]) -> bytes:
        """Return a request to subscribe."""
        target = path + ("?" if (encoded := urlencode(list(query))) else "") + encoded
        return f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: {self._accept}\r\n\r\n".encode()

    def frames(self, data: bytes) -> tuple[list[Frame], int]:
        """Return the complete chunks at the start of `data`, and how many bytes they occupy."""
        found: list[Frame] = []
        position = 0
        while (frame := self.frame_at(data, position)) is not None:
            found.append(frame)
            position += self.size(frame.payload)
        return found, position

    def frame_at(self, data: bytes, start: int) -> Frame | None:
        """Return the chunk that begins at `start`; None if it is incomplete, or if none begins there."""
        end = data.find(b"\r\n", start, start + _HEAD_BYTES_MAX)
        try:
            stop = end + 2 + int(data[start:end], 16) if end > 0 else len(data)
        except ValueError:
            return None
        if stop + 2 > len(data):
            return None
        payload = data[end + 2 : stop]
        opcode = stream.TEXT if payload.startswith(self._begin) else stream.PING
        closing = not payload or payload.startswith(_CLOSE_EVENT)
        return Frame(stream.CLOSE if closing else opcode, payload, start)

    def starts(self, data: bytes, opcode: int) -> Iterator[int]:  # noqa: ARG002 - there is one for messages
        """Yield where the chunk of an event may begin. No message has a line end."""
        start = len(data)
        while (start := data.rfind(b"\r\n" + self._begin, 0, start)) >= 0:
            yield data.rfind(b"\n", 0, start) + 1

    def size(self, payload: bytes) -> int:
        """Return the bytes of the chunk of a payload."""
        return len(payload) + len(f"{len(payload):x}") + 4

    def message(self, payload: bytes) -> bytes:
        """Return the JSON of an event. Raises ValueError for what is no event."""
        return payload[payload.index(self._data) + len(self._data) :] if self._data else payload

    def answer(self, frame: Frame) -> bytes:  # noqa: ARG002 - part of the protocol
        """Return nothing: a client cannot answer."""
        return b""

    def close(self, payload: bytes) -> str:
        """Return the event that says why, as JSON."""
        return payload.removeprefix(_CLOSE_EVENT).decode(errors="replace").strip() or "the end of the body"


WEBSOCKET: Final = WebSocket()
TRANSPORTS: Final[dict[str, Transport]] = {
    "websocket": WEBSOCKET,
    "ndjson": EventStream("application/x-ndjson", b"{", b"", len(b"1\r\n \r\n")),
    "sse": EventStream("text/event-stream", b"id: ", b"\ndata: ", len(b"3\r\n:\n\n\r\n")),
}
