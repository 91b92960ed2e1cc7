"""Ask a Jetstream how far its stream is: a client that comes from there may be ahead of this server.

The question is a HEAD of `/events` with a cursor of the future. The answer has the position of the next
event. If the upstream is a mirror itself, it asks its own upstream first. Nothing is subscribed to.

A redirect is not followed: the credentials are for this server.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from typing import Final
from urllib.parse import unquote, urlsplit

from jetstream.upstream.connection import with_cursor
from jetstream.upstreams import SUBSCRIBE_EVENTS_PATH

# A position that no event has.
_FUTURE: Final = 10**18
_POSITION: Final = re.compile(r"[0-9]{1,18}", re.ASCII).fullmatch
# What a server answers that has no such path.
_NO_PATH: Final = frozenset({404, 405, 426, 501})


def question_of(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL of a question, and its header fields, for the URL of a stream."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    path = parts.path.removesuffix(SUBSCRIBE_EVENTS_PATH) + "/events"
    user, at, host = parts.netloc.rpartition("@")
    fields = {"Authorization": f"Basic {b64encode(unquote(user).encode()).decode()}"} if at else {}
    asked = parts._replace(scheme=scheme, netloc=host, path=path, fragment="").geturl()
    return with_cursor(asked, _FUTURE), fields


async def newest_of(url: str, timeout_s: float) -> int | None:
    """Return the newest position of the stream of a URL; None if there is no answer, 0 if it has none."""
    try:
        async with asyncio.timeout(2 * timeout_s):
            return await asyncio.to_thread(_ask, url, timeout_s)
    except TimeoutError:  # a name that is not resolved, or a byte now and then
        return None


def _ask(url: str, timeout_s: float) -> int | None:
    # Rarely needed, and some MB of memory.
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import HTTPError  # noqa: PLC0415
    from urllib.request import HTTPRedirectHandler, Request, build_opener  # noqa: PLC0415

    class NoRedirects(HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            """Let a redirect be an error."""

    asked, fields = question_of(url)
    try:
        request = Request(asked, headers=fields, method="HEAD")  # noqa: S310
        with build_opener(NoRedirects).open(request, timeout=timeout_s) as response:
            position = response.headers.get("Jetstream-Cursor", "")
    except HTTPError as error:
        error.close()
        return 0 if error.code in _NO_PATH else None
    except (OSError, HTTPException, ValueError):
        return None
    return max(int(position) - 1, 0) if _POSITION(position) else 0
