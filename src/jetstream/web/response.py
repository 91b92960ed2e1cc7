"""The answer to an HTTP request, and its bytes: pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from jetstream import __version__
from jetstream.web.request import BadRequest

SERVER: Final = f"jetstream/{__version__}"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. `closing` ends the connection with it."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    closing: bool = False

    @classmethod
    def sentence(
        cls, status: int, text: str, headers: Mapping[str, str] | None = None, *, closing: bool = False
    ) -> Response:
        """Return an answer of one line of text."""
        return cls(status, f"{text}\n".encode(), headers=headers or {}, closing=closing)

    @classmethod
    def refusing(cls, error: BadRequest) -> Response:
        """Return the answer to a bad request; it ends the connection."""
        return cls.sentence(error.status, error.text, closing=True)

    def encode(self, *, keep_alive: bool, with_body: bool = True) -> bytes:
        """Return the bytes of the answer; one to HEAD goes without its body (RFC 9110, section 9.3.2)."""
        fields = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Date": formatdate(time.time(), usegmt=True),
            "Server": SERVER,
            "Access-Control-Allow-Origin": "*",
            "Connection": "keep-alive" if keep_alive else "close",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body if with_body else b"")
