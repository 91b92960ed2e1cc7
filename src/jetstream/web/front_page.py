"""The page `/` for people: the figures of the server, a live viewer, and which client connects where.

A browser gets HTML, which its scripts (`page_files`) fill with figures and events. Any other client gets the
addresses, the parameters and the upstreams as text.

What depends on the server is filled in with each request: its addresses, by the field `Host`, and its
wire. The texts are here; what the scripts show is in `page/`. docs/page.md describes the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import Final

from jetstream import __version__
from jetstream.status import UPSTREAM_STATES, Status
from jetstream.web.http import Request, Response
from jetstream.web.page_files import PageFiles, html
from jetstream.web.parameter_table import SUBSCRIBE
from jetstream.web.parameters import WIRE_RULE

# Titles of sections, each with its rows: what stands left, and what stands right.
Sections = Mapping[str, Mapping[str, str]]

_ABOUT: Final = "The ATProto firehose as light, friendly JSON over WebSocket."
# The row of an endpoint that another listener may have.
_METRICS: Final = "{base}/metrics"
# The sections of `/`, with what depends on the server in braces.
_SECTIONS: Final[Sections] = {
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
        _METRICS: "metrics for Prometheus",
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
# Sections, endpoints and links that a server without subscribers does not have.
_OF_SUBSCRIBERS: Final = (
    *("Which client connects where", "Parameters of a subscription", "Try"),
    *("{ws}/subscribe", "{ws}/v1/subscribe", "{ws}/xrpc/network.bsky.jetstream.subscribeEvents"),
    *("{base}/events", "{base}/zstd-dictionary", "{base}/filters", "{base}/explain", "{base}/cursors"),
    *("{base}/openapi.json", "openapi.json", "cursors"),
)
_ROWS_OPEN_MAX: Final = 16  # a longer section is folded
# What the page links to at its end, relative to `/`.
_LINKS: Final = ("metrics", "health", "ready", "status.json", "openapi.json", "cursors", "gaps")
_DOCS: Final = '<a href="#connect">docs</a>'


def page(
    wire: str, status: Callable[[], Status], files: PageFiles, *, metrics: bool = True, serves: bool = True
) -> Callable[[Request], Response]:
    """Return the page.

    `wire` is the name of the wire at `/subscribe`. `status` has the upstreams, which the text ends with.
    `metrics` tells whether `/metrics` is served at the same address, `serves` whether there are subscribers.
    """
    # Rows, sections and links that are left out.
    hidden = (*(() if metrics else (_METRICS, "metrics")), *(() if serves else _OF_SUBSCRIBERS))

    def handler(request: Request) -> Response:
        """Return HTML to a client that accepts it, and text to any other."""
        sections = _sections(request, wire, hidden)
        if "text/html" in request.headers.get("accept", ""):
            return html(request, _html(files.template, sections, wire, hidden))
        text = _text({**sections, "Upstreams": _upstreams(status())})
        return Response(200, text.encode(), headers={"Vary": "Accept"})

    return handler


def _upstreams(status: Status) -> dict[str, str]:
    """Return each upstream with its state, and how many PDSes are in which state.

    Thousands of PDSes are one row.
    """
    rows = {each.name: f"{each.state}: {each.url}" for each in status.upstreams}
    if status.pds is not None:
        states = ", ".join(f"{status.pds.states[state]} {state}" for state in UPSTREAM_STATES)
        rows[f"{status.pds.states.total()} PDSes"] = states
    return rows


def _sections(request: Request, wire: str, hidden: tuple[str, ...]) -> Sections:
    """Return the page's sections, with the addresses of this server."""
    fill = partial(str.format, base=request.base, ws=request.websocket_base, wire=wire)
    return {
        title: {fill(left): fill(right) for left, right in rows.items() if left not in hidden}
        for title, rows in _SECTIONS.items()
        if title not in hidden
    }


def _text(sections: Sections) -> str:
    """Return the page as text: each section with two columns."""
    lines = ["Jetstream", _ABOUT]
    for title, rows in sections.items():
        width = max(map(len, rows), default=0)
        lines += ["", title, *(f"  {left:<{width}}  {right}" for left, right in rows.items())]
    return "\n".join(lines) + "\n"


def _html(template: str, sections: Sections, wire: str, hidden: tuple[str, ...]) -> str:
    """Return the page as HTML: the template, with what is known without its scripts.

    All that is filled in is escaped, or is a constant of this module.
    """
    return template.format(
        about=escape(_ABOUT),
        wire=escape(wire),
        sections="".join(_section(title, rows) for title, rows in sections.items()),
        links="\n".join([*(f'<a href="{path}">{path}</a>' for path in _LINKS if path not in hidden), _DOCS]),
        version=f"jetstream {escape(__version__)}",
    )


def _section(title: str, rows: Mapping[str, str]) -> str:
    """Return a section as an HTML table; a long one can be opened by a click."""
    cells = "".join(
        f"<tr><td>{_linked(left)}</td><td>{escape(right)}</td></tr>" for left, right in rows.items()
    )
    table = f"<table><tbody>{cells}</tbody></table>"
    if len(rows) > _ROWS_OPEN_MAX:
        return f"<details><summary>{escape(title)}</summary>{table}</details>"
    return f"<h3>{escape(title)}</h3>{table}"


def _linked(text: str) -> str:
    """Return a text as HTML; a URL becomes a link."""
    shown = escape(text)
    return f'<a href="{shown}">{shown}</a>' if text.startswith("http") else shown
