"""WebSocket bytes, both ways, without sockets: handshakes, and whole frames out of a stream.

Source: RFC 6455. Bytes only: what is read here may come in any pieces.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from hashlib import sha1
from typing import Final, NamedTuple
from urllib.parse import urlencode

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY: Final = "AAAAAAAAAAAAAAAAAAAAAA=="  # any will do: no cache stands between a bench and its server
_MAGIC: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_END: Final = b"\r\n\r\n"


class Frame(NamedTuple):
    """A whole frame: its opcode, its payload, and where in the bytes given the frame begins."""

    opcode: int
    payload: bytes
    start: int


def accept_key(key: str) -> str:
    """Return what a server answers to a client's key (section 4.2.2)."""
    return base64.b64encode(sha1((key + _MAGIC).encode(), usedforsecurity=False).digest()).decode()


def request(host: str, path: str, query: Iterable[tuple[str, str]]) -> bytes:
    """Write a request to subscribe."""
    target = path + ("?" if (encoded := urlencode(list(query))) else "") + encoded
    return (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def response(head: bytes) -> bytes:
    """Write the answer to a request to upgrade. Raises ValueError where it has no key."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(header(head, 'sec-websocket-key'))}\r\n\r\n"
    ).encode()


def split_head(data: bytes) -> tuple[bytes, bytes] | None:
    """Return the head of a request or an answer, and what follows it; None while it is not whole."""
    head, end, rest = data.partition(_END)
    return (head, rest) if end else None


def status(head: bytes) -> int:
    """Return the status of an answer; 0 for what is no answer."""
    parts = head.split(b" ", 2)
    return int(parts[1]) if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit() else 0


def header(head: bytes, name: str) -> str:
    """Return the value of a header. Raises ValueError where there is none."""
    for line in head.decode("latin-1").split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    raise ValueError(f"no {name} in the head")


def frame_at(data: bytes, start: int) -> Frame | None:
    """Return the unmasked frame that begins at `start`; None while it is not whole."""
    if start + 2 > len(data):
        return None
    first, length = start + 2, data[start + 1]
    if length > 125:
        first += 2 if length == 126 else 8
        length = int.from_bytes(data[start + 2 : first], "big")
    stop = first + length
    return None if stop > len(data) else Frame(data[start] & 15, data[first:stop], start)


def frames(data: bytes) -> tuple[list[Frame], int]:
    """Return the whole unmasked frames at the head of `data`, and how many bytes they take."""
    found: list[Frame] = []
    position, size = 0, len(data)
    # As `frame_at` does it, without a call for each: this is half of what checking a message costs.
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
    """Return how long the head of an unmasked frame of `size` bytes is."""
    return 2 if size < 126 else 4 if size < 1 << 16 else 10


def control(opcode: int, payload: bytes = b"", *, masked: bool) -> bytes:
    """Write a control frame; a client's are masked, here with zeros, which change nothing."""
    if masked:
        return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload
    return bytes((0x80 | opcode, len(payload))) + payload


def unmask(data: bytes) -> tuple[int, bytes] | None:
    """Return opcode and payload of a client's short frame at the head of `data`; None unless it is whole."""
    if len(data) < 6 or len(data) < 6 + (data[1] & 127):
        return None
    mask, payload = data[2:6], data[6 : 6 + (data[1] & 127)]
    return data[0] & 15, bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))
