"""`/status.json`: the figures of the page at `/`, for programs.

All of it is made of one `Status` and of `Statistics`. Rates are means over the last ten seconds. A response
is kept for half a second, so that any number of viewers cost as much as a few.

    Status        the state now: upstreams, the log, conditions         made for each response
    Statistics    samples of counters, one a second (`history`)         for rates and quantiles
    Metrics       counters since the start                              for totals

None of the keys is ever left out: what is not known is null. To add one, see the table in
docs/architecture.md. Names end in their unit: `_us` is unix microseconds, `_s` seconds, `_per_s` a rate.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

import orjson
from prometheus_client import Gauge

from jetstream.conditions import HINTS, name_of
from jetstream.figures import span_s
from jetstream.history import Distribution, Interval, Sample, Statistics, events_of, rounded
from jetstream.limits import WebLimits
from jetstream.metrics import Children, Metrics, by_label
from jetstream.runtime import open_files, resident_bytes
from jetstream.status import EdgeStatus, LogStatistics, Status, UpstreamStatus
from jetstream.web.http import Request, Response
from jetstream.web.pages import REASONS_MAX, pds_body
from jetstream.web.ready import checks

# Seconds of samples from which rates and quantiles are computed.
WINDOW_S: Final = 10.0
# Of the collections with the most events.
COLLECTIONS_MAX: Final = 20
_DAY_S: Final = 86_400.0
# Kinds of events as clients know them: the three of `create`, `update` and `delete` are of commits.
_KINDS: Final[Mapping[str, Sequence[str]]] = {
    "commit": ("create", "update", "delete"),
    "identity": ("identity",),
    "account": ("account",),
    "sync": ("sync",),
}


class Server(NamedTuple):
    """What the page needs to know of a server that does not change."""

    # When the process started, in unix microseconds.
    started_us: int
    # How long events are kept, and how many bytes the log may have; None: as many as there is room for.
    retention_s: float
    retention_bytes: int | None


def page(
    server: Server,
    status: Callable[[], Status],
    statistics: Statistics,
    metrics: Metrics,
    limits: WebLimits = WebLimits(),
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[Request], Response]:
    """Return the page. `clock` gives seconds."""
    # The last response, and when it was made; empty before the first.
    kept: list[tuple[float, Response]] = []

    def handler(_request: Request) -> Response:
        """Return the last response while it is fresh, else a new one."""
        now = clock()
        if not kept or now - kept[0][0] >= limits.status_kept_s:
            text = orjson.dumps(body(server, status(), statistics, metrics), option=orjson.OPT_APPEND_NEWLINE)
            kept[:] = [(now, Response(200, text, "application/json", {"Cache-Control": "no-store"}))]
        return kept[0][1]

    return handler


def body(server: Server, status: Status, statistics: Statistics, metrics: Metrics) -> dict[str, object]:
    """Return what `/status.json` shows. docs/api.md describes it."""
    last, not_ready = statistics.over(WINDOW_S), checks(status)
    return {
        "version": status.version,
        "role": status.role,
        "edge": _edge(status.edge),
        "now_us": status.now_us,
        "started_us": server.started_us,
        "health": status.summary,
        "reasons": _reasons(status.reasons),
        "ready": not not_ready,
        "not_ready": not_ready,
        "upstreams": [_upstream(each, last) for each in status.upstreams],
        "pds": None if status.pds is None else pds_body(status.pds),
        "waiting": status.waiting,
        "events": _events(last, metrics),
        "log": _log(server, status, last),
        "subscribers": _subscribers(status, metrics),
        "out": _out(last, metrics),
        **metrics.totals(),
        "loop_delay_ms": _quantiles(last, lambda sample: sample.loop_delay),
        "delivery_ms": _quantiles(last, lambda sample: sample.delivery),
        "process": _process(last),
        "processes": [],  # of a server that has several: see `supervisor`
        "history": statistics.history(),
    }


def _reasons(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the first of the conditions that hold: thousands of upstreams may have one each."""
    first = list(reasons.items())[:REASONS_MAX]
    return [{"condition": name_of(key), "text": text, "hint": HINTS[name_of(key)]} for key, text in first]


def _edge(edge: EdgeStatus | None) -> dict[str, object] | None:
    """Return how far an edge is behind the process that writes the log; None for any other server."""
    if edge is None:
        return None
    return {"lag_s": rounded(edge.lag_s), "writer_silent_s": rounded(edge.writer_silent_s)}


