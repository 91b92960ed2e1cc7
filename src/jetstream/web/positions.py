"""Positions in the stream, as clients are told them: in the handshake, and at `/cursors`.

Positions are in unix microseconds, and are valid cursors. They are of the moment of the response: the log
grows meanwhile, and its oldest events are dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from jetstream.delivery.delivery import Positions
from jetstream.model.timestamp import to_date
from jetstream.web.http import Request, Response
from jetstream.web.pages import Page


def position_headers(positions: Positions) -> dict[str, str]:
    """Return header fields, in unix microseconds. `Oldest` and `Latest` are absent while the log is empty.

    `Jetstream-Cursor` is always there: no event below it is sent.
    """
    fields = {
        "Jetstream-Cursor": positions.cursor,
        "Jetstream-Oldest": positions.oldest,
        "Jetstream-Latest": positions.latest,
    }
    return {name: str(value) for name, value in fields.items() if value is not None}


def cursors(positions: Callable[[], Positions], now_us: Callable[[], int]) -> Page:
    """Return the page `/cursors`: positions of a subscription that would begin now, with dates, as JSON.

    `positions` returns those of a subscription without a cursor. `now_us` gives the time of the server, so
    that a client can tell how far its own clock is off.
    """

    def handler(_request: Request) -> Response:
        """Answer with 200; positions of an empty log are null."""
        now = positions()
        times = {"cursor": now.cursor, "oldest": now.oldest, "latest": now.latest, "now": now_us()}
        body: dict[str, int | str | None] = {}
        for name, time_us in times.items():
            body |= {f"{name}_us": time_us, name: to_date(time_us)}
        return Response.json(200, body, position_headers(now))

    return handler
