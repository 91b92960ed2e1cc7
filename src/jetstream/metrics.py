"""Every Prometheus family that `/metrics` shows, in one place.

Labels are bounded: reasons and kinds out of fixed lists, never an address, a DID or a collection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jetstream.model.event import KIND_NAMES
from jetstream.upstream.decode import DROP_REASONS, MESSAGE_TYPES

if TYPE_CHECKING:
    from jetstream.model.batch import Batch
    from jetstream.upstream.intake import Taken
    from jetstream.upstream.seq_tracker import SeqTracker

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
FAILURES: Final = ("request", "message", "feed")  # what the server did when an error of its own came up
WIRES: Final = ("classic", "v1")
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The counters of one server. Hot paths add once per batch, not per event."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        counter, gauge = self._counter, self._gauge
        self.events = counter("events", "Events stored, by kind.", "kind")
        self.frames = counter("upstream_frames", "Upstream frames, by type.", "type")
        self.drops = counter("dropped", "What was left out of upstream's data, by reason.", "reason")
        self.too_big = counter("upstream_too_big", "Commits whose producer left records out.")
        self.reconnects = counter("upstream_reconnects", "Connections to upstream begun again.")
        self.gaps = counter("upstream_gaps", "Places where upstream's sequence skips numbers.")
        self.jumps = counter("upstream_jumps", "Numbers more than 10,000 above the one before.")
        self.restarts = counter("upstream_sequence_restarts", "Times upstream's sequence restarted.")
        self.floods = counter("upstream_floods", "Connections given up for a flood, by kind.", "kind")
        self.log_failures = counter("log_write_failures", "Commits that the disk refused.")
        self.subscribers = gauge("subscribers", "Connected subscribers, by wire.", "wire")
        self.messages = counter("messages_sent", "Events sent to subscribers, by wire.", "wire")
        self.bytes = counter("bytes_sent", "Bytes of events sent to subscribers, by wire.", "wire")
        self.disconnects = counter("disconnects", "Subscribers that left, by reason.", "reason")
        self.refusals = counter("refused", "Requests to subscribe that were refused.")
        self.bad_requests = counter("bad_requests", "HTTP requests that were refused, by reason.", "reason")
        self.failures = counter("internal_errors", "Errors of the server itself, by what it did.", "doing")
        self.evicted = counter("evicted", "Connections without a request that were closed to make room.")
        self.delivery = self._histogram(
            "delivery_seconds", "From reading a frame to its events' last live write."
        )
        self.loop_delay = self._histogram("loop_delay_seconds", "How late the event loop runs what is due.")
        for kind in FLOOD_KINDS:
            self.floods.labels(kind)
        for kind in KIND_NAMES.values():
            self.events.labels(kind)
        for label in MESSAGE_TYPES:
            self.frames.labels(label)
        for reason in DROP_REASONS:
            self.drops.labels(reason)
        for doing in FAILURES:
            self.failures.labels(doing)
        for reason in BAD_REQUEST_REASONS:
            self.bad_requests.labels(reason)
        self.ended = {reason: self.disconnects.labels(reason) for reason in CLOSE_REASONS}
        self.connected = {wire: self.subscribers.labels(wire) for wire in WIRES}
        self._kinds = {kind: self.events.labels(name) for kind, name in KIND_NAMES.items()}
        self._types = {name: self.frames.labels(name) for name in MESSAGE_TYPES}
        self._sent = {wire: (self.messages.labels(wire), self.bytes.labels(wire)) for wire in WIRES}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"jetstream_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"jetstream_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"jetstream_{name}", text, registry=self.registry, buckets=SECONDS)

    def count_frames(self, taken: Taken, sequence: SeqTracker) -> None:
        """Count a run of frames, and what the sequence has noticed since the last one."""
        for name, count in taken.types.items():
            self._types[name].inc(count)
        for reason, count in taken.drops.items():
            if count:
                self.drops.labels(reason).inc(count)
        if taken.too_big:
            self.too_big.inc(taken.too_big)
        if sequence.gaps or sequence.jumps or sequence.restarts:
            self.gaps.inc(sequence.gaps)
            self.jumps.inc(sequence.jumps)
            self.restarts.inc(sequence.restarts)
            sequence.gaps = sequence.jumps = sequence.restarts = 0

    def count_events(self, batch: Batch) -> None:
        """Count stored events."""
        for kind, counter in self._kinds.items():
            if count := batch.kinds.count(kind):
                counter.inc(count)

    def count_sent(self, wire: str, messages: int, size: int) -> None:
        """Count what was written to subscribers of one wire."""
        messages_sent, bytes_sent = self._sent[wire]
        messages_sent.inc(messages)
        bytes_sent.inc(size)

    def watch(self, families: Callable[[], Iterator[Metric]]) -> None:
        """Show families whose values are read when they are asked for."""
        self.registry.register(_Watched(families))


class _Watched(Collector):
    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()


def gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """Yield a gauge, or nothing where there is no value yet."""
    if value is not None:
        yield GaugeMetricFamily(name, text, value)
