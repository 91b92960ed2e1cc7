"""The head of an HTTP request: pure and bounded. h11 parses it; the limits are ours.

`HeadReader` takes bytes as they come and gives whole heads as `Request`s. Each line is checked for size and
for control characters as soon as it is there, so that what is no HTTP or too long is refused at once. A head
that is whole goes to h11, which is strict (RFC 9112, sections 2 to 6). Only requests without a body are
served: no route has a use for one.

Limits: the request line must hold 10,000 DIDs; header fields have the sizes that `wire.md` gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import h11

REQUEST_LINE_BYTES_MAX: Final = 1 << 20
FIELD_BYTES_MAX: Final = 16 << 10
FIELDS_BYTES_MAX: Final = 64 << 10
FIELDS_MAX: Final = 100  # browsers and proxies send some dozens
METHOD_BYTES_MAX: Final = 32
EMPTY_LINES_MAX: Final = 2  # before a request: old clients end a body with one (RFC 9112, section 2.2)
PATH_BYTES_MAX: Final = 1_000  # no route is nearly as long

_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}( |$)").match
_REQUEST_LINE: Final = re.compile(rb"[^ ]+ [\x21-\x7e]+ HTTP/([0-9]\.[0-9])").fullmatch
_FIELD: Final = re.compile(rb"[^\s:]+:[\t\x20-\x7e\x80-\xff]*").fullmatch  # h11 takes folds and controls
_HOST: Final = re.compile(r"[a-zA-Z0-9.:_%\[\]-]{1,255}").fullmatch
_AUTHORITY: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE).match


class BadRequest(Exception):
    """A request that is not served. The connection ends with the answer: `status` and one sentence.

    `reason` is one of `metrics.BAD_REQUEST_REASONS`.
    """

    def __init__(self, status: int, reason: str, text: str) -> None:
        self.status = status
        self.reason = reason
        self.text = text
        super().__init__(text)


class Headers(Mapping[str, str]):
    """Header fields by name, in any case. Of a field that is repeated, the values are joined by commas."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, str] | None = None) -> None:
        self._values = values or {}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def tokens(self, name: str) -> set[str]:
        """Return the words of a field that is a list of words, in lower case."""
        return {word.strip().lower() for word in self.get(name, "").split(",")}


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. `path` is decoded, `query` is as it came, `minor` is that of HTTP/1.`minor`."""

    method: str
    path: str
    query: str
    minor: int
    headers: Headers

    @property
    def host(self) -> str:
        """The host and port that the client connected to, as it says."""
        return self.headers.get("Host", "localhost")

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request (RFC 9112, section 9.3)."""
        connection = self.headers.tokens("Connection")
        return "close" not in connection if self.minor else "keep-alive" in connection


class HeadReader:
    """Takes the bytes of a connection and gives its requests, one after another.

    Chunking does not matter. After `BadRequest` the reader is not used any more.
    """

    __slots__ = ("_buffer", "_empty_lines", "_fields", "_fields_at", "_line_at", "_line_seen")

    def __init__(self) -> None:
        self._buffer = bytearray()  # all that came and is not of a request that was given
        self._line_at = 0  # where the line begins that is not whole yet
        self._line_seen = 0  # up to where its end has been looked for
        self._fields_at = 0  # where the fields begin; 0 until the request line is whole
        self._fields = 0  # how many of them are whole
        self._empty_lines = 0  # how many came before the request line

    def __len__(self) -> int:
        """How many bytes are held."""
        return len(self._buffer)

    @property
    def begun(self) -> bool:
        """Whether a part of a request is there."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data

    def rest(self) -> bytes:
        """Return what came after the last request, and forget it."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def next(self) -> Request | None:
        """Return the next whole request, None when there is none yet. Raises BadRequest."""
        while (line := self._line()) is not None:
            if not self._fields_at:
                self._begin(line)
            elif line:
                self._field(line)
            else:
                return _parsed(self._head())
        return None

    def _line(self) -> bytes | None:
        """Return the next line without its end; None when it is not whole. Raises BadRequest."""
        end = self._buffer.find(b"\n", self._line_seen)
        length = (end if end >= 0 else len(self._buffer)) - self._line_at
        self._check_length(length)
        if end < 0:
            self._line_seen = len(self._buffer)
            return None
        line = bytes(self._buffer[self._line_at : end])
        if not line.endswith(b"\r"):
            raise BadRequest(400, "malformed", "a line of the request does not end in CR LF")
        self._line_at = self._line_seen = end + 1
        return line[:-1]

    def _begin(self, line: bytes) -> None:
        if line:
            _check_request_line(line)
            self._fields_at = self._line_at
        elif self._empty_lines == EMPTY_LINES_MAX:
            raise BadRequest(400, "malformed", "empty lines are not an HTTP request")
        else:
            self._empty_lines += 1
            self._head()

    def _check_length(self, length: int) -> None:
        if not self._fields_at:
            _check_method(self._buffer, self._line_at, length)
            if length > REQUEST_LINE_BYTES_MAX:
                text = f"the request line is longer than {REQUEST_LINE_BYTES_MAX} bytes"
                raise BadRequest(414, "too_long", text)
        elif length > FIELD_BYTES_MAX:
            raise BadRequest(431, "too_long", f"a header field is longer than {FIELD_BYTES_MAX} bytes")
        elif self._line_at - self._fields_at + length > FIELDS_BYTES_MAX:
            text = f"the header fields are longer than {FIELDS_BYTES_MAX} bytes together"
            raise BadRequest(431, "too_long", text)

    def _field(self, line: bytes) -> None:
        if not _FIELD(line):
            raise BadRequest(400, "malformed", f"{_shown(line)} is not a header field")
        if self._fields == FIELDS_MAX:
            raise BadRequest(431, "too_long", f"there are more than {FIELDS_MAX} header fields")
        self._fields += 1

    def _head(self) -> bytes:
        """Take the lines that have been read out of the buffer."""
        head = bytes(self._buffer[: self._line_at])
        del self._buffer[: self._line_at]
        if self._fields_at:
            self._empty_lines = 0
        self._line_at = self._line_seen = self._fields_at = self._fields = 0
        return head


