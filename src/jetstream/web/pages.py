"""The pages: `/` for people, `/health` and `/metrics` for machines.

A page is a function from a request to a response. `/health` and the gauges of `/metrics` are made of one
`Status`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from html import escape
from typing import Final

from prometheus_client import exposition

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.model.timestamp import to_date
from jetstream.status import UPSTREAM_STATES, PdsStatus, Status, UpstreamStatus
from jetstream.token_bucket import TokenBucket
from jetstream.web.http import Request, Response
from jetstream.web.parameter_table import SUBSCRIBE
from jetstream.web.parameters import WIRE_RULE

Page = Callable[[Request], Response]

_OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"

REASONS_MAX: Final = 50  # that /health shows

_ABOUT: Final = "The ATProto firehose as light, friendly JSON over WebSocket."
# The sections of `/`, with what depends on the server in braces.
_SECTIONS: Final = {
    "Endpoints": {
        "{ws}/subscribe": f"events as JSON, {{wire}} wire; {WIRE_RULE}",
        "{ws}/v1/subscribe": "events as JSON, v1 wire: for existing client libraries",
        "{ws}/xrpc/network.bsky.jetstream.subscribeEvents": "events as JSON, v2 wire",
        "{base}/events": "events without a WebSocket: lines of JSON, or Server-Sent Events",
        "{base}/zstd-dictionary": "the dictionary for compressed messages",
        "{base}/filters": "POST a list of DIDs here, for filter",
        "{base}/explain": "how parameters are understood, and what they select of the last minute, as JSON",
        "{base}/health": "whether the process works, as JSON",
        "{base}/ready": "whether clients can be sent here, as JSON",
        "{base}/status.json": "the figures of the server, as JSON",
        "{base}/cursors": "the oldest and the newest position, as JSON",
        "{base}/gaps": "messages of repositories that never came, as lines of JSON",
        "{base}/metrics": "metrics for Prometheus",
        "{base}/openapi.json": "all of this for programs, as OpenAPI 3.1",
    },
    "Which client connects where": {
        "@skyware/jetstream": "endpoint: {ws}/v1/subscribe",
        "@atcute/jetstream": "url: {ws}",
        "Go client, Rust crates, others for the public Jetstream": "{ws}/v1/subscribe",
        "atproto (Python)": "base_uri: {ws}/xrpc",
        "jetstream tail, your own code": "{ws}/subscribe",
        "curl, EventSource in a browser": "{base}/events",
    },
    "Parameters of a subscription": {each.name: each.meaning for each in SUBSCRIBE},
    "Try": {
        "jetstream tail --limit 10": "in a terminal",
        "curl -N '{base}/events?wantedCollections=app.bsky.feed.post' | jq .commit.record": "new posts",
        "websocat '{ws}/subscribe?wantedCollections=app.bsky.feed.post'": "new posts",
    },
}


def page(wire: str, status: Callable[[], Status]) -> Page:
    """Return the page `/`: which client connects where, as HTML for browsers and text for others.

    `wire` is the name of the wire at `/subscribe`. `status` has the upstreams, which are shown at the end.
    """

    def handler(request: Request) -> Response:
        sections = _sections(request, wire) | {"Upstreams": _upstreams(status())}
        if "text/html" in request.headers.get("accept", ""):
            return Response(200, _html(sections).encode(), "text/html; charset=utf-8")
        return Response(200, _text(sections).encode())

    return handler


def _upstreams(status: Status) -> dict[str, str]:
    """Return each upstream with its state, and how many PDSes are in which state."""
    rows = {each.name: f"{each.state}: {each.url}" for each in status.upstreams}
    if status.pds is not None:
        states = ", ".join(f"{status.pds.states[state]} {state}" for state in UPSTREAM_STATES)
        rows[f"{status.pds.states.total()} PDSes"] = states
    return rows


def health(status: Callable[[], Status]) -> Page:
    """Return the page `/health`: 200 while events can be stored, else 503."""

    def handler(_request: Request) -> Response:
        now = status()
        return Response.json(200 if now.log.writable else 503, health_body(now))

    return handler


def health_body(status: Status) -> dict[str, object]:
    """Return what `/health` shows of a status."""
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
    lag_s = None if upstream.lag_s is None else round(upstream.lag_s, 3)
    return {
        "name": upstream.name,
        "url": upstream.url,
        "state": upstream.state,
        "seq": upstream.seq,
        "lag_s": lag_s,
    }


def pds_body(pds: PdsStatus) -> dict[str, object]:
    """Return how many PDSes are in each state, and the names of the first that have no connection."""
    states: dict[str, object] = {state: pds.states[state] for state in UPSTREAM_STATES}
    return states | {"not_connected": list(pds.gone)}


def metrics(
    figures: Metrics, limits: WebLimits = WebLimits(), clock: Callable[[], float] = time.monotonic
) -> Page:
    """Return the page `/metrics`, in Prometheus' text format or in OpenMetrics. `clock` gives seconds."""
    budget = TokenBucket(*limits.metrics_renderings, clock())
    rendered: dict[str, tuple[float, Response]] = {}  # the last response in each format, and when it was made

    def handler(request: Request) -> Response:
        # The client's own header is not passed on: the library fails on a malformed version.
        accept = _OPENMETRICS if "application/openmetrics-text" in request.headers.get("accept", "") else ""
        now = clock()
        last = rendered.get(accept)
        if last is not None and now - last[0] < limits.metrics_kept_s and not budget.spend(now):
            return last[1]
        encode, content_type = exposition.choose_encoder(accept)
        response = Response(200, encode(figures.registry), content_type)
        rendered[accept] = (now, response)
        return response

    return handler


Sections = dict[str, dict[str, str]]


def _sections(request: Request, wire: str) -> Sections:
    """Return the page's sections, each with its rows."""
    fill = partial(str.format, base=request.base, ws=request.websocket_base, wire=wire)
    return {title: {fill(k): fill(v) for k, v in rows.items()} for title, rows in _SECTIONS.items()}


def _text(sections: Sections) -> str:
    lines = ["Jetstream", _ABOUT]
    for title, rows in sections.items():
        width = max(map(len, rows), default=0)
        lines += ["", title, *(f"  {left:<{width}}  {right}" for left, right in rows.items())]
    return "\n".join(lines) + "\n"


_STYLE: Final = """
:root { color-scheme: light dark; --faint: color-mix(in srgb, currentColor 12%, transparent) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 3rem auto; padding: 0 1rem }
h1 { margin: 0 } h2 { font-size: 1rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; width: 100% }
td { padding: .35rem .5rem; border-top: 1px solid var(--faint); vertical-align: top }
td:first-child { width: 45%; overflow-wrap: anywhere; font: .875rem ui-monospace, monospace }
"""


def _html(sections: Sections) -> str:
    body = "".join(
        f"<h2>{escape(title)}</h2><table>"
        + "".join(f"<tr><td>{_linked(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows.items())
        + "</table>"
        for title, rows in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Jetstream</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style><h1>Jetstream</h1><p>{_ABOUT}</p>{body}</html>"
    )


def _linked(text: str) -> str:
    shown = escape(text)
    return f'<a href="{shown}">{shown}</a>' if text.startswith("http") else shown
