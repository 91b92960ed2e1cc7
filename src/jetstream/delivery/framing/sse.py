"""Messages as Server-Sent Events (the HTML standard, section 9.2), which browsers read with `EventSource`.

A stream begins with the time after which a client connects again, in milliseconds. Each event has its
position as ID, and a client that comes back sends the last one. A comment, which clients ignore, keeps the
connection alive. The last event says why the stream ends:

    retry: 2000

    id: 1725516666833633
    data: {"did":"did:plc:…","time_us":…}

    :

    event: close
    data: {"code":1001,"reason":"the server is …; cursor=1725516666833634"}
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import orjson


class SseFraming:
    """One event of the stream per event, with its position as ID."""

    media_type: Final = "text/event-stream"
    start: Final = b"retry: 2000\n\n"  # what goes before all events
    keep_alive: Final = b":\n\n"
    costly: Final = False

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        """Return each message as the data of an event. What is no event of ours has no ID."""
        if times is None:
            return [b"data: %b\n\n" % message if message else b"" for message in messages]
        return [
            b"id: %d\ndata: %b\n\n" % (time_us, message) if message else b""
            for time_us, message in zip(times, messages, strict=True)
        ]

    def end(self, code: int, reason: str, cursor: int | None = None) -> bytes:
        """Return an event of the type `close`, whose reason ends with `cursor`."""
        text = reason if cursor is None else f"{reason}; cursor={cursor}"
        return b"event: close\ndata: %b\n\n" % orjson.dumps({"code": code, "reason": text})


SSE: Final = SseFraming()
