"""Every Prometheus family that `/metrics` shows, in one place.

Counters and histograms are updated where something happens; hot paths update them once per batch, not per
event. Gauges are made of one `Status` at each scrape (`gauges`), but for those that count connections.

Label values are bounded: they come from fixed lists and from settings, never from a client. A label is never
a client's address or a DID. Of collections, which events name, the most frequent are labels (`frequent`).
Lists that belong to a layer above (wires, frame types, drop reasons) are passed in, so that each of their
values is shown, as 0, from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics import MetricWrapperBase

from jetstream.frequent import FrequentCollections
from jetstream.gauges import Gauges
from jetstream.model.batch import Batch
from jetstream.model.event import KIND_NAMES
from jetstream.status import Status

_BAD_MESSAGES: Final = (
    *("bad_json", "bad_options", "message_too_big", "no_hello", "slow_message", "unexpected_data"),
)
_ENDED: Final = ("client", "lost", "done", "shutdown", "slow", "overtaken", "error")
STREAM_CODINGS: Final = ("identity", "gzip", "zstd")
CLOSE_REASONS: Final = (*_ENDED, "protocol", "flood", "kicked", *_BAD_MESSAGES)
FLOOD_KINDS: Final = ("control", "tiny", "text", "unreadable")
# Why a request to subscribe is refused, and what each reason means.
REFUSAL_REASONS: Final = {
    "parameter": "a parameter cannot be used",
    "cursor_too_old": "the cursor is a `seq` of another server",
    "unknown_dictionary": "the ID is that of no dictionary of this server",
    "no_dictionary": "the public dictionary is not there yet",
    "transport": "a WebSocket without an upgrade, or an event stream with one",
    "coding": "no content coding that the client accepts, or too many streams with a compressor",
    "full": "the limit of subscribers is reached",
    "log_unreadable": "an edge cannot read its log at this moment",
    "handshake": "a bad handshake of a WebSocket",
    "unauthorized": "a token is missing or unknown, or the request is for programs of this machine",
    "address_connections": "an address has as many connections as it may have",
    "address_connection_rate": "an address connects too often",
    "address_replays": "an address has as many replays as it may have",
    "address_replay_rate": "an address begins replays too often",
}
BAD_REQUEST_REASONS: Final = (
    "malformed",
    "too_long",
    "body",
    "version",
    "timeout",
    "overload",
    "flood",
    "handshake",
    "tls",
)
KEY_REFRESH_CAUSES: Final = ("announced", "age")
# Why a process that verifies was replaced: it ended by itself, did not answer, or did not start.
WORKER_ENDS: Final = ("died", "hung", "not_started")
GAP_CAUSES: Final = ("commit", "sync")
FAILURES: Final = ("request", "message", "feed", "upstream")
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# A commit takes 30 to 170 µs, unless it waits for upkeep or for the disk.
COMMIT_SECONDS: Final = (0.0001, 0.00025, *SECONDS)
COMPRESSIONS: Final = ("none", "zstd", "gzip")

Family = TypeVar("Family", bound=MetricWrapperBase)


class Children(dict[str, Family]):
    """The children of a family by the value of their last label; `first` are the values of those before it.

    A lookup is one of a dictionary, where `family.labels` takes a lock. There is a child for each of `names`
    from the start; one for any other name is added when it is first used.
    """

    def __init__(self, family: Family, names: Iterable[str], *first: str) -> None:
        super().__init__((name, family.labels(*first, name)) for name in names)
        self.family = family
        self._first = first

    def __missing__(self, name: str) -> Family:
        child = self[name] = self.family.labels(*self._first, name)
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
    faults: Counter  # of all upstreams: `Metrics.failures`

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


@dataclass(frozen=True, slots=True)
class KeyMetrics:
    """What is counted of signing keys; `requests` is by result, `refreshes` by cause."""

    requests: Children[Counter]
    refreshes: Children[Counter]
    seconds: Histogram


@dataclass(frozen=True, slots=True)
class AdmissionMetrics:
    """What is counted of judged messages.

    `verdicts` is by verdict and reason, which is empty but for a refusal; `gaps` by what showed them; `drops`
    returns the counters of a source by reason, which are those of `UpstreamMetrics`.
    """

    verdicts: Mapping[tuple[str, str], Counter]
    gaps: Children[Counter]
    drops: Callable[[str], Children[Counter]]


class Metrics:
    """The metrics of one server. `wires` are the names of the wires that it serves."""

    def __init__(self, wires: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        # What was made so far, by name.
        self._families: dict[str, Any] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        wires = tuple(wires)
        counter, counters, histogram = self._counter, self._counters, self._histogram
        self.events = counters("events", "Events stored", "kind", KIND_NAMES.values())
        self.collections = FrequentCollections()
        self.log_failures = counter("log_write_failures", "Commits that failed.")
        self.commit = histogram("commit_seconds", "From the append of a batch to its commit.", COMMIT_SECONDS)
        gauge_by = self._gauge_by
        self.subscribers = gauge_by("subscribers", "Connected subscribers, by wire.", "wire", wires)
        self.compressions = gauge_by(
            "subscribers_by_compression", "Connected subscribers.", "compression", COMPRESSIONS
        )
        self.event_streams = gauge_by(
            "event_streams", "Subscribers of /events, by coding.", "coding", STREAM_CODINGS
        )
        self.messages = counters("messages_sent", "Events sent to subscribers", "wire", wires)
        self.bytes = counters("bytes_sent", "Bytes of events sent to subscribers", "wire", wires)
        self.disconnects = counters("disconnects", "Subscribers that left", "reason", CLOSE_REASONS)
        self.refusals = counters("refused", "Requests to subscribe refused", "reason", REFUSAL_REASONS)
        self.bad_requests = counters("bad_requests", "HTTP requests refused", "reason", BAD_REQUEST_REASONS)
        self.evicted = counter("evicted", "Idle connections that were closed to make room.")
        # What the server was doing when an error of its own occurred.
        self.failures = counters("internal_errors", "Errors of the server itself", "doing", FAILURES)
        self.delivery = histogram("delivery_seconds", "From reading a frame to its events' last live write.")
        self.loop_delay = histogram("loop_delay_seconds", "Delay of the event loop in running what is due.")
        # The families of upstreams. Each upstream has its own children of them: see `upstream`.
        self._reconnects = counter("upstream_reconnects", "Reconnections.", "upstream")
        self._too_big = counter("upstream_too_big", "Commits that lack records for their size.", "upstream")
        self._gaps = counter("upstream_gaps", "Gaps in the sequence.", "upstream")
        self._jumps = counter("upstream_jumps", "Gaps of more than 10,000 numbers.", "upstream")
        self._restarts = counter("upstream_sequence_restarts", "Restarts of the sequence.", "upstream")
        self._frames = counter("upstream_frames", "Frames received, by type.", "upstream", "type")
        self._drops = counter("dropped", "Data that was left out, by reason.", "upstream", "reason")
        self._floods = counter("upstream_floods", "Connections closed for a flood.", "upstream", "kind")

    def _family(
        self, kind: Callable[..., Family], name: str, text: str, labels: Iterable[str] = (), **more: Any
    ) -> Family:
        """Return a family, the same one each time: a process that leads again goes on counting."""
        found: Family | None = self._families.get(name)
        if found is None:
            found = kind(f"jetstream_{name}", text, labels, registry=self.registry, **more)
            self._families[name] = found
        return found

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._family(Counter, name, text, labels)

    def _counters(self, name: str, text: str, label: str, values: Iterable[str]) -> Children[Counter]:
        return Children(self._counter(name, f"{text}, by {label}.", label), values)

    def _gauge_by(self, name: str, text: str, label: str, values: Iterable[str]) -> Children[Gauge]:
        return Children(self._family(Gauge, name, text, [label]), values)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return self._family(Histogram, name, text, buckets=buckets)

    def upstream(
        self, name: str, frame_types: Iterable[str] = (), drop_reasons: Iterable[str] = ()
    ) -> UpstreamMetrics:
        """Return the counters of one upstream, whose label `upstream` is its name."""
        return UpstreamMetrics(
            reconnects=self._reconnects.labels(name),
            too_big=self._too_big.labels(name),
            gaps=self._gaps.labels(name),
            jumps=self._jumps.labels(name),
            restarts=self._restarts.labels(name),
            frames=Children(self._frames, frame_types, name),
            drops=Children(self._drops, drop_reasons, name),
            floods=Children(self._floods, FLOOD_KINDS, name),
            faults=self.failures["upstream"],
        )

    def keys(self, failures: Iterable[str]) -> KeyMetrics:
        """Return the metrics of signing keys, which are shown from then on.

        `failures` are the reasons for which there is no key.
        """
        return KeyMetrics(
            self._counters("key_requests", "Requests for signing keys", "result", ("ok", *failures)),
            self._counters("key_refreshes", "Refreshes of signing keys in use", "cause", KEY_REFRESH_CAUSES),
            self._histogram("key_request_seconds", "From the first need of a signing key to its answer."),
        )

    def admission(self, verdicts: Iterable[str], refusals: Iterable[str]) -> AdmissionMetrics:
        """Return the metrics of judged messages, which are shown from then on.

        `refusals` are the reasons of the verdict `refused`.
        """
        counter = self._counter("verify", "Commits and syncs judged, by verdict.", "verdict", "reason")
        labels = [(verdict, "") for verdict in verdicts if verdict != "refused"]
        labels += [("refused", reason) for reason in refusals]
        gaps = self._counters("gaps", "Messages of a repository that never came", "cause", GAP_CAUSES)
        drops: dict[str, Children[Counter]] = {}

        def drops_of(upstream: str) -> Children[Counter]:
            if upstream not in drops:
                drops[upstream] = Children(self._drops, (), upstream)
            return drops[upstream]

        return AdmissionMetrics({each: counter.labels(*each) for each in labels}, gaps, drops_of)

    def watch_keys(self, in_memory: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show how many accounts have their key in memory, and how many requests run or wait."""
        for name, text, value in (
            ("keys_in_memory", "Accounts whose signing key is in memory.", in_memory),
            ("key_requests_waiting", "Requests for signing keys that run or wait.", waiting),
        ):
            self._family(Gauge, name, text).set_function(value)

    def workers(self) -> Children[Counter]:
        """Return the counters of processes that were replaced, by cause, shown from then on."""
        return self._counters("verify_worker_restarts", "Processes replaced", "cause", WORKER_ENDS)

    def count_events(self, batch: Batch) -> None:
        """Count stored events."""
        for kind in set(batch.kinds):
            self.events[KIND_NAMES[kind]].inc(batch.kinds.count(kind))
        self.collections.add(batch.collections)

    def count_sent(self, wire: str, messages: int, size: int) -> None:
        """Count what was written to subscribers of one wire; `size` is in bytes."""
        self.messages[wire].inc(messages)
        self.bytes[wire].inc(size)

    def totals(self) -> dict[str, dict[str, float]]:
        """Return what was dropped, disconnected and refused since the start, by reason, where it was any."""
        families = {
            "drops": self._drops,
            "disconnects": self.disconnects.family,
            "refused": self.refusals.family,
        }
        return {name: by_label(family, "reason") for name, family in families.items()}

    def watch(self, status: Callable[[], Status]) -> None:
        """Show the gauges of a server, for which `status` is called at each scrape."""
        self.registry.register(Gauges(status))


def by_label(family: MetricWrapperBase, label: str) -> dict[str, float]:
    """Return the values of a family summed up by one of its labels, without those that are 0."""
    found: dict[str, float] = {}
    for metric in family.collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created") and sample.value:
                found[sample.labels[label]] = found.get(sample.labels[label], 0) + sample.value
    return found
