"""`/ready`, for load balancers: whether clients should be sent to this server.

`/health` says whether the process works, for what restarts it. A server can be healthy and not ready: to
restart it would not help when upstream is silent.

What is checked is in `Status.not_ready`: whether the server stops, whether the log can be written, how old
the newest frame is, and how far the server is behind. An edge checks other things than a server that reads
upstream.
"""

from __future__ import annotations

from collections.abc import Callable

from jetstream.status import Status
from jetstream.web.http import Request, Response


def page(status: Callable[[], Status]) -> Callable[[Request], Response]:
    """Return the page: 200 if the server is ready, else 503 with the reasons."""

    def handler(_request: Request) -> Response:
        """Answer with the checks that fail, each with a text and a hint."""
        reasons = checks(status())
        return Response.json(503 if reasons else 200, {"ready": not reasons, "not_ready": reasons})

    return handler


def checks(status: Status) -> list[dict[str, str]]:
    """Return why a server is not ready.

    Empty if it is ready. `/status.json` has the same list.
    """
    return [each._asdict() for each in status.not_ready]
