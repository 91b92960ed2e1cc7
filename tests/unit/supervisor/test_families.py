from __future__ import annotations

from collections.abc import Callable

import orjson
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from prometheus_client.parser import text_string_to_metric_families

from jetstream.supervisor.families import Collected, Family, Kept, by_label, merged, pack, unpack


def families(build: Callable[[CollectorRegistry], object]) -> list[Family]:
    """Return the families of a registry, as another process gets them."""
    registry = CollectorRegistry()
    build(registry)
    return unpack(orjson.loads(orjson.dumps(pack(registry))))


def counter(name: str, count: float, **labels: str) -> list[Family]:
    def build(registry: CollectorRegistry) -> None:
        family = Counter(name, "Text.", list(labels), registry=registry)
        (family.labels(**labels) if labels else family).inc(count)

    return families(build)


def gauge(name: str, value: float) -> list[Family]:
    return families(lambda registry: Gauge(name, "Text.", registry=registry).set(value))


def value(found: dict[str, Family], name: str) -> float:
    (only,) = (value for (sample, _), value in found[name].samples.items() if not sample.endswith("_created"))
    return only


def test_counters_of_all_processes_are_added_up_by_their_labels() -> None:
    ingest = counter("refused", 1, reason="a")
    edges = [counter("refused", 2, reason="b"), counter("refused", 3, reason="a")]
    found = merged(ingest, edges, Kept())
    assert by_label(found, "refused", "reason") == {"a": 4, "b": 2}


def test_histograms_are_added_up_bucket_by_bucket() -> None:
    def observing(*values: float) -> list[Family]:
        def build(registry: CollectorRegistry) -> None:
            histogram = Histogram("seconds", "Text.", buckets=(1, 2), registry=registry)
            for each in values:
                histogram.observe(each)

        return families(build)

    samples = merged([], [observing(0.5, 1.5), observing(1.5, 9.0)], Kept())["seconds"].samples
    counts = {dict(labels).get("le", name): count for (name, labels), count in samples.items()}
    assert (counts["1.0"], counts["2.0"], counts["+Inf"]) == (1, 3, 4)
    assert (counts["seconds_count"], counts["seconds_sum"]) == (4, 12.5)


def test_gauges_are_taken_by_their_meaning() -> None:
    ingest = [*gauge("jetstream_log_events", 10), *gauge("jetstream_subscribers_behind", 0)]
    ingest += [*gauge("jetstream_condition", 0), *gauge("process_start_time_seconds", 5)]
    edge = [*gauge("jetstream_log_events", 9), *gauge("jetstream_subscribers_behind", 3)]
    edge += [*gauge("jetstream_condition", 1), *gauge("process_start_time_seconds", 4)]
    ingest += gauge("jetstream_subscribers_max", 0)  # it serves nobody
    edge += gauge("jetstream_subscribers_max", 100)
    found = merged(ingest, [edge, edge], Kept())
    assert value(found, "jetstream_log_events") == 10  # the ingest knows the log
    assert value(found, "jetstream_subscribers_behind") == 6
    assert value(found, "jetstream_condition") == 1
    assert value(found, "process_start_time_seconds") == 4
    assert value(found, "jetstream_subscribers_max") == 100


def test_events_are_counted_where_they_are_stored_and_not_where_they_are_read() -> None:
    stored, read = (
        counter("jetstream_events", 7, kind="create"),
        counter("jetstream_events", 6, kind="create"),
    )
    assert by_label(merged(stored, [read, read], Kept()), "jetstream_events", "kind") == {"create": 7}
    kept = Kept()
    kept.add(read, is_ingest=False)
    kept.add(stored, is_ingest=True)
    assert by_label(merged([], [], kept), "jetstream_events", "kind") == {"create": 7}


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(1, 9))),
        max_size=60,
    )
)
def test_no_counter_ever_falls_whichever_processes_end(steps: list[tuple[int, int | None]]) -> None:
    kept, live, shown = Kept(), [0, 0, 0], 0.0
    for place, more in steps:
        if more is None:
            kept.add(counter("sent", live[place]), is_ingest=place == 0)
            live[place] = 0
        else:
            live[place] += more
        ingest, *edges = (counter("sent", each) for each in live)
        now = value(merged(ingest, edges, kept), "sent")
        assert now >= shown
        shown = now
    assert shown == sum(more or 0 for _, more in steps)


def test_gauges_of_a_process_that_has_ended_are_not_kept() -> None:
    kept = Kept()
    kept.add(gauge("jetstream_subscribers", 3), is_ingest=False)
    assert kept.families == []


def test_collections_of_processes_that_have_ended_are_bounded() -> None:
    kept = Kept()
    for process in range(5):
        for number in range(100):
            name = f"com.example.p{process}.n{number}"
            kept.add(counter("jetstream_events_by_collection", 1 + process, collection=name), is_ingest=True)
    (family,) = kept.families
    counts = by_label({family.name: family}, family.name, "collection")
    assert len(counts) == 101
    assert sum(counts.values()) == 100 * (1 + 2 + 3 + 4 + 5)


def test_what_is_written_is_what_prometheus_reads() -> None:
    def build(registry: CollectorRegistry) -> None:
        Counter("a", "Of a.", ["x"], registry=registry).labels("1").inc(2)
        Gauge("b", "Of b.", registry=registry).set(0.5)
        Histogram("c", "Of c.", registry=registry).observe(1)

    registry = CollectorRegistry()
    build(registry)
    encode, _ = exposition.choose_encoder("")
    again = encode(Collected(merged(families(build), [], Kept()).values()))

    def read(text: bytes) -> list[object]:
        return [
            (each.name, each.type, each.documentation, list(each.samples))
            for each in text_string_to_metric_families(text.decode())
            if not each.name.endswith("_created")
        ]

    assert read(again) == read(encode(registry))
