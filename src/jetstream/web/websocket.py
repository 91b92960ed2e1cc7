"""The server's side of the WebSocket protocol (RFC 6455): the handshake, and a client's frames. Pure.

`FrameReader` takes bytes as they come and returns messages, pings and close frames. It holds no more than one
message and the bytes that were last fed. What breaks the protocol or a size limit raises `Breach`, as soon as
the head of the frame has come; so does what breaks a rate limit (`RateLimiter`), once the frame is complete.

A client's frame (section 5.2), always masked:

    byte 0    FIN, three reserved bits (0: no extension is agreed on), opcode
    byte 1    MASK (1), length: 0 to 125, or 126: in the next two bytes, 127: in the next eight
    …         length, if it is longer than 125
    4 bytes   masking key
    …         payload, each byte exclusive-or that of the key

The server's own frames are made in delivery, apart from the pong.

    1002   the protocol is broken         sections 5.1, 5.2, 5.5 and 7.4
    1008   a rate limit is exceeded
    1009   a message is too long

These are the codes of a `Breach`. What a message says is not looked at here, nor whether a text is UTF-8:
that is left to the `Dialect`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha1
from struct import pack
from typing import Final, NamedTuple

from jetstream.delivery.framing.websocket import BINARY, TEXT
from jetstream.delivery.subscriber import Close
from jetstream.limits import WebLimits
from jetstream.token_bucket import TokenBucket
from jetstream.web.http import SERVER, BadRequest, Request

# What clients are promised: an update of 10,000 DIDs has 360,000 bytes.
MESSAGE_BYTES_MAX: Final = 1_000_000
# The numbers of RFC 6455: sections 1.3, 4.1, 5.2, 5.5, and 7.4 with the registry of close codes.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==").fullmatch  # 16 bytes in base64
VERSION: Final = "13"
# The head of the response that accepts a handshake, up to what depends on the request.
_ACCEPTED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Server: " + SERVER.encode() + b"\r\nSec-WebSocket-Accept: "
)

CONTINUATION, CLOSE, PING, PONG = 0, 8, 9, 10  # TEXT and BINARY are also what the server sends
# The payload of a control frame (section 5.5).
_CONTROL_BYTES_MAX: Final = 125
# Below 3000, the codes that may be sent. Those from 3000 to 4999 are for libraries and applications.
_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
_SHORT_BYTES: Final = 256  # up to here, exclusive-or of two integers is the fastest way to unmask
# Of each byte of a masking key: what it makes of every byte, for `bytes.translate`.
_TABLES: Final = [bytes(byte ^ mask for byte in range(256)) for mask in range(256)]

NOT_WEBSOCKET: Final = Close(1002, "protocol", "not the WebSocket protocol: use a WebSocket client")
UNMASKED: Final = Close(1002, "protocol", "a frame of the client is not masked: mask every frame")
TOO_BIG: Final = Close(
    1009, "message_too_big", f"a message is longer than {MESSAGE_BYTES_MAX} bytes: send less"
)


class Breach(Exception):
    """A client broke the protocol, a size or a rate limit; `close` is what its connection is closed with.

    The reader must not be used after it.
    """

    def __init__(self, close: Close) -> None:
        # Sent to the client as a close frame, and counted by its label.
        self.close = close
        super().__init__(close.text)


class Frame(NamedTuple):
    """A complete message (`TEXT` or `BINARY`), or a control frame, unmasked.

    A fragment that does not complete its message is one of opcode `CONTINUATION`, without data.
    """

    # The opcode; of a message, that of its first fragment.
    opcode: int
    # The whole message, or the payload of a control frame.
    data: bytes


def wants_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket, in whatever version of the protocol.

    A GET with the fields `Upgrade` and `Connection` (section 4.2.1). `accept` checks the others.
    """
    upgrades = "websocket" in request.tokens("upgrade") and "upgrade" in request.tokens("connection")
    return request.method == "GET" and upgrades


