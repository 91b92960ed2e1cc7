"""The client's side of WebSocket (RFC 6455) as bytes: the request, and the frames of a stream. Pure.

It shares no code with the server that it tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import urlencode

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY: Final = (
    "AAAAAAAAAAAAAAAAAAAAAA=="  # random for browsers, because of proxies that cache; here it need not be
)
_END: Final = b"\r\n\r\n"


class Frame(NamedTuple):
    """A complete frame."""

    opcode: int
    payload: bytes
    start: int  # where the frame begins in the bytes given


def request(host: str, path: str, query: Iterable[tuple[str, str]]) -> bytes:
    """Return a request to subscribe."""
    target = path + ("?" if (encoded := urlencode(list(query))) else "") + encoded
    return (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the head of a request or response and what follows it; None if it is incomplete."""
    head, end, rest = data.partition(_END)
    return (head, rest) if end else None


def status(head: bytes) -> int:
    """Return the status of a response; 0 if it is not a response."""
    parts = head.split(b" ", 2)
    return int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit() else 0


def frame_at(data: bytes, start: int) -> Frame | None:
    """Return the unmasked frame that begins at `start`; None if it is incomplete."""
    if start + 2 > len(data):
        return None
    first, length = start + 2, data[start + 1]
    if length > 125:
        first += 2 if length == 126 else 8
        length = int.from_bytes(data[start + 2 : first], "big")
    stop = first + length
    return None if stop > len(data) else Frame(data[start] & 15, data[first:stop], start)


def frames(data: bytes) -> tuple[list[Frame], int]:
    """Return the complete unmasked frames at the start of `data`, and how many bytes they occupy."""
    found: list[Frame] = []
    position, size = 0, len(data)
    # The same as `frame_at`, inlined: this is half of the cost of checking a message.
    while position + 2 <= size:
        first, length = position + 2, data[position + 1]
        if length == 126:
            first += 2
            length = int.from_bytes(data[position + 2 : first], "big")
        elif length == 127:
            first += 8
            length = int.from_bytes(data[position + 2 : first], "big")
        stop = first + length
        if stop > size:
            break
        found.append(Frame(data[position] & 15, data[first:stop], position))
        position = stop
    return found, position


def head_bytes(size: int) -> int:
    """Return the size of the head of an unmasked frame with a payload of `size` bytes."""
    return 2 if size < 126 else 4 if size < 1 << 16 else 10


def control(opcode: int, payload: bytes = b"") -> bytes:
    """Return a client's control frame. The mask is zero, so the payload is unchanged."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def close_words(payload: bytes) -> str:
    """Return the code and the reason of a close frame as text."""
    code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
    return f"{code} {payload[2:].decode(errors='replace')}".strip()
