"""The gauges of `/metrics`, and other families that are made of one `Status` at each scrape.

    scrape ──▶ registry ──▶ Gauges.collect ──▶ Service.status ──▶ gauges: one family after another

Counters and histograms that rise as the server works are in `metrics`; here is what has a present value.
Names are without the prefix `jetstream_`, which `_gauge` adds. docs/metrics.md describes each, and a
test compares the two.
"""

from __future__ import annotations

import platform
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jetstream.conditions import CONDITIONS, name_of
from jetstream.status import LAGS_S, UPSTREAM_STATES, ReaderStatus, Status, UpstreamStatus

# The values of the label `kind`: upstreams of `--upstream`, and those of `--upstream-file`.
_KINDS: Final = ("relay", "pds")
# Read once: it does not change while the process runs.
_PYTHON: Final = platform.python_version()
# The labels of `jetstream_build_info`, whose value is always 1.
_BUILD: Final = ("version", "python", "role")


class Gauges(Collector):
    """Makes families of a `Status` whenever the registry is collected.

    The registry of the client library calls `collect` on the event loop's thread, once for each scrape.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Return the families as of now. Raises OSError if the log's disk does not answer."""
        return gauges(self._status())


def gauges(status: Status) -> Iterator[Metric]:
    """Yield every family that is made of a status. A gauge without any value yet is left out."""
    log = status.log
    # Gauges without labels: a name, the help text, and the value or None. Booleans become 0 and 1.
    for name, text, value in (
        ("log_events", "Events in the log.", log.events),
        ("log_bytes", "Size of the log on disk.", log.bytes_on_disk),
        ("log_wal_bytes", "Size of the log's write-ahead log.", log.wal_bytes),
        ("log_damaged", "Damaged parts of the log that were met.", log.damaged),
        ("log_ahead_seconds", "How far the newest event is ahead of the clock.", status.ahead_s),
        ("log_oldest_us", "time_us of the oldest event.", log.oldest_us),
        ("log_newest_us", "time_us of the newest event.", log.newest_us),
        ("log_writable", "1 while commits succeed.", log.writable),
        ("disk_free_bytes", "Free bytes of the disk that the log is on.", log.disk_free_bytes),
        ("verify_waiting", "Messages that wait for a key, or for those before them.", status.waiting),
        ("ready", "1 while /ready answers 200.", not status.not_ready),
        (
            "certificate_expires_seconds",
            "When the TLS certificate expires, in unix seconds.",
            status.certificate_expires_s,
        ),
        ("subscribers_max", "The limit of subscribers.", status.subscribers_max),
        (
            "edge_lag_seconds",
            "How long an edge has not published what the log has.",
            None if status.edge is None else status.edge.lag_s,
        ),
    ):
        yield from _gauge(name, text, [((), value)])
    # Text is told by labels: a sample has only a number.
    build = [((status.version, _PYTHON, status.role), 1)]
    yield from _gauge("build_info", "1, with the versions and the role as labels.", build, *_BUILD)
    yield from _upstreams(status)
    # Every condition is present, also those that do not hold, so that a rule on it can be written
    # beforehand. Those of several upstreams are one series: `/health` says of which.
    held = set(map(name_of, status.reasons))
    conditions = [([name], name in held) for name in CONDITIONS]
    yield from _gauge("condition", "1 while /health gives this reason.", conditions, "condition")
    yield from _readers(status.readers)
    yield from _counters(status)


def _upstreams(status: Status) -> Iterator[Metric]:
    """Yield the gauges of each upstream, and how many upstreams are in which state.

    PDSes of a file are counted only: each as a series of its own would be thousands.
    """
    upstreams = status.upstreams

    # Samples of one gauge, with the name of the upstream as their label; those that are None are left
    # out.
    def of_each(value: Callable[[UpstreamStatus], float | None]) -> list[tuple[list[str], float | None]]:
        return [([each.name], value(each)) for each in upstreams]

    yield from _gauge("upstream_seq", "The last seq taken.", of_each(lambda each: each.taken_seq), "upstream")
    lags = of_each(lambda each: each.lag_s)
    yield from _gauge("upstream_lag_seconds", "Age of the last message when it arrived.", lags, "upstream")
    ages = of_each(lambda each: each.last_frame_age_s)
    yield from _gauge("upstream_last_frame_age_seconds", "Seconds since the last frame.", ages, "upstream")
    states = [([each.name, state], each.state == state) for each in upstreams for state in UPSTREAM_STATES]
    yield from _gauge("upstream_state", "1 for the state of the connection.", states, "upstream", "state")
    counts = Count(each.state for each in upstreams), status.pds.states if status.pds else Count()
    numbers = [
        ([kind, each], n[each]) for kind, n in zip(_KINDS, counts, strict=True) for each in UPSTREAM_STATES
    ]
    yield from _gauge("upstreams", "Upstreams by kind and state.", numbers, "kind", "state")


def _readers(readers: ReaderStatus) -> Iterator[Metric]:
    """Yield how far subscribers are behind. The histogram is of now: its buckets rise and fall."""
    behind = [(["catching_up"], readers.catching_up), (["lagging"], readers.lagging)]
    yield from _gauge("subscribers_behind", "Subscribers that are behind, by how.", behind, "how")
    text = "How far subscribers are behind the newest event, now."
    # The client library has no class for it. The type is of OpenMetrics: buckets are cumulative, and may
    # fall.
    lags = Metric("jetstream_subscriber_lag_seconds", text, "gaugehistogram")
    for bound, count in zip((*LAGS_S, "+Inf"), accumulate(readers.lags), strict=True):
        lags.add_sample(f"{lags.name}_bucket", {"le": str(bound)}, count)
    yield lags


def _counters(status: Status) -> Iterator[Metric]:
    """Yield the counters that are read from a status: they are counted elsewhere already.

    Events by collection have the labels that `frequent` has chosen.
    """
    text = "Events stored, by collection: the most frequent ones, and all others."
    events = CounterMetricFamily("jetstream_events_by_collection", text, labels=["collection"])
    for collection, count in status.collections.items():
        events.add_metric([collection], count)
    yield events
    if status.written_bytes is not None:
        text = "Bytes that the process has caused to be written to disk."
        yield CounterMetricFamily("jetstream_disk_written_bytes", text, value=status.written_bytes)


def _gauge(
    name: str, text: str, samples: Iterable[tuple[Sequence[str], float | None]], *labels: str
) -> Iterator[Metric]:
    """Yield a gauge of the samples whose value is known: each has the values of the labels, and its own."""
    family = GaugeMetricFamily(f"jetstream_{name}", text, labels=labels)
    for label_values, value in samples:
        if value is not None:
            family.add_metric(label_values, value)
    # Prometheus takes an absent gauge for unknown; one with a made-up 0 would raise alerts.
    if family.samples:
        yield family