def accept(request: Request, fields: Mapping[str, str]) -> bytes:
    """Return the response that accepts a handshake (RFC 6455, section 4.2), with more header fields.

    Raises BadRequest: 426 for another version of the protocol, 400 for HTTP/1.0 and for a bad key.

    Extensions that a client offers are not agreed on, and so not named. The response ends the HTTP part of
    the connection: the server's frames follow it.
    """
    if not request.minor:
        raise BadRequest(400, "handshake", "a WebSocket needs HTTP/1.1: connect with it")
    if request.headers.get("sec-websocket-version") != VERSION:
        text = f"only version {VERSION} of the WebSocket protocol is spoken here"
        headers = {"Upgrade": "websocket", "Sec-WebSocket-Version": VERSION}
        raise BadRequest(426, "handshake", text, headers)
    key = request.headers.get("sec-websocket-key", "").encode()
    if not _KEY(key):
        raise BadRequest(400, "handshake", "Sec-WebSocket-Key is not 16 bytes in base64")
    digest = b64encode(sha1(key + _GUID).digest())  # noqa: S324 - required by the protocol, and not a secret
    more = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    return _ACCEPTED + digest + b"\r\n" + more.encode() + b"\r\n"


def pong_frame(data: bytes) -> bytes:
    """Return the frame that answers a ping; `data` is the payload of the ping, at most 125 bytes.

    It is not masked, as no frame of a server is (section 5.1).
    """
    return pack(">BB", 0x8A, len(data)) + data