def _check_method(buffer: bytearray, start: int, length: int) -> None:
    """Refuse what does not begin as a request does, before its line is whole."""
    begun = bytes(buffer[start : start + min(length, METHOD_BYTES_MAX + 1)])
    if begun and begun not in (b"\r", b"\r\n") and not _METHOD(begun):
        raise BadRequest(400, "malformed", f"{_shown(begun)} does not begin an HTTP request")


def _check_request_line(line: bytes) -> None:
    """Refuse a line that is none, and other versions of HTTP, before the fields come."""
    found = _REQUEST_LINE(line)
    if found is None:
        raise BadRequest(400, "malformed", f"{_shown(line)} is not a request line of HTTP/1.1")
    if found[1] not in (b"1.0", b"1.1"):
        raise BadRequest(505, "version", f"HTTP/{found[1].decode()} is not spoken here: use HTTP/1.1")


def _parsed(head: bytes) -> Request:
    """Return the request of a whole head. Raises BadRequest."""
    parser = h11.Connection(h11.SERVER)  # one for each: no more than a head is ever given to it
    parser.receive_data(head)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError as error:
        reason = "body" if error.error_status_hint == 501 else "malformed"
        raise BadRequest(
            error.error_status_hint, reason, f"HTTP/1.1: {_shown(str(error).encode())}"
        ) from None
    assert isinstance(event, h11.Request)
    return _request(event)


def _request(event: h11.Request) -> Request:
    method, minor = event.method.decode(), int(event.http_version[2:])
    headers = Headers(_joined(event.headers))
    # The answer to another method is 405, which ends the connection and says more.
    if method in ("GET", "HEAD") and (
        "Transfer-Encoding" in headers or int(headers.get("Content-Length", 0))
    ):
        raise BadRequest(413, "body", "a request has no body here: send none")
    if not _HOST(headers.get("Host", "" if minor else "localhost")):
        raise BadRequest(400, "malformed", "the request has no Host field that names a host")
    path, query = _split(event.target.decode())
    return Request(method, path, query, minor, headers)


def _joined(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the fields by name, in lower case; the values of a repeated one are joined."""
    values: dict[str, str] = {}
    for each, value in fields:
        name, text = each.decode(), value.decode("latin-1")
        values[name] = f"{values[name]}, {text}" if name in values else text
    return values


def _split(target: str) -> tuple[str, str]:
    """Return the path and the query of a target, in absolute form, too (RFC 9112, section 3.2)."""
    authority = _AUTHORITY(target)
    if authority is not None:
        target = target[authority.end() :] or "/"
    path, _, query = target.partition("#")[0].partition("?")
    return unquote(path[:PATH_BYTES_MAX]) or "/", query


def _shown(data: bytes) -> str:
    """Return the beginning of what a client sent, as a person can read it, in at most 100 characters."""
    text = ascii(data[:40].decode("latin-1"))
    return text[:96] + "…" if len(text) > 97 or len(data) > 40 else text
