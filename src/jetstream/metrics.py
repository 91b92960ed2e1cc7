"""Every Prometheus family that `/metrics` shows, in one place.

Counters and histograms are updated where something happens; hot paths update them once per batch, not per
event. Gauges are made of one `Status` at each scrape.

Label values are bounded: they come from fixed lists and from settings, never from a client or an event. A
label is never a client's address, a DID or a collection. Lists that belong to a layer above (wires, frame
types, drop reasons) are passed in, so that each of their values is shown, as 0, from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jetstream.conditions import CONDITIONS
from jetstream.model.batch import Batch
from jetstream.model.event import KIND_NAMES
from jetstream.status import UPSTREAM_STATES, Status

CLOSE_REASONS: Final = (
    "client",
    "lost",
    "shutdown",
    "protocol",
    "bad_json",
    "bad_options",
    "message_too_big",
    "no_hello",
    "flood",
    "slow_message",
    "slow",
    "overtaken",
    "error",
)
FLOOD_KINDS: Final = ("control", "tiny", "text", "unreadable")
BAD_REQUEST_REASONS: Final = (
    "malformed",
    "too_long",
    "body",
    "version",
    "timeout",
    "overload",
    "flood",
    "handshake",
)
FAILURES: Final = ("request", "message", "feed")  # what the server was doing when it failed
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

Family = TypeVar("Family", bound=MetricWrapperBase)


class Children(dict[str, Family]):
    """The children of a family by the value of their last label; `first` are the values of those before it.

    A lookup is one of a dictionary, where `family.labels` takes a lock. There is a child for each of `names`
    from the start; one for any other name is added when it is first used.
    """

    def __init__(self, family: Family, names: Iterable[str], *first: str) -> None:
        super().__init__((name, family.labels(*first, name)) for name in names)
        self._family = family
        self._first = first

    def __missing__(self, name: str) -> Family:
        child = self[name] = self._family.labels(*self._first, name)
        return child


@dataclass(frozen=True, slots=True)
class UpstreamMetrics:
    """The counters of one upstream; `drops` is by reason, `floods` by kind, `frames` by type."""

    reconnects: Counter
    too_big: Counter
    gaps: Counter
    jumps: Counter
    restarts: Counter
    frames: Children[Counter]
    drops: Children[Counter]
    floods: Children[Counter]

    def count_frames(self, types: Mapping[str, int], drops: Mapping[str, int], too_big: int) -> None:
        """Count a run of frames: how many of each type, what was dropped, and truncated commits."""
        for name, count in types.items():
            self.frames[name].inc(count)
        for reason, count in drops.items():
            if count:
                self.drops[reason].inc(count)
        if too_big:
            self.too_big.inc(too_big)

    def count_sequence(self, gaps: int, jumps: int, restarts: int) -> None:
        """Count what was irregular in the upstream's numbers."""
        self.gaps.inc(gaps)
        self.jumps.inc(jumps)
        self.restarts.inc(restarts)


