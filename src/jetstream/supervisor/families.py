"""The families of `/metrics` of several processes as those of one server. Pure.

counters, histograms    added up; what a process had that has ended is kept, so none ever falls
gauges of connections,
memory and files      added up
events stored           those of the ingest: edges count what they read
other gauges            those of the ingest, else of the first edge

A process packs its families as JSON, the supervisor keeps the last ones of each, and `view` writes them
together when `/metrics` is asked for:

    registry ─▶ `pack` ─▶ snapshot ─▶ `unpack` ─▶ `merged`, with `Kept` ─▶ `Collected` ─▶ text
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from jetstream.frequent import LABELS_MAX, OTHER

# The name of a sample, and its labels.
Key = tuple[str, tuple[tuple[str, str], ...]]

# Types whose samples only rise. They are added up, and those of ended processes are kept.
_RISING: Final = ("counter", "histogram")
# Gauges of what each process has for itself, so that all of them together have the sum.
_SUMMED: Final = frozenset(
    {
        "jetstream_subscribers",
        "jetstream_subscribers_by_compression",
        "jetstream_event_streams",
        "jetstream_subscribers_behind",
        "jetstream_keys_in_memory",
        "jetstream_key_requests_waiting",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    }
)
# Gauges of which the highest is shown: a condition that one process has, and the edge that is most behind.
_HIGHEST: Final = frozenset(
    {"jetstream_condition", "jetstream_edge_lag_seconds", "jetstream_subscribers_max"}  # the ingest has none
)
# Gauges of which the lowest is shown: when the first process began, and the certificate that ends
# first.
_LOWEST: Final = frozenset({"process_start_time_seconds", "jetstream_certificate_expires_seconds"})
# Families of what is stored. An edge counts in them what it reads from the log, which is the same once
# more.
_OF_THE_INGEST: Final = frozenset({"jetstream_events", "jetstream_events_by_collection"})
# The one family whose label values come from events: at most `LABELS_MAX` of them, and `other`.
_BY_COLLECTION: Final = "jetstream_events_by_collection"
# How the names of samples end that `prometheus_client` adds to each counter: when it began, in unix
# seconds.
_CREATED: Final = "_created"


class Family(NamedTuple):
    """A family, as one process has it.

    `name` is without the ending of a sample, `type` one of Prometheus, `text` the help. Samples are by
    their name and labels.
    """

    name: str
    type: str
    text: str
    samples: dict[Key, float]


def pack(collector: Collector) -> list[list[Any]]:
    """Return the families of a process, for JSON.

    Values are numbers that JSON has: a NaN or an infinity, which no family here takes as a value, would
    become null.
    """
    return [
        [
            each.name,
            each.type,
            each.documentation,
            [[sample.name, sample.labels, sample.value] for sample in each.samples],
        ]
        for each in collector.collect()
    ]


def unpack(packed: Iterable[Sequence[Any]]) -> list[Family]:
    """Return what `pack` returned."""
    return [
        Family(
            name, kind, text, {(sample, tuple(labels.items())): value for sample, labels, value in samples}
        )
        for name, kind, text, samples in packed
    ]


class Kept:
    """The counters of processes that have ended.

    Without this, counters would fall when a process is replaced, which Prometheus takes for a restart
    of the server. Changed once for each process that ends, in the supervisor.
    """

    def __init__(self) -> None:
        # By the name of the family.
        # Samples are sums over all processes that have ended. Their number is fixed, and that of their
        # labels is bounded.
        self._families: dict[str, Family] = {}

    def add(self, families: Iterable[Family], *, is_ingest: bool) -> None:
        """Add what a process had that has ended.

        `families` are those of its last snapshot. What it counted after that is lost, which is at most
        what it counted in `gather_every_s` seconds if it was killed. An edge that ends does not add to
        what is stored.
        """
        for family in families:
            if family.type in _RISING and (is_ingest or family.name not in _OF_THE_INGEST):
                found = self._families.setdefault(family.name, family._replace(samples={}))
                _add(found.samples, _without_created(family.samples))
        if _BY_COLLECTION in self._families:
            _fold(self._families[_BY_COLLECTION].samples)

    @property
    def families(self) -> list[Family]:
        """All of them."""
        return list(self._families.values())


def merged(ingest: Sequence[Family], edges: Iterable[Sequence[Family]], kept: Kept) -> dict[str, Family]:
    """Return the families of all processes together, by name.

    The first process that has a gauge counts, in the order ingest, edges, supervisor. The given
    families are not changed.
    """
    found: dict[str, Family] = {}
    others = [[each for each in one if each.name not in _OF_THE_INGEST] for one in edges]
    for families in (ingest, *others, kept.families):
        for family in families:
            before = found.get(family.name)
            if before is None:
                found[family.name] = family._replace(samples=dict(family.samples))
            else:
                _merge(before, family)
    return found


def _merge(found: Family, family: Family) -> None:
    """Add a family of another process to what was found, by the rule of its name and type.

    What is neither added nor compared stays as the first process has it; samples with other labels are
    taken.
    """
    name, samples = family.name, family.samples
    if name in _SUMMED or family.type in (*_RISING, "gaugehistogram"):
        _add(found.samples, _without_created(samples))
    elif name in _HIGHEST or name in _LOWEST:
        better = max if name in _HIGHEST else min
        for key, value in samples.items():
            found.samples[key] = better(found.samples.get(key, value), value)
    else:
        for key, value in samples.items():
            found.samples.setdefault(key, value)


def _add(found: dict[Key, float], samples: Mapping[Key, float]) -> None:
    """Add samples to what was found, each to the one with the same name and labels."""
    for key, value in samples.items():
        found[key] = found.get(key, 0) + value


def _without_created(samples: Mapping[Key, float]) -> dict[Key, float]:
    """Return samples without the times at which counters began: the first process has those of the server."""
    return {key: value for key, value in samples.items() if not key[0].endswith(_CREATED)}


def _fold(samples: dict[Key, float]) -> None:
    """Add the rarest collections to the others: there may be others with each process, and they are kept."""
    ranked = sorted(samples, key=lambda key: samples[key], reverse=True)
    for key in [key for key in ranked if key[1] != (("collection", OTHER),)][LABELS_MAX:]:
        other: Key = (key[0], (("collection", OTHER),))
        samples[other] = samples.get(other, 0) + samples.pop(key)


def by_label(families: Mapping[str, Family], name: str, label: str) -> dict[str, float]:
    """Return the values of a family summed up by one of its labels, without those that are 0."""
    found: dict[str, float] = {}
    for (sample, labels), value in families[name].samples.items() if name in families else ():
        if value and not sample.endswith(_CREATED):
            key = dict(labels)[label]
            found[key] = found.get(key, 0) + value
    return found


class Collected(Collector):
    """Families for `prometheus_client` to write."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return them.

        `prometheus_client` calls it once for each text that it writes.
        """
        for family in self._families:
            metric = Metric(family.name, family.text, family.type)
            for (name, labels), value in family.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric
