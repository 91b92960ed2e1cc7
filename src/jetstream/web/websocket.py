"""The server's side of the WebSocket protocol as pure code (RFC 6455): the handshake, and a client's frames.

`FrameReader` takes bytes as they come and gives messages, pings and closes. It holds no more than one
message and the bytes that were last fed; what breaks the protocol or a limit raises `Breach`. The server's
own frames are made in `hub.wires`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from hashlib import sha1
from struct import pack
from typing import Final, NamedTuple

from jetstream.delivery.subscriber import Close
from jetstream.web.budget import Budget
from jetstream.web.request import BadRequest, Request
from jetstream.web.response import SERVER

MESSAGE_BYTES_MAX: Final = 1_000_000  # an update of 10,000 DIDs has 360,000
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
VERSION: Final = "13"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_CONTROL_BYTES_MAX: Final = 125
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
_SHORT_BYTES: Final = 256  # up to here the arithmetic of one integer is the fastest way to unmask
_TABLES: Final = [bytes(byte ^ mask for byte in range(256)) for mask in range(256)]

NOT_WEBSOCKET: Final = Close(1002, "protocol", "not the WebSocket protocol")
UNMASKED: Final = Close(1002, "protocol", "a frame of the client is not masked")
TOO_BIG: Final = Close(1009, "message_too_big", f"a message is longer than {MESSAGE_BYTES_MAX} bytes")


class Breach(Exception):
    """A client broke the protocol or went over a limit: nothing more of it is read."""

    def __init__(self, close: Close) -> None:
        self.close = close
        super().__init__(close.text)


class Frame(NamedTuple):
    """A whole message (`TEXT` or `BINARY`) or a whole control frame, unmasked."""

    opcode: int
    data: bytes


def wants_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket."""
    headers = request.headers
    upgrades = "websocket" in headers.tokens("Upgrade") and "upgrade" in headers.tokens("Connection")
    return request.method == "GET" and upgrades


def accept(request: Request) -> bytes:
    """Return the answer to a handshake (RFC 6455, section 4.2).

    Raises BadRequest: 426 for another version of the protocol, 400 for HTTP/1.0 and for a bad key.
    """
    if not request.minor:
        raise BadRequest(400, "handshake", "a WebSocket needs HTTP/1.1")
    if request.headers.get("Sec-WebSocket-Version") != VERSION:
        raise BadRequest(426, "handshake", f"only version {VERSION} of the WebSocket protocol is spoken here")
    key = request.headers.get("Sec-WebSocket-Key", "").encode()
    if not _is_key(key):
        raise BadRequest(400, "handshake", "Sec-WebSocket-Key is not 16 bytes in base64")
    digest = b64encode(sha1(key + _GUID).digest())  # noqa: S324 - what the protocol asks for, and no secret
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + digest + b"\r\nServer: " + SERVER.encode() + b"\r\n\r\n"
    )


def _is_key(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == _KEY_BYTES
    except ValueError:
        return False


def pong_frame(data: bytes) -> bytes:
    """Return the answer to a ping."""
    return pack(">BB", 0x8A, len(data)) + data


def unmask(data: bytes, mask: bytes) -> bytes:
    """Return the payload of a client's frame (RFC 6455, section 5.3)."""
    size = len(data)
    if size <= _SHORT_BYTES:
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        return (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")
    plain = bytearray(size)
    for place in range(4):
        plain[place::4] = data[place::4].translate(_TABLES[mask[place]])
    return bytes(plain)


class FrameReader:
    """Takes the bytes of a client and gives its messages and control frames, within a budget."""

    __slots__ = ("_at", "_budget", "_buffer", "_message", "_opcode")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._buffer = bytearray()  # what came and has not been read
        self._at = 0  # up to where the buffer has been read; the rest moves down when more is fed
        self._opcode: int | None = None  # of the message whose first fragment was read, until its last one
        self._message = bytearray()  # what was read of that message

    def __len__(self) -> int:
        """How many bytes are held."""
        return len(self._buffer) - self._at + len(self._message)

    @property
    def in_message(self) -> bool:
        """Whether a message in fragments has begun and not ended."""
        return self._opcode is not None

    def feed(self, data: bytes) -> None:
        """Take what came."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def clear(self) -> None:
        """Forget what is held."""
        self._buffer = bytearray()
        self._message = bytearray()
        self._at = 0

    def next(self, now: float) -> Frame | None:
        """Read the next frame, at `now` in monotonic seconds; None when it is not whole.

        A fragment that does not end its message is a frame of opcode `CONTINUATION`, without data.
        Raises Breach.
        """
        buffer, at = self._buffer, self._at
        have = len(buffer) - at
        if have < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        length = second & 127
        self._check_head(first, second, length)
        head = 6 if length < 126 else 8 if length == 126 else 14
        if have < head:
            return None
        if length >= 126:
            length = int.from_bytes(buffer[at + 2 : at + head - 4], "big")
        if length + len(self._message) > MESSAGE_BYTES_MAX:
            raise Breach(TOO_BIG)
        if have < head + length:
            return None
        body = at + head
        data = unmask(bytes(buffer[body : body + length]), bytes(buffer[body - 4 : body]))
        self._at = body + length
        return self._frame(first, data, now)

    def _check_head(self, first: int, second: int, length: int) -> None:
        """Judge the first two bytes of a frame. Raises Breach (RFC 6455, section 5.2)."""
        opcode = first & 15
        if not second & 0x80:
            raise Breach(UNMASKED)
        if first & 0x70 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise Breach(NOT_WEBSOCKET)
        if opcode >= CLOSE:
            if length > _CONTROL_BYTES_MAX or not first & 0x80:
                raise Breach(NOT_WEBSOCKET)
        elif (opcode == CONTINUATION) != (self._opcode is not None):
            raise Breach(NOT_WEBSOCKET)

    def _frame(self, first: int, data: bytes, now: float) -> Frame:
        opcode, final = first & 15, first & 0x80
        if opcode >= CLOSE:
            self._budget.take_control(len(data), now)
            return Frame(opcode, _close_data(data) if opcode == CLOSE else data)
        if final and opcode != CONTINUATION:
            self._budget.take_message(len(data), now)
            return Frame(opcode, data)
        self._budget.take_fragment(len(data), now)
        return self._fragment(opcode, data, now, final=bool(final))

    def _fragment(self, opcode: int, data: bytes, now: float, *, final: bool) -> Frame:
        if opcode != CONTINUATION:
            self._opcode = opcode
        self._message += data
        if not final:
            return Frame(CONTINUATION, b"")
        assert self._opcode is not None
        self._budget.take_message(0, now)
        whole = Frame(self._opcode, bytes(self._message))
        self._opcode, self._message = None, bytearray()
        return whole


def _close_data(data: bytes) -> bytes:
    """Return what a close frame holds. Raises Breach for a code or reason that may not be sent."""
    if not data:
        return data
    code = int.from_bytes(data[:2], "big")
    if len(data) < 2 or not (code in _CLOSE_CODES or 3000 <= code <= 4999):
        raise Breach(NOT_WEBSOCKET)
    try:
        data[2:].decode()
    except UnicodeDecodeError:
        raise Breach(NOT_WEBSOCKET) from None
    return data
