"""One WebSocket connection to an upstream, from the handshake to its end.

What the network, picows and the other side can do wrong comes out of here in two forms only: a `ConnectError`
instead of a connection, or an `inbox` that has nothing more and an `ended` that says why. Idle connections
are pinged; only a ping without an answer ends one.

    connect ──▶ Inbox ──wait, drop──▶ … ──▶ close ──▶ ended
       └──▶ ConnectError

Redirects are not followed. When to connect again, the caller decides (`reconnecting`).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cache, partial
from typing import Final, TypeVar
from urllib.parse import urlsplit

import picows

from jetstream.limits import UpstreamLimits
from jetstream.retry import parse_retry_after
from jetstream.upstream.inbox import Inbox
from jetstream.urls import without_secrets

# Characters that are shown of an error. The other side may have written most of it.
_PROBLEM_CHARS_MAX: Final = 200
# Bytes that are kept of the body of a response: `ConnectError.body`.
_BODY_BYTES_MAX: Final = 1_000
SomeInbox = TypeVar("SomeInbox", bound=Inbox)


class ConnectError(Exception):
    """There is no connection.

    `status` is that of an HTTP response other than a WebSocket handshake, None if there was none, and `body`
    the beginning of its body. `retry_after_s` is what the server asked for, None if it did not ask. The text
    is short, without secrets.
    """

    def __init__(
        self,
        problem: str,
        status: int | None = None,
        retry_after_s: float | None = None,
        body: bytes = b"",
    ) -> None:
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = body
        super().__init__(without_secrets(problem)[:_PROBLEM_CHARS_MAX])


@cache
def _certificates() -> ssl.SSLContext:
    """Return what all connections trust. One of its own would take 16 ms and 0.8 MB for each.

    It has the certificates that the system trusts when the first connection is made; later changes are
    not seen.
    """
    return ssl.create_default_context()


async def connect(
    url: str,
    on_text: Callable[[], None],
    on_flood: Callable[[str], None],
    limits: UpstreamLimits,
    kind: type[SomeInbox],
) -> SomeInbox:
    """Open a connection to a URL; return its inbox, which collects messages from now on.

    `kind` is the class of the inbox. The callbacks are those of `Inbox`. The caller closes the inbox in
    any case, and awaits `Inbox.ended`. Raises ConnectError, also when the handshake takes longer than
    `handshake_timeout_s`. `url` has the scheme ws or wss, and its query has the cursor (`with_cursor`).
    """
    try:
        # picows pings by itself after `ping_after_s` of silence, and closes the connection if no pong
        # has come after `pong_timeout_s`.
        _, inbox = await picows.ws_connect(
            partial(kind, on_text, on_flood, limits),
            url,
            ssl_context=_certificates() if urlsplit(url).scheme == "wss" else None,
            websocket_handshake_timeout=limits.handshake_timeout_s,
            enable_auto_ping=True,
            auto_ping_idle_timeout=limits.ping_after_s,
            auto_ping_reply_timeout=limits.pong_timeout_s,
            enable_auto_pong=False,  # `Inbox` answers pings, within a budget
            max_frame_size=limits.message_bytes_max,
            logger_name="upstream",
            read_buffer_init_size=limits.slice_bytes_max,
        )
    except picows.WSHandshakeError as error:
        response = error.response
        status = int(response.status) if response else None
        retry_after = response.headers.get("Retry-After") if response else None
        body = (error.raw_body or b"")[:_BODY_BYTES_MAX]
        raise ConnectError(str(error), status, parse_retry_after(retry_after), body) from error
    except Exception as error:  # whatever the network and picows make of what came
        raise ConnectError(str(error) or type(error).__name__) from error
    if not isinstance(inbox, kind):  # picows has none when the other side closed at once
        raise ConnectError("closed before it answered")
    return inbox


# By the status of the response. Most of these come from a URL that is not that of a firehose.
_HINTS: Final = {
    200: "this is a web page: the path of a firehose is /xrpc/com.atproto.sync.subscribeRepos",
    400: "the server does not know this request: is the URL that of a firehose?",
    401: "the server asks for credentials",
    403: "the server does not accept connections from this address",
    404: "there is no firehose at this path, which usually is /xrpc/com.atproto.sync.subscribeRepos",
    426: "the server wants another protocol than WebSocket 13",
    429: "too many connections: the server asks to wait",
    502: "the server behind a proxy is unavailable",
    503: "the server is unavailable or full",
}
# Of the first attempt that has failed.
NO_CONNECTION: Final = "`jetstream doctor` says why; without a network, `jetstream simulate` is an upstream"
_MOVED: Final = "the server has moved, and redirects are not followed: set the new URL"


def response_fields(status: int | None) -> dict[str, object]:
    """Return the status of a response that is no WebSocket handshake, and a hint, as fields for the log.

    None: there was no response, and there are no fields.
    """
    if status is None:
        return {}
    hint = _MOVED if 300 <= status < 400 else _HINTS.get(status)
    return {"status": status, "hint": hint} if hint else {"status": status}


def with_cursor(url: str, cursor: int | None) -> str:
    """Return the URL that asks for what follows a cursor; None asks for what is new."""
    if cursor is None:
        return url
    return f"{url}{'&' if urlsplit(url).query else '?'}cursor={cursor}"
