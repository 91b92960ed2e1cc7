"""HTTP/1.1 as values: a request, a response, and a request that is refused. Pure.

`head_reader` makes requests of bytes, and `Response.encode` bytes of a response.

The status line and the header fields follow RFC 9110 and RFC 9112. Cross-origin requests follow the Fetch
standard. There is no state here: `connection` decides when a connection ends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

import orjson

from jetstream import __version__

SERVER: Final = f"jetstream/{__version__}"  # the `Server` field: no other program or library is named
READ: Final = ("GET", "HEAD")  # the methods of what is only read
_HOST_CHARS_SHOWN: Final = 100  # in a URL that a page or a refusal shows
# A host is repeated in pages and refusals: it may have no other characters.
_HOST: Final = re.compile(r"[a-zA-Z0-9.:_%\[\]-]{1,255}").fullmatch


def is_host(text: str) -> bool:
    """Tell whether a text is a host, with or without a port, that may be repeated in a page.

    It has 1 to 255 letters, digits and characters of ports and IPv6 addresses. That the name exists is not
    checked.
    """
    return _HOST(text) is not None


class BadRequest(Exception):
    """A request that is refused. The connection ends with the response: `status` and one sentence, `text`.

    `reason` is one of `metrics.BAD_REQUEST_REASONS`.
    """

    def __init__(self, status: int, reason: str, text: str, headers: Mapping[str, str] | None = None) -> None:
        # The status of the response, from 400 to 505.
        self.status = status
        # The label in the metrics, and a word in the log.
        self.reason = reason
        # The body: one sentence that says what was wrong and what to do.
        self.text = text
        # Of the response, beside those that every response has.
        self.headers = headers
        super().__init__(text)


class Request(NamedTuple):
    """A complete request.

    `path` is percent-decoded, `query` is as it came. `minor` is the minor version: 0 of HTTP/1.0, 1 of
    HTTP/1.1. `headers` are by name in lower case, where the values of a repeated field are joined by commas
    (RFC 9110, sections 5.1 and 5.2).
    """

    # As it came: methods are case-sensitive (RFC 9110, section 9.1).
    method: str
    # At most `head_reader.PATH_CHARS_MAX` characters of it, and at least a slash.
    path: str
    # Without the question mark, and not decoded; empty if there is none.
    query: str
    minor: int
    headers: Mapping[str, str]
    scheme: str = "http"  # `https` where a trusted proxy says so, see `proxies`
    # Of an upload only. Any other request that is let through has none, or one that is never read.
    body: bytes = b""

    @property
    def host(self) -> str:
        """The host and port that the client connected to, by its `Host` field.

        A trusted proxy may have replaced it. `localhost` is for HTTP/1.0, where the field may be missing.
        """
        return self.headers.get("host", "localhost")

    @property
    def route(self) -> str:
        """The path without a slash at its end, which does not matter."""
        return self.path.rstrip("/") or "/"

    @property
    def base(self) -> str:
        """The URL of this server, up to its path.

        The host is cut to 100 characters: the result is shown to people.
        """
        return f"{self.scheme}://{self.host[:_HOST_CHARS_SHOWN]}"

    @property
    def websocket_base(self) -> str:
        """The URL of a WebSocket on this server, up to its path."""
        return f"{'wss' if self.scheme == 'https' else 'ws'}://{self.host[:_HOST_CHARS_SHOWN]}"

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request (RFC 9112, section 9.3).

        HTTP/1.1 stays open unless one side says `close`; HTTP/1.0 must ask for it.
        """
        connection = self.tokens("connection")
        return "close" not in connection if self.minor else "keep-alive" in connection

    def tokens(self, name: str) -> set[str]:
        """Return the items of a header field that is a list of tokens, in lower case.

        The set is empty if the field is missing. Text in quotes is not treated in a special way.
        """
        value = self.headers.get(name)
        return {word.strip().lower() for word in value.split(",")} if value is not None else set()

    def has(self, etag: str) -> bool:
        """Tell whether the client has the bytes of an ETag. The comparison is weak: it ignores `W/`.

        RFC 9110, section 13.1.2. The ETag has no upper case.
        """
        return not {etag, "*"}.isdisjoint(each.removeprefix("w/") for each in self.tokens("if-none-match"))


class Response(NamedTuple):
    """A complete response. `closing`: the connection ends with it, whatever the request asked for.

    `unsized`: there is no body, or it follows and its length is not known.
    """

    # One that `http.HTTPStatus` knows: its phrase is part of the status line.
    status: int
    # Complete, and never changed: pages hand out one object again and again.
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] | None = None  # beside those that every response has
    closing: bool = False
    unsized: bool = False

    @classmethod
    def json(cls, status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
        """Return a response of JSON for people, too: indented.

        The body ends with a line break. Raises TypeError for what JSON cannot have.
        """
        text = orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return cls(status, text, "application/json", headers)

    @classmethod
    def sentence(
        cls, status: int, text: str, headers: Mapping[str, str] | None = None, *, closing: bool = False
    ) -> Response:
        """Return a response of one line of text.

        `text` has no line break; one is added.
        """
        return cls(status, f"{text}\n".encode(), headers=headers, closing=closing)

    @classmethod
    def preflight(cls, methods: Sequence[str]) -> Response:
        """Return what a page of another site may send, for a browser that asks first (the Fetch standard).

        All header fields are allowed. A browser may remember the answer for a day.
        """
        headers = {
            "Allow": ", ".join([*methods, "OPTIONS"]),
            "Access-Control-Allow-Methods": ", ".join(methods),
            "Access-Control-Allow-Headers": "*, Authorization",  # which `*` does not include
            "Access-Control-Max-Age": "86400",
        }
        return cls(200, b"", headers=headers)

    def encode(self, now: float, *, keep_alive: bool, with_body: bool = True) -> bytes:
        """Return the bytes of the response; `now` is in unix seconds, for its `Date`.

        A response to HEAD has no body, but the header fields of one to GET (RFC 9110, section 9.3.2). So has
        a 304 (section 15.4.5).
        Pages in a browser on any site may read it, with its header (`Access-Control-…`): all of it is public.

        `keep_alive` and `with_body` are decided by the connection. Fields of the response win over those
        that every response has.
        """
        fields = {} if self.unsized else {"Content-Length": str(len(self.body))}
        fields |= {
            "Content-Type": self.content_type,
            "Date": formatdate(now, usegmt=True),
            "Server": SERVER,
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": "*",
            "Connection": "keep-alive" if keep_alive else "close",
            **(self.headers or {}),
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        body = self.body if with_body and self.status != HTTPStatus.NOT_MODIFIED else b""
        return "\r\n".join([*lines, "", ""]).encode() + body


def other_method(request: Request, methods: Sequence[str]) -> Response | None:
    """Return what a request is answered whose method is none of a path's; None if it is one of them.

    `methods` are in the order of preference, without OPTIONS. OPTIONS gets 200. A 405 ends the connection,
    since its request may have a body that is not read.
    """
    if request.method in methods:
        return None
    if request.method == "OPTIONS":
        return Response.preflight(methods)
    allow = {"Allow": ", ".join([*methods, "OPTIONS"])}
    text = f"{request.route} is not for {request.method}: use {methods[0]}"
    return Response.sentence(405, text, allow, closing=True)
