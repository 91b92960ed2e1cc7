"""An HTTP response and its bytes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from jetstream import __version__
from jetstream.web.request import BadRequest

SERVER: Final = f"jetstream/{__version__}"  # the `Server` field: no other program or library is named


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. `closing`: the connection ends with it, whatever the request asked for."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)  # beside those that every response has
    closing: bool = False

    @classmethod
    def sentence(
        cls, status: int, text: str, headers: Mapping[str, str] | None = None, *, closing: bool = False
    ) -> Response:
        """Return a response of one line of text."""
        return cls(status, f"{text}\n".encode(), headers=headers or {}, closing=closing)

    @classmethod
    def refusing(cls, error: BadRequest) -> Response:
        """Return the response to a bad request; it ends the connection."""
        return cls.sentence(error.status, error.text, error.headers, closing=True)

    def encode(self, now: float, *, keep_alive: bool, with_body: bool = True) -> bytes:
        """Return the bytes of the response; `now` is in unix seconds, for its `Date`.

        A response to HEAD has no body, but the header fields of one to GET (RFC 9110, section 9.3.2).
        Pages in a browser on any site may read it (`Access-Control-Allow-Origin`): all of it is public.
        """
        fields = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Date": formatdate(now, usegmt=True),
            "Server": SERVER,
            "Access-Control-Allow-Origin": "*",
            "Connection": "keep-alive" if keep_alive else "close",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body if with_body else b"")
