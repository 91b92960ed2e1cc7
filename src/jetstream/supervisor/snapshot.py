"""What one process says of itself, for the view of all of them.

It has all that the supervisor needs for its answers: one question for each process is enough for
`/metrics`, `/health`, `/ready` and `/status.json` together.
"""

from __future__ import annotations

from typing import Any

from jetstream.app import Service
from jetstream.supervisor.families import pack
from jetstream.web.pages import health_body
from jetstream.web.ready import checks
from jetstream.web.status_page import Server, body


def snapshot(service: Service, started_us: int) -> dict[str, Any]:
    """Return the figures of a service as of now. Raises OSError while its disk fails.

    `started_us` is when the process began, in unix microseconds. `healthy` tells whether `/health` has
    status 200. `newest_step` is the number of the last step of the history that the status has; None:
    it has no step yet.
    """
    status, settings, statistics = service.status(), service.settings, service.figures.statistics
    server = Server(started_us, settings.retention, settings.retention_bytes)
    return {
        "families": pack(service.metrics.registry),
        "status": body(server, status, statistics, service.metrics),
        "newest_step": statistics.newest_step,
        "health": health_body(status),
        "healthy": status.log.writable,
        "ready": checks(status),
    }
