"""Every Prometheus family that `/metrics` shows, in one place.

Counters and histograms are updated where something happens; hot paths update them once per batch, not
per event. Gauges are made of one `Status` at each scrape (`gauges`), but for those that count
connections.

Label values are bounded: they come from fixed lists and from settings, never from a client. A label is
never a client's address or a DID. Of collections, which events name, the most frequent are labels
(`frequent`). Lists that belong to a layer above (wires, frame types, drop reasons) are passed in, so
that each of their values is shown, as 0, from the start.

Names have the prefix `jetstream_`, and docs/metrics.md describes each. Parts of the server get what
they count (`UpstreamMetrics`, `KeyMetrics`, `AdmissionMetrics`), or all of `Metrics`. With several
processes, each has its own, and `supervisor/families` adds them up. Everything is counted in the event
loop's thread.
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

# What a client may send after its upgrade that ends its connection.
_BAD_MESSAGES: Final = (
    *("bad_json", "bad_options", "message_too_big", "no_hello", "slow_message", "unexpected_data"),
)
# How a subscriber may end otherwise: `done` is a stream up to an end that was asked for, `overtaken`
# one whose next event is no longer in the log.
_ENDED: Final = ("client", "lost", "done", "shutdown", "slow", "overtaken", "error")
# Content codings of `/events`.
STREAM_CODINGS: Final = ("identity", "gzip", "zstd")
# All values of the label `reason` of `jetstream_disconnects`.
CLOSE_REASONS: Final = (*_ENDED, "protocol", "flood", "kicked", *_BAD_MESSAGES)
# What an upstream may send too much of: control frames, pings whose pongs it does not read, tiny messages,
# text, frames that cannot be read.
FLOOD_KINDS: Final = ("control", "pongs", "tiny", "text", "unreadable")
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
# Why a request is refused before it reaches a route; `handshake` and `tls` are those that are no
# requests yet.
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
# Why a key that is known is asked for again: an event has announced a change, or it is old.
KEY_REFRESH_CAUSES: Final = ("announced", "age")
# Why a process that verifies was replaced: it ended by itself, did not answer, or did not start.
WORKER_ENDS: Final = ("died", "hung", "not_started")
# Which message has shown that messages before it never came.
GAP_CAUSES: Final = ("commit", "sync")
# What the server was doing: answering a request, reading a client's message, feeding a subscriber from
# the log, taking what an upstream has sent.
FAILURES: Final = ("request", "message", "feed", "upstream")
# Upper bounds of the buckets of histograms, in seconds.
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# A commit takes 30 to 170 µs, unless it waits for upkeep or for the disk.
COMMIT_SECONDS: Final = (0.0001, 0.00025, *SECONDS)
# How the stream of a subscriber is compressed, on any transport; `none`: it is not.
COMPRESSIONS: Final = ("none", "zstd", "gzip")

Family = TypeVar("Family", bound=MetricWrapperBase)


class Children(dict[str, Family]):
    """The children of a family by the value of their last label; `first` are the values of those before it.

    A lookup is one of a dictionary, where `family.labels` takes a lock. There is a child for each of
    `names` from the start; one for any other name is added when it is first used.

    It is a dictionary that never loses a key. So names must come from a bounded set.
    """

    def __init__(self, family: Family, names: Iterable[str], *first: str) -> None:
        super().__init__((name, family.labels(*first, name)) for name in names)
        # Read for totals (`by_label`): it has all children, also those with other values of `first`.
        self.family = family
        self._first = first

    def __missing__(self, name: str) -> Family:
        """Make the child for a name that is used for the first time, and keep it."""
        child = self[name] = self.family.labels(*self._first, name)
        return child


@dataclass(frozen=True, slots=True)
class UpstreamMetrics:
    """The counters of one upstream; `drops` is by reason, `floods` by kind, `frames` by type.

    All PDSes of an upstreams file share one, whose label is `pds`.
    """

    # Connections after the first one.
    reconnects: Counter
    # Commits from which the producer left records out for their size (`tooBig`).
    too_big: Counter
    # Irregular numbers of the upstream: gaps of any length, those of more than 10,000 numbers, and
    # restarts of the sequence.
    gaps: Counter
    jumps: Counter
    restarts: Counter
    # Frames received, data that was left out, and connections closed for a flood.
    frames: Children[Counter]
    drops: Children[Counter]
    floods: Children[Counter]
    # Errors of the server itself while it read an upstream. One counter of all upstreams, which is that of
    # `Metrics.failures`.
    faults: Counter

    def count_frames(self, types: Mapping[str, int], drops: Mapping[str, int], too_big: int) -> None:
        """Count a run of frames: how many of each type, what was dropped, and truncated commits.

        Called once for each batch. The keys of `types` and `drops` are values of labels: message types
        and `DROP_REASONS`.
        """
        for name, count in types.items():
            self.frames[name].inc(count)
        for reason, count in drops.items():
            if count:
                self.drops[reason].inc(count)
        if too_big:
            self.too_big.inc(too_big)

    def count_sequence(self, gaps: int, jumps: int, restarts: int) -> None:
        """Count what was irregular in the upstream's numbers.

        Called once for each batch, mostly with zeros.
        """
        self.gaps.inc(gaps)
        self.jumps.inc(jumps)
        self.restarts.inc(restarts)


@dataclass(frozen=True, slots=True)
class KeyMetrics:
    """What is counted of signing keys; `requests` is by result, `refreshes` by cause."""

    # Requests for keys by result: `ok`, or why there is no key.
    requests: Children[Counter]
    # Requests for keys that are known already, by cause.
    refreshes: Children[Counter]
    # Seconds from the first need of a key to its answer.
    seconds: Histogram


@dataclass(frozen=True, slots=True)
class AdmissionMetrics:
    """What is counted of judged messages.

    `verdicts` is by verdict and reason, which is empty but for a refusal; `gaps` by what showed them; `drops`
    returns the counters of a source by reason, which are those of `UpstreamMetrics`.
    """

    # Commits and syncs that were judged. The key is that of the labels.
    verdicts: Mapping[tuple[str, str], Counter]
    gaps: Children[Counter]
    # Given the name of an upstream. The counter of a reason appears with its first use.
    drops: Callable[[str], Children[Counter]]


class Metrics:
    """The metrics of one server, or of one of its processes. `wires` are the names of its wires.

    Families of the process itself (`process_…`, `python_info`) are registered as well.
    """

    def __init__(self, wires: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        # The families that were made so far, by name without the prefix.
        self._families: dict[str, Any] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        wires = tuple(wires)
        counter, counters, histogram = self._counter, self._counters, self._histogram
        # Stored events by kind; those of an edge are what it reads from the log.
        self.events = counters("events", "Events stored", "kind", KIND_NAMES.values())
        # Events of the most frequent collections. `figures` calls its `tick` every second.
        self.collections = FrequentCollections()
        self.log_failures = counter("log_write_failures", "Commits that failed.")
        # Observed once for each batch, also while the disk refuses: only the attempt that succeeds
        # counts.
        self.commit = histogram("commit_seconds", "From the append of a batch to its commit.", COMMIT_SECONDS)
        gauge_by = self._gauge_by
        # The next three are changed when a subscriber comes and when it goes.
        self.subscribers = gauge_by("subscribers", "Connected subscribers, by wire.", "wire", wires)
        self.compressions = gauge_by(
            "subscribers_by_compression", "Connected subscribers.", "compression", COMPRESSIONS
        )
        self.event_streams = gauge_by(
            "event_streams", "Subscribers of /events, by coding.", "coding", STREAM_CODINGS
        )
        # Counted once for each write, not for each event.
        self.messages = counters("messages_sent", "Events sent to subscribers", "wire", wires)
        self.bytes = counters("bytes_sent", "Bytes of events sent to subscribers", "wire", wires)
        # Subscribers that have ended and requests to subscribe that were refused, each with one reason.
        self.disconnects = counters("disconnects", "Subscribers that left", "reason", CLOSE_REASONS)
        self.refusals = counters("refused", "Requests to subscribe refused", "reason", REFUSAL_REASONS)
        self.bad_requests = counters("bad_requests", "HTTP requests refused", "reason", BAD_REQUEST_REASONS)
        # Connections without a request, closed while files or connections are short.
        self.evicted = counter("evicted", "Idle connections that were closed to make room.")
        # What the server was doing when an error of its own occurred.
        self.failures = counters("internal_errors", "Errors of the server itself", "doing", FAILURES)
        # Observed once for each batch, for its oldest frame. The other one is measured every so often.
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
        """Return a family, the same one each time: a process that leads again goes on counting.

        `name` is without the prefix. Raises ValueError for a name that another collector has
        registered.
        """
        found: Family | None = self._families.get(name)
        if found is None:
            found = kind(f"jetstream_{name}", text, labels, registry=self.registry, **more)
            self._families[name] = found
        return found

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        """Return a counter, the same one for the same name; its labels are those of the first call."""
        return self._family(Counter, name, text, labels)

    def _counters(self, name: str, text: str, label: str, values: Iterable[str]) -> Children[Counter]:
        """Return the counters of a family with one label; each of its values is shown from now on."""
        return Children(self._counter(name, f"{text}, by {label}.", label), values)

    def _gauge_by(self, name: str, text: str, label: str, values: Iterable[str]) -> Children[Gauge]:
        """Return the gauges of a family with one label, as `_counters` does."""
        return Children(self._family(Gauge, name, text, [label]), values)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        """Return a histogram, whose buckets are those of the first call, in seconds."""
        return self._family(Histogram, name, text, buckets=buckets)

    def upstream(
        self, name: str, frame_types: Iterable[str] = (), drop_reasons: Iterable[str] = ()
    ) -> UpstreamMetrics:
        """Return the counters of one upstream, whose label `upstream` is its name.

        Called again with the same name, it returns the same counters. What is shown from the start, as
        0, are `frame_types` and `drop_reasons`.
        """
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

        A server without admission does not call it, and has none of these families.
        """
        return KeyMetrics(
            self._counters("key_requests", "Requests for signing keys", "result", ("ok", *failures)),
            self._counters("key_refreshes", "Refreshes of signing keys in use", "cause", KEY_REFRESH_CAUSES),
            self._histogram("key_request_seconds", "From the first need of a signing key to its answer."),
        )

    def admission(self, verdicts: Iterable[str], refusals: Iterable[str]) -> AdmissionMetrics:
        """Return the metrics of judged messages, which are shown from then on.

        `refusals` are the reasons of the verdict `refused`.

        `verdicts` are all verdicts of `admission`, of which only `refused` has reasons. Every pair of
        both labels is made here: the judge only looks counters up.
        """
        counter = self._counter("verify", "Commits and syncs judged, by verdict.", "verdict", "reason")
        labels = [(verdict, "") for verdict in verdicts if verdict != "refused"]
        labels += [("refused", reason) for reason in refusals]
        gaps = self._counters("gaps", "Messages of a repository that never came", "cause", GAP_CAUSES)
        drops: dict[str, Children[Counter]] = {}

        def drops_of(upstream: str) -> Children[Counter]:
            """Return the counters of what was dropped of an upstream, by reason."""
            if upstream not in drops:
                drops[upstream] = Children(self._drops, (), upstream)
            return drops[upstream]

        return AdmissionMetrics({each: counter.labels(*each) for each in labels}, gaps, drops_of)

    def watch_keys(self, in_memory: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show how many accounts have their key in memory, and how many requests run or wait.

        Both functions are called at each scrape. A process that leads again replaces those of its last
        term.
        """
        for name, text, value in (
            ("keys_in_memory", "Accounts whose signing key is in memory.", in_memory),
            ("key_requests_waiting", "Requests for signing keys that run or wait.", waiting),
        ):
            self._family(Gauge, name, text).set_function(value)

    def workers(self) -> Children[Counter]:
        """Return the counters of processes that were replaced, by cause, shown from then on.

        The causes are `WORKER_ENDS`: a process that verifies has died, was killed as it hung, or did
        not start.
        """
        return self._counters("verify_worker_restarts", "Processes replaced", "cause", WORKER_ENDS)

    def count_events(self, batch: Batch) -> None:
        """Count stored events.

        Called once for each batch, after it is stored.
        """
        for kind in set(batch.kinds):
            self.events[KIND_NAMES[kind]].inc(batch.kinds.count(kind))
        self.collections.add(batch.collections)

    def count_sent(self, wire: str, messages: int, size: int) -> None:
        """Count what was written to subscribers of one wire; `size` is in bytes.

        An event that is written to ten subscribers counts ten times. `size` is that of what was
        written, compressed or not.
        """
        self.messages[wire].inc(messages)
        self.bytes[wire].inc(size)

    def totals(self) -> dict[str, dict[str, float]]:
        """Return what was dropped, disconnected and refused since the start, by reason, where it was any.

        For `/status.json`. A reason that has not occurred is left out.
        """
        families = {
            "drops": self._drops,
            "disconnects": self.disconnects.family,
            "refused": self.refusals.family,
        }
        return {name: by_label(family, "reason") for name, family in families.items()}

    def watch(self, status: Callable[[], Status]) -> None:
        """Show the gauges of a server, for which `status` is called at each scrape.

        To be called once, when all parts of the server are there.
        """
        self.registry.register(Gauges(status))


def by_label(family: MetricWrapperBase, label: str) -> dict[str, float]:
    """Return the values of a family summed up by one of its labels, without those that are 0.

    Values of a family with more labels are added up over the others. The time at which a counter began
    is left out.
    """
    found: dict[str, float] = {}
    for metric in family.collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created") and sample.value:
                found[sample.labels[label]] = found.get(sample.labels[label], 0) + sample.value
    return found
