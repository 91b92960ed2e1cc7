"""The pages `/health` and `/metrics`.

A page is a function from a request to a response. `/health` and the gauges of `/metrics` are made of one
`Status`.

Both are for machines: `/health` for what restarts a process, with a sentence for each condition, and
`/metrics` for Prometheus. Whether clients should be sent here is in `/ready` (`ready`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import exposition

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.model.timestamp import to_date
from jetstream.status import UPSTREAM_STATES, PdsStatus, Status, UpstreamStatus
from jetstream.token_bucket import TokenBucket
from jetstream.web.http import Request, Response

# What answers GET and HEAD of a path at once. `server` answers OPTIONS, and refuses other methods.
Page = Callable[[Request], Response]

# The only value of `Accept` that is told apart from all others.
_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"

REASONS_MAX: Final = 50  # that /health shows


def accepted(request: Request) -> str:
    """Return what the library for metrics is told of the field `Accept`: it fails on a malformed version.

    Empty means Prometheus' own text format.
    """
    return _OPENMETRICS if "application/openmetrics-text" in request.headers.get("accept", "") else ""


def health(status: Callable[[], Status]) -> Page:
    """Return the page `/health`: 200 while events can be stored, else 503.

    A degraded server has 200, too: to restart it would not help.
    """

    def handler(_request: Request) -> Response:
        """Return the state of this moment."""
        now = status()
        return Response.json(200 if now.log.writable else 503, health_body(now))

    return handler


def health_body(status: Status) -> dict[str, object]:
    """Return what `/health` shows of a status.

    The keys are described in docs/api.md, and in `openapi_parts`. Times are in unix microseconds or in
    seconds, as their names say.
    """
    log, age_s = status.log, status.last_event_age_s
    upstreams = [_upstream(each) for each in status.upstreams]
    return {
        "status": status.summary,
        "reasons": _reasons(status),
        "version": status.version,
        "upstream": upstreams[0] if upstreams else None,
        "upstreams": upstreams,
        "pds": None if status.pds is None else pds_body(status.pds),
        "waiting": status.waiting,
        "last_event_age_s": None if age_s is None else round(age_s, 3),
        "log": {
            "events": log.events,
            "bytes": log.bytes_on_disk,
            "wal_bytes": log.wal_bytes,
            "damaged": log.damaged,
            "oldest_us": log.oldest_us,
            "oldest": to_date(log.oldest_us),
            "newest_us": log.newest_us,
            "newest": to_date(log.newest_us),
        },
        "subscribers": status.subscribers,
    }


def _reasons(status: Status) -> list[str]:
    """Return why the status is degraded. Thousands of upstreams may have a reason each."""
    reasons, more = list(status.reasons.values()), len(status.reasons) - REASONS_MAX
    return [*reasons[:REASONS_MAX], *([f"and {more} more"] if more > 0 else [])]


def _upstream(upstream: UpstreamStatus) -> dict[str, object]:
    """Return what is shown of one upstream; its URL has no password."""
    lag_s = None if upstream.lag_s is None else round(upstream.lag_s, 3)
    return {
        "name": upstream.name,
        "url": upstream.url,
        "state": upstream.state,
        "seq": upstream.seq,
        "lag_s": lag_s,
    }


def pds_body(pds: PdsStatus) -> dict[str, object]:
    """Return how many PDSes are in each state, and the names of the first that have no connection.

    `/status.json` has the same.
    """
    states: dict[str, object] = {state: pds.states[state] for state in UPSTREAM_STATES}
    return states | {"not_connected": list(pds.gone)}


def metrics(
    figures: Metrics, limits: WebLimits = WebLimits(), clock: Callable[[], float] = time.monotonic
) -> Page:
    """Return the page `/metrics`, in Prometheus' text format or in OpenMetrics. `clock` gives seconds.

    A response is kept for `metrics_kept_s` seconds for requests that come too often: rendering takes 1 ms.
    """
    # One token for each rendering, of either format, while the last response is not too old.
    budget = TokenBucket(*limits.metrics_renderings, clock())
    rendered: dict[str, tuple[float, Response]] = {}  # the last response in each format, and when it was made

    def handler(request: Request) -> Response:
        """Return the metrics in the format that the client accepts, rendered now if there is a token.

        A response that is too old is rendered again without one.
        """
        accept = accepted(request)
        now = clock()
        last = rendered.get(accept)
        if last is not None and now - last[0] < limits.metrics_kept_s and not budget.spend(now):
            return last[1]
        encode, content_type = exposition.choose_encoder(accept)
        response = Response(200, encode(figures.registry), content_type)
        rendered[accept] = (now, response)
        return response

    return handler