def _upstream(upstream: UpstreamStatus, last: Interval | None) -> dict[str, object]:
    """Return the figures of one upstream; its URL has no password."""
    return {
        "name": upstream.name,
        "url": upstream.url,
        "state": upstream.state,
        "seq": upstream.seq,
        "lag_s": rounded(upstream.lag_s),
        "last_frame_age_s": rounded(upstream.last_frame_age_s),
        "frames_per_s": _rate(last, lambda sample: sample.frames.get(upstream.name)),
    }


def _events(last: Interval | None, metrics: Metrics) -> dict[str, object]:
    """Return how many events come, by kind, and by collection for those with the most."""
    by_kind = {kind: _rate(last, partial(_of_kinds, names)) for kind, names in _KINDS.items()}
    return {
        "per_s": _rate(last, events_of),
        "total": int(sum(by_label(metrics.events.family, "kind").values())),
        "by_kind": by_kind,
        "by_collection": [
            {"collection": name, "per_s": round(rate, 2)}
            for name, rate in metrics.collections.rates(COLLECTIONS_MAX)
        ],
    }


def _of_kinds(kinds: Sequence[str], sample: Sample) -> float:
    """Return how many events of some kinds a sample has counted."""
    return sum(sample.events.get(kind, 0) for kind in kinds)


def _log(server: Server, status: Status, last: Interval | None) -> dict[str, object]:
    """Return what the log holds and how fast it grows."""
    log, seconds = status.log, span_s(status)
    return {
        "events": log.events,
        "bytes": log.bytes_on_disk,
        "wal_bytes": log.wal_bytes,
        "oldest_us": log.oldest_us,
        "newest_us": log.newest_us,
        "span_s": rounded(seconds),
        # An estimate: see `_per_day`.
        "bytes_per_day": _per_day(log, seconds),
        "disk_free_bytes": log.disk_free_bytes,
        "retention_s": server.retention_s,
        "retention_bytes": server.retention_bytes,
        "writable": log.writable,
        "damaged": log.damaged,
        "written_bytes_per_s": _rate(last, lambda sample: sample.written_bytes),
    }


def _per_day(log: LogStatistics, span: float | None) -> int | None:
    """Return the bytes that a day takes at the pace of what is kept; None until that is a minute."""
    return None if span is None or span < 60 else int(log.bytes_on_disk / span * _DAY_S)


def _subscribers(status: Status, metrics: Metrics) -> dict[str, object]:
    """Return how many subscribers there are, by wire and by compression, and how many are behind."""
    return {
        "total": status.subscribers,
        "by_wire": _counts(metrics.subscribers, "wire"),
        "by_compression": _counts(metrics.compressions, "compression"),
        "catching_up": status.readers.catching_up,
        "lagging": status.readers.lagging,
        "max": status.subscribers_max,
    }


def _out(last: Interval | None, metrics: Metrics) -> dict[str, object]:
    """Return what is sent to all subscribers: rates, and totals since the start."""
    return {
        "messages_per_s": _rate(last, lambda sample: sample.messages),
        "bytes_per_s": _rate(last, lambda sample: sample.bytes),
        "messages_total": int(sum(by_label(metrics.messages.family, "wire").values())),
        "bytes_total": int(sum(by_label(metrics.bytes.family, "wire").values())),
    }


def _process(last: Interval | None) -> dict[str, object]:
    """Return what the process uses: memory, CPU as a share of one core, and files."""
    resident: int | None = None
    with suppress(OSError):
        resident = resident_bytes()
    return {
        "rss_bytes": resident,
        "cpu": _rate(last, lambda sample: sample.cpu_s),
        "open_files": open_files(),
        "open_files_max": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def _counts(gauges: Children[Gauge], label: str) -> dict[str, int]:
    """Return the values of a gauge by one label, also those that are 0."""
    values = by_label(gauges.family, label)
    return {name: int(values.get(name, 0)) for name in gauges}


def _rate(last: Interval | None, count: Callable[[Sample], float | None]) -> float | None:
    """Return how much a counter rises in a second; None before there are two samples."""
    return None if last is None else rounded(last.per_s(count))


def _quantiles(last: Interval | None, of: Callable[[Sample], Distribution]) -> dict[str, float | None]:
    """Return the median and the 99th percentile, in milliseconds.

    None while there is nothing to compute them of.
    """
    found: dict[str, float | None] = {}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        seconds = None if last is None else last.quantile(of, share)
        found[name] = None if seconds is None else round(seconds * 1000, 2)
    return found