def unmask(data: bytes, mask: bytes) -> bytes:
    """Return the payload of a client's frame (RFC 6455, section 5.3).

    Of a long payload, each fourth byte is translated with the table of one byte of the key: 360 kB take
    0.3 ms, and 1.1 ms by exclusive-or of two integers.

    `mask` is the key of 4 bytes. The result is a copy.
    """
    size = len(data)
    if size <= _SHORT_BYTES:
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        return (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")
    plain = bytearray(size)
    for place in range(4):
        plain[place::4] = data[place::4].translate(_TABLES[mask[place]])
    return bytes(plain)


class RateLimiter:
    """What one client may still send: a token bucket for each kind of thing.

    A client sends pongs, pings and updates of its options. The server promises to take 10 updates a second
    with 100 DIDs each, one a second with 10,000 DIDs, and 10 pings a second. The rates in `WebLimits` are a
    few times that. A burst is what a client may have sent while its network, or the server, did not move for
    some seconds.

    Each frame takes a token of its kind, and its size in bytes. Each method raises Breach when there are too
    few. `now` is in monotonic seconds and never falls.
    """

    __slots__ = ("_bytes", "_control", "_fragments", "_messages")

    def __init__(self, now: float, limits: WebLimits = WebLimits()) -> None:
        # One bucket for each rate of `WebLimits`.
        self._messages = TokenBucket(*limits.messages, now)
        # Payload bytes of all frames.
        self._bytes = TokenBucket(*limits.message_bytes, now)
        self._control = TokenBucket(*limits.control_frames, now)
        self._fragments = TokenBucket(*limits.fragments, now)

    def take_message(self, size: int, now: float) -> None:
        """Take a message whose last frame has `size` bytes."""
        self._take(self._messages, "messages", size, now)

    def take_control(self, size: int, now: float) -> None:
        """Take a ping, a pong or a close frame."""
        self._take(self._control, "control frames", size, now)

    def take_fragment(self, size: int, now: float) -> None:
        """Take a fragment of a message. The message itself is taken when it is complete."""
        self._take(self._fragments, "fragments", size, now)

    def _take(self, bucket: TokenBucket, what: str, size: int, now: float) -> None:
        """Take one token of a bucket, and one for each byte.

        `what` is the kind of frames, in the plural, for the client. A frame whose bytes are too many has
        lost its token all the same, which does not matter: the connection ends.
        """
        if not bucket.spend(now):
            raise _flood(what)
        if not self._bytes.spend(now, size):
            raise _flood("bytes")


def _flood(what: str) -> Breach:
    """Return the breach of a client that has sent too much of a kind of things."""
    return Breach(Close(1008, "flood", f"flood: more {what} than a client may send: send less"))


class FrameReader:
    """Takes the bytes of a client, in pieces of any size, and returns its messages and control frames.

    Each frame takes tokens of a `RateLimiter`, which is full before the first one.

    It does no I/O and has no clock: `next` is told the time. The caller bounds what is held, by pausing
    the socket while frames wait.
    """

    __slots__ = ("_at", "_buffer", "_limits", "_message", "_opcode", "_rate_limiter")

    def __init__(self, limits: WebLimits = WebLimits()) -> None:
        # Used when the rate limiter is made.
        self._limits = limits
        # Made for the first frame: most clients send none before their first pong.
        self._rate_limiter: RateLimiter | None = None
        # What came, from a frame's start on; frames that were read go with `feed`.
        self._buffer = bytearray()
        # Start of the next frame in the buffer.
        self._at = 0
        # Of the message that has begun in fragments; None between two.
        self._opcode: int | None = None
        # Payload of the fragments of that message.
        self._message = bytearray()

    def __len__(self) -> int:
        """How many bytes are held."""
        return len(self._buffer) - self._at + len(self._message)

    @property
    def in_message(self) -> bool:
        """Whether a message in fragments has begun and is not complete."""
        return self._opcode is not None

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection.

        Frames that were read before are removed from the buffer here, once for all of them.
        """
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def clear(self) -> None:
        """Release what is held. Nothing more is read.

        Called when the connection fails or has gone: its memory is free at once.
        """
        self._buffer = bytearray()
        self._message = bytearray()
        self._at = 0

    def next(self, now: float) -> Frame | None:
        """Return the next frame; None when it is not complete. `now` is in monotonic seconds.

        Raises Breach.

        To be called again until it returns None. The length is checked before the payload has come, so a
        client cannot make the server hold more than one message.
        """
        buffer, at = self._buffer, self._at
        # The payload begins behind two bytes, up to eight of an extended length, and four of the key.
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
        return self._take(first, data, now)

    def _check_head(self, first: int, second: int, length: int) -> None:
        """Check the first two bytes of a frame (RFC 6455, section 5.2). Raises Breach.

        `length` is that of the second byte: more than 125 is not allowed for control frames, which may not
        be fragments either (section 5.5). A continuation needs a message that has begun, and a new message
        needs that there is none (section 5.4).
        """
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

    def _take(self, first: int, data: bytes, now: float) -> Frame:
        """Take the tokens of a frame, and return what it is. Raises Breach.

        The last fragment takes a token of a fragment and one of a message; its bytes count once.
        """
        opcode, final = first & 15, first & 0x80
        if self._rate_limiter is None:
            self._rate_limiter = RateLimiter(now, self._limits)
        if opcode >= CLOSE:
            self._rate_limiter.take_control(len(data), now)
            return Frame(opcode, _close_data(data) if opcode == CLOSE else data)
        if final and opcode != CONTINUATION:
            self._rate_limiter.take_message(len(data), now)
            return Frame(opcode, data)
        self._rate_limiter.take_fragment(len(data), now)
        if opcode != CONTINUATION:
            self._opcode = opcode
        self._message += data
        if not final:
            return Frame(CONTINUATION, b"")
        assert self._opcode is not None
        self._rate_limiter.take_message(0, now)
        message = Frame(self._opcode, bytes(self._message))
        self._opcode, self._message = None, bytearray()
        return message


def _close_data(data: bytes) -> bytes:
    """Check the payload of a close frame, and return it (RFC 6455, sections 5.5.1 and 7.4). Raises Breach.

    A payload has a code of two bytes and a reason in UTF-8.
    """
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