class Metrics:
    """The metrics of one server. `wires` are the names of the wires that it serves."""

    def __init__(self, wires: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        wires = tuple(wires)
        counter, gauge = self._counter, self._gauge
        self.events = Children(counter("events", "Events stored, by kind.", "kind"), KIND_NAMES.values())
        self.log_failures = counter("log_write_failures", "Commits that failed.")
        # By wire: connected subscribers; messages and bytes written to them.
        self.subscribers = Children(gauge("subscribers", "Connected subscribers, by wire.", "wire"), wires)
        self.messages = Children(
            counter("messages_sent", "Events sent to subscribers, by wire.", "wire"), wires
        )
        self.bytes = Children(
            counter("bytes_sent", "Bytes of events sent to subscribers, by wire.", "wire"), wires
        )
        # By reason: subscribers whose connection ended; requests that were refused before a route took them.
        self.disconnects = Children(
            counter("disconnects", "Subscribers that left, by reason.", "reason"), CLOSE_REASONS
        )
        self.bad_requests = Children(
            counter("bad_requests", "HTTP requests that were refused, by reason.", "reason"),
            BAD_REQUEST_REASONS,
        )
        self.failures = Children(
            counter("internal_errors", "Errors of the server itself, by what it was doing.", "doing"),
            FAILURES,
        )
        self.refusals = counter("refused", "Requests to subscribe that were refused.")
        self.evicted = counter("evicted", "Idle connections that were closed to make room.")
        self.delivery = self._histogram(
            "delivery_seconds", "Time from reading a frame to the last live write of its events."
        )
        self.loop_delay = self._histogram(
            "loop_delay_seconds", "Delay of the event loop in running what is due."
        )
        # The families of upstreams: see `upstream`.
        self._reconnects = counter("upstream_reconnects", "Reconnections to the upstream.", "upstream")
        self._too_big = counter(
            "upstream_too_big", "Commits from which the producer left records out.", "upstream"
        )
        self._gaps = counter("upstream_gaps", "Gaps in the upstream's sequence.", "upstream")
        self._jumps = counter("upstream_jumps", "Gaps of more than 10,000 numbers.", "upstream")
        self._restarts = counter(
            "upstream_sequence_restarts", "Restarts of the upstream's sequence.", "upstream"
        )
        self._frames = counter("upstream_frames", "Frames received, by type.", "upstream", "type")
        self._drops = counter("dropped", "Upstream data that was left out, by reason.", "upstream", "reason")
        self._floods = counter(
            "upstream_floods", "Connections closed because of a flood, by kind.", "upstream", "kind"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"jetstream_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"jetstream_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"jetstream_{name}", text, registry=self.registry, buckets=SECONDS)

    def upstream(
        self, origin: str, frame_types: Iterable[str] = (), drop_reasons: Iterable[str] = ()
    ) -> UpstreamMetrics:
        """Return the counters of one upstream, whose label `upstream` is its origin, host:port."""
        return UpstreamMetrics(
            reconnects=self._reconnects.labels(origin),
            too_big=self._too_big.labels(origin),
            gaps=self._gaps.labels(origin),
            jumps=self._jumps.labels(origin),
            restarts=self._restarts.labels(origin),
            frames=Children(self._frames, frame_types, origin),
            drops=Children(self._drops, drop_reasons, origin),
            floods=Children(self._floods, FLOOD_KINDS, origin),
        )

    def count_events(self, batch: Batch) -> None:
        """Count stored events."""
        for kind, name in KIND_NAMES.items():
            if count := batch.kinds.count(kind):
                self.events[name].inc(count)

    def count_sent(self, wire: str, messages: int, size: int) -> None:
        """Count what was written to subscribers of one wire; `size` is in bytes."""
        self.messages[wire].inc(messages)
        self.bytes[wire].inc(size)

    def watch(self, status: Callable[[], Status]) -> None:
        """Show the gauges of a server, for which `status` is called at each scrape."""
        self.registry.register(_Gauges(status))


class _Gauges(Collector):
    """Makes gauges of a `Status` whenever the registry is collected."""

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        return gauges(self._status())


def gauges(status: Status) -> Iterator[Metric]:
    """Yield every gauge that is made of a status. A gauge without any value yet is left out."""
    log, upstreams = status.log, status.upstreams
    yield from _gauge("log_events", "Events in the log.", {(): log.events})
    yield from _gauge("log_bytes", "Size of the log on disk.", {(): log.bytes_on_disk})
    yield from _gauge("log_wal_bytes", "Size of the log's write-ahead log.", {(): log.wal_bytes})
    yield from _gauge("log_damaged", "Damaged parts of the log that were met.", {(): log.damaged})
    yield from _gauge(
        "log_ahead_seconds", "How far the newest event is ahead of the clock.", {(): status.ahead_s}
    )
    yield from _gauge("log_oldest_us", "time_us of the oldest event.", {(): log.oldest_us})
    yield from _gauge("log_newest_us", "time_us of the newest event.", {(): log.newest_us})
    yield from _gauge("log_writable", "1 while commits succeed.", {(): log.writable})
    yield from _gauge(
        "upstream_seq",
        "The last seq taken.",
        {(upstream.origin,): upstream.taken_seq for upstream in upstreams},
        "upstream",
    )
    yield from _gauge(
        "upstream_lag_seconds",
        "Age of the upstream's last message when it arrived.",
        {(upstream.origin,): upstream.lag_s for upstream in upstreams},
        "upstream",
    )
    yield from _gauge(
        "upstream_state",
        "1 for the state of the connection.",
        {(each.origin, state): each.state == state for each in upstreams for state in UPSTREAM_STATES},
        "upstream",
        "state",
    )
    yield from _gauge(
        "condition",
        "1 while /health gives this reason.",
        {(name,): name in status.reasons for name in CONDITIONS},
        "condition",
    )


def _gauge(
    name: str, text: str, values: Mapping[tuple[str, ...], float | None], *labels: str
) -> Iterator[Metric]:
    """Yield a gauge of the values that are known, each by the values of its labels."""
    known = {label_values: value for label_values, value in values.items() if value is not None}
    if known:
        family = GaugeMetricFamily(f"jetstream_{name}", text, labels=labels)
        for label_values, value in known.items():
            family.add_metric(label_values, value)
        yield family
