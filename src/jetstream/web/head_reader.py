"""Bytes to requests of HTTP/1.1, bounded and strict, without I/O. Pure.

`HeadReader` takes bytes as they come and returns a `Request` for each complete head (RFC 9112, sections 2 to
6). It checks each line as soon as it is complete, and an incomplete one for its length and its first bytes.
So it refuses what is not HTTP, or too long, without waiting for more. A complete head is checked for what its
fields say together. Every problem raises `BadRequest`. A test compares it with h11, which is strict.

A POST to a path that takes a body may have one, whose length is given beforehand and bounded. Any other body
is refused: one that is not read would be taken for the next request.

    400 malformed   no HTTP, a line without CR LF, an illegal character, no Host or two of them
    411, 413, 501   a body: without its length, too long or not expected, in an unknown coding
    414, 431        a request line, a header field or all of them are too long, or there are too many
    505             another version than HTTP/1.0 and HTTP/1.1

Header fields that are folded (RFC 9112, section 5.2) and chunked bodies are refused. There are no
trailers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote

from jetstream.limits import WebLimits
from jetstream.web.http import BadRequest, Request, is_host

# What clients are promised: a request line with 10,000 DIDs fits.
REQUEST_LINE_BYTES_MAX: Final = 1 << 20
FIELD_BYTES_MAX: Final = 16 << 10  # of one header field
FIELDS_BYTES_MAX: Final = 64 << 10  # of all header fields of a request
METHOD_BYTES_MAX: Final = 32  # twice the length of the longest method that is registered
EMPTY_LINES_MAX: Final = 2  # before a request: old clients end a body with one (RFC 9112, section 2.2)
PATH_CHARS_MAX: Final = 1_000  # the rest of a path is ignored: no route is nearly as long

# Of a listener without uploads.
NO_BODIES: Final[Mapping[str, int]] = {}

# A character of a method or of a field's name; a target without spaces or controls; a value without controls.
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_TARGET: Final = rb"[\x21-\x7e]+"
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*"
# A method and the space after it, or as much of it as has come.
_METHOD: Final = re.compile(_TOKEN + rb"{1,32}( |$)").match
# A method, a target, and a version.
_REQUEST_LINE: Final = re.compile(rb"[^ ]+ " + _TARGET + rb" HTTP/([0-9]\.[0-9])").fullmatch
# A name, a colon directly behind it, and a value. A folded line begins with a space.
_FIELD: Final = re.compile(_TOKEN + rb"+:" + _VALUE).fullmatch
# A whole head of such lines.
_HEAD: Final = re.compile(
    _TOKEN + rb"{1,32} " + _TARGET + rb" HTTP/1\.[01]\r\n"
    rb"(?:" + _TOKEN + rb"+:" + _VALUE + rb"\r\n)*\r\n"
).match
# What stands before a secret.
_SECRET: Final = re.compile(rb"authorization|access_token", re.IGNORECASE).search
# The value of Content-Length: a number, or the same number again and again (RFC 9112, section 6.3).
_LENGTH: Final = re.compile(r"([0-9]{1,20})(?:[ \t]*,[ \t]*\1)*", re.ASCII).fullmatch
# The first part of a target in absolute form, as proxies send it.
_AUTHORITY: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE).match


class HeadReader:
    """Takes the bytes of a connection, in pieces of any size, and returns its requests one after another.

    `bodies` are the paths to which a POST may have a body, with the most bytes of one. It must not be used
    after it has raised `BadRequest`.
    """

    # The buffer holds one head that is not complete, and what came behind it. Offsets are in the buffer:
    #
    #     GET / HTTP/1.1 CRLF  Host: x CRLF  User-Ag
    #     0                    _fields_at    _line_at … _searched
    __slots__ = (
        *("_bodies", "_body_bytes", "_buffer", "_empty_lines", "_fields"),
        *("_fields_at", "_fields_max", "_line_at", "_request", "_searched"),
    )

    def __init__(self, limits: WebLimits = WebLimits(), bodies: Mapping[str, int] = NO_BODIES) -> None:
        self._fields_max = limits.header_fields_max
        self._bodies = bodies
        # What came and is not part of a request that was returned.
        self._buffer = bytearray()
        # Start of the first line that is not complete.
        self._line_at = 0
        # Up to here there is no end of that line.
        self._searched = 0
        # Start of the header fields; 0 until the request line is complete.
        self._fields_at = 0
        # How many header fields are complete.
        self._fields = 0
        # How many came before the request line.
        self._empty_lines = 0
        # The request whose head is complete and whose body is not, and the length of that body.
        self._request: Request | None = None
        self._body_bytes = 0

    def __len__(self) -> int:
        """How many bytes are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection.

        It is not parsed here: `next` does that. The caller bounds how much it feeds by pausing the socket.
        """
        self._buffer += data

    def rest(self) -> bytes:
        """Return what came after the last request.

        Called once, when another protocol takes the connection over.
        """
        return bytes(self._buffer)

    def next(self) -> Request | None:
        """Return the next request; None when it is not complete. Raises BadRequest.

        After None, it is to be called again when more has been fed. After a request, it may be called at
        once for one that came with it.
        """
        if self._request is None and (head := self._whole_head() or self._head_of_lines()) is not None:
            self._empty_lines = 0
            self._request = _parse(head)
            self._body_bytes = _body_bytes(self._request, self._bodies)
        return self._take_request()

    def _whole_head(self) -> bytes | None:
        """Take a short head that is there as a whole, as nearly all are, if it is valid; else None.

        To check the lines one by one takes five times as long.
        """
        found = None if self._searched else _HEAD(self._buffer)
        if found is None or (end := found.end()) > FIELD_BYTES_MAX:
            return None
        if self._buffer.count(b"\n", 0, end) - 2 > self._fields_max:
            return None
        self._line_at = end
        return self._cut_head()

    def _head_of_lines(self) -> bytes | None:
        """Check the lines that have come. Take the head with its last one; None before. Raises BadRequest."""
        while (line := self._next_line()) is not None:
            if not self._fields_at:
                self._take_request_line(line)
            elif line:
                self._take_field(line)
            else:
                return self._cut_head()
        return None

    @property
    def in_request(self) -> bool:
        """Whether a part of the next request has come.

        Its end then has a deadline; between two requests a client may take longer.
        """
        return len(self._buffer) > 0 or self._request is not None

    @property
    def continues(self) -> bool:
        """Whether the client waits to be told to send its body (RFC 9110, section 10.1.1).

        A client that has sent a part of the body already is not told any more: it does not wait.
        """
        request = self._request
        return request is not None and not self._buffer and "100-continue" in request.tokens("expect")

    def _take_request(self) -> Request | None:
        """Return the request whose head is complete with its body; None when that is not complete.

        The body is copied out of the buffer, and the head of the next request begins behind it.
        """
        request, size = self._request, self._body_bytes
        if request is None or len(self._buffer) < size:
            return None
        self._request, self._body_bytes = None, 0
        if size:
            request = request._replace(body=bytes(self._buffer[:size]))
            del self._buffer[:size]
        return request

    def _next_line(self) -> bytes | None:
        """Return the next line without its end; None when it is not complete. Raises BadRequest.

        The search for the end goes on where it stopped at the last call, so a line that comes byte by byte
        takes linear time.
        """
        end = self._buffer.find(b"\n", self._searched)
        length = (end if end >= 0 else len(self._buffer)) - self._line_at
        self._check_length(length)
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[self._line_at : end])
        if not line.endswith(b"\r"):
            raise BadRequest(400, "malformed", "a line of the request does not end in CR LF")
        self._line_at = self._searched = end + 1
        return line[:-1]

    def _take_request_line(self, line: bytes) -> None:
        """Check a complete request line, or skip an empty line before it. Raises BadRequest.

        At most `EMPTY_LINES_MAX` of them are skipped.
        """
        if line:
            _check_request_line(line)
            self._fields_at = self._line_at
        elif self._empty_lines == EMPTY_LINES_MAX:
            raise BadRequest(400, "malformed", "empty lines are not an HTTP request")
        else:
            self._empty_lines += 1
            self._cut_head()

    def _check_length(self, length: int) -> None:
        """Check the line at `_line_at`, of which `length` bytes have come. Raises BadRequest.

        It may be incomplete. The first bytes of a request line tell a client that speaks another protocol,
        such as TLS, before its line is complete: it may wait for an answer and never send one.
        """
        if not self._fields_at:
            first = bytes(self._buffer[self._line_at : self._line_at + min(length, METHOD_BYTES_MAX + 1)])
            if first and first not in (b"\r", b"\r\n") and not _METHOD(first):
                raise BadRequest(400, "malformed", f"{_shown(first)} does not begin an HTTP request")
            if length > REQUEST_LINE_BYTES_MAX:
                most = f"the request line is longer than {REQUEST_LINE_BYTES_MAX} bytes"
                text = f"{most}: send a long filter as an options_update"
                raise BadRequest(414, "too_long", text)
        elif length > FIELD_BYTES_MAX:
            raise BadRequest(
                431, "too_long", f"a header field is longer than {FIELD_BYTES_MAX} bytes: shorten it"
            )
        elif self._line_at - self._fields_at + length > FIELDS_BYTES_MAX:
            text = f"the header fields are longer than {FIELDS_BYTES_MAX} bytes together: send fewer"
            raise BadRequest(431, "too_long", text)

    def _take_field(self, line: bytes) -> None:
        """Check and count a complete header field. Raises BadRequest.

        What the fields mean is not looked at before the head is complete.
        """
        if not _FIELD(line):
            raise BadRequest(400, "malformed", f"{_shown(line)} is not a header field")
        if self._fields == self._fields_max:
            raise BadRequest(
                431, "too_long", f"there are more than {self._fields_max} header fields: send fewer"
            )
        self._fields += 1

    def _cut_head(self) -> bytes:
        """Remove the lines that were read from the buffer, and return them.

        Offsets begin at 0 again.
        """
        head = bytes(self._buffer[: self._line_at])
        del self._buffer[: self._line_at]
        self._line_at = self._searched = self._fields_at = self._fields = 0
        return head


def _check_request_line(line: bytes) -> None:
    """Refuse what is not a request line, and other versions of HTTP, before the header fields come.

    The method is any token: whether a path knows it is decided later. A head of the PROXY protocol gets a
    sentence of its own, as it means a wrong setting.
    """
    found = _REQUEST_LINE(line)
    if found is None and line.startswith(b"PROXY "):
        text = "the PROXY protocol is not expected: see --proxy-protocol and --trusted-proxies"
        raise BadRequest(400, "malformed", text)
    if found is None:
        raise BadRequest(400, "malformed", f"{_shown(line)} is not a request line of HTTP/1.1")
    if found[1] not in (b"1.0", b"1.1"):
        raise BadRequest(505, "version", f"HTTP/{found[1].decode()} is not spoken here: use HTTP/1.1")


def _parse(head: bytes) -> Request:
    """Read a complete head, of which each line is valid. Raises BadRequest for what they say together."""
    line, *fields = head.decode("latin-1")[:-4].split("\r\n")
    method, target, version = line.split(" ")
    minor, headers = int(version[-1]), _joined(fields)
    # A chunked body is known and not taken: `_body_bytes` says so, with another status.
    if "transfer-encoding" in headers and headers["transfer-encoding"].lower() != "chunked":
        raise BadRequest(501, "body", "the coding of the body is not known here: send none")
    if "content-length" in headers:
        headers["content-length"] = _length(headers["content-length"])
    # HTTP/1.0 needs no Host. Two Host fields are joined by a comma, which no host has (RFC 9112, section
    # 3.2).
    if not is_host(headers.get("host", "" if minor else "localhost")):
        raise BadRequest(400, "malformed", "the request has no Host field that names a host")
    path, query = _split(target)
    return Request(method, path, query, minor, headers)


def _body_bytes(request: Request, bodies: Mapping[str, int]) -> int:
    """Return how many bytes the body of a request has, 0 if it is not to be read. Raises BadRequest.

    `bodies` are the most bytes by path. A POST to one of these needs a Content-Length. With another method
    or path the body is not read: GET, HEAD and OPTIONS are refused here, and the response to any other
    method ends the connection.
    """
    length, chunked = int(request.headers.get("content-length", 0)), "transfer-encoding" in request.headers
    if request.method == "POST" and request.route in bodies:
        if chunked or "content-length" not in request.headers:
            raise BadRequest(411, "body", "the request has no Content-Length: send the body in one piece")
        if length > (most := bodies[request.route]):
            raise BadRequest(413, "body", f"the body has {length} bytes: it may have at most {most}")
        return length
    # The answer to any other method ends the connection, and tells the client more.
    if (chunked or length) and request.method in ("GET", "HEAD", "OPTIONS"):
        raise BadRequest(413, "body", "a request has no body here: send none")
    return 0


def _joined(fields: Iterable[str]) -> dict[str, str]:
    """Return the header fields by name, in lower case. The values of a repeated field are joined.

    RFC 9110, section 5.2. The order of the values stays. Names are compared without regard to case.
    """
    values: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition(":")
        name, value = name.lower(), value.strip(" \t")
        values[name] = f"{values[name]}, {value}" if name in values else value
    return values


def _length(value: str) -> str:
    """Return the number that a Content-Length gives. Raises BadRequest.

    A list of equal numbers counts as one, since some proxies repeat the field. Different ones are refused:
    two readers could take the body to end at different places (RFC 9112, section 6.3).
    """
    found = _LENGTH(value)
    if found is None:
        raise BadRequest(400, "malformed", f"Content-Length {_shown(value.encode())} is not one number")
    return found[1]


def _split(target: str) -> tuple[str, str]:
    """Return the path, decoded, and the query of a request target in any form (RFC 9112, section 3.2).

    The authority of an absolute form is dropped, since all hosts are served alike, and so is a fragment.
    Bytes that are no UTF-8 become U+FFFD.
    """
    authority = _AUTHORITY(target)
    if authority is not None:
        target = target[authority.end() :] or "/"
    path, _, query = target.partition("#")[0].partition("?")
    return unquote(path[:PATH_CHARS_MAX]) or "/", query


def _shown(data: bytes) -> str:
    """Return the first bytes of a client as printable text of at most 100 characters, without secrets.

    Text behind the name of a secret is left out: it goes into responses and the log.
    """
    secret = _SECRET(data[:40])
    shown = data[: secret.end()] if secret else data[:40]
    text = ascii(shown.decode("latin-1"))
    return text[:96] + "…" if len(text) > 97 or len(data) > len(shown) else text
