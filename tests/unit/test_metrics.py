"""The families of `/metrics`, as Prometheus reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from jetstream.conditions import CONDITIONS
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, DELETE, Event
from jetstream.status import LogStatistics, PdsStatus, Status, UpstreamStatus

UPSTREAM = UpstreamStatus("relay.example:443", "wss://relay.example", "idle", 7, 9, 0.25)
STATUS = Status(
    version="1",
    now_us=5_000_000,
    tip=4_000_000,
    log=LogStatistics(3, 4096, 1_000_000, 4_000_000, writable=True, wal_bytes=512, damaged=1),
    upstreams=(UPSTREAM,),
    reasons={"clock": "the clock is wrong"},
    subscribers=2,
)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"jetstream_{name}", labels)


def shown(status: Status) -> CollectorRegistry:
    metrics = Metrics()
    metrics.watch(lambda: status)
    return metrics.registry


def test_gauges_show_a_status() -> None:
    registry = shown(STATUS)
    relay = {"upstream": "relay.example:443"}
    assert value(registry, "log_events") == 3
    assert value(registry, "log_bytes") == 4096
    assert value(registry, "log_wal_bytes") == 512
    assert value(registry, "log_damaged") == 1
    assert value(registry, "log_ahead_seconds") == 0
    assert value(registry, "log_oldest_us") == 1_000_000
    assert value(registry, "log_newest_us") == 4_000_000
    assert value(registry, "log_writable") == 1
    assert value(registry, "upstream_seq", **relay) == 9
    assert value(registry, "upstream_lag_seconds", **relay) == 0.25
    states = {
        state: value(registry, "upstream_state", state=state, **relay)
        for state in ("connected", "idle", "reconnecting")
    }
    assert states == {"connected": 0, "idle": 1, "reconnecting": 0}
    assert {name: value(registry, "condition", condition=name) for name in CONDITIONS} == {
        name: name == "clock" for name in CONDITIONS
    }


def test_a_gauge_without_a_value_is_left_out() -> None:
    empty = replace(STATUS.log, oldest_us=None, newest_us=None)
    new = replace(UPSTREAM, seq=None, taken_seq=None, lag_s=None)
    registry = shown(replace(STATUS, log=empty, upstreams=(new,)))
    names = {family.name for family in registry.collect()}
    absent = {"log_oldest_us", "log_newest_us", "upstream_seq", "upstream_lag_seconds"}
    assert not names & {f"jetstream_{name}" for name in absent}


def test_each_upstream_has_gauges_and_counters_of_its_own() -> None:
    metrics = Metrics()
    metrics.watch(lambda: replace(STATUS, upstreams=(UPSTREAM, replace(UPSTREAM, name="b:1", taken_seq=1))))
    metrics.upstream("relay.example:443").reconnects.inc()
    metrics.upstream("b:1").count_sequence(gaps=3, jumps=2, restarts=1)
    for name, first, second in [
        ("upstream_seq", 9, 1),
        ("upstream_reconnects_total", 1, 0),
        ("upstream_gaps_total", 0, 3),
        ("upstream_jumps_total", 0, 2),
        ("upstream_sequence_restarts_total", 0, 1),
    ]:
        assert value(metrics.registry, name, upstream="relay.example:443") == first
        assert value(metrics.registry, name, upstream="b:1") == second


def test_upstreams_are_counted_by_kind_and_state() -> None:
    pds = PdsStatus(Counter({"connected": 300, "reconnecting": 12}), ())
    for status, reconnecting, idle in (replace(STATUS, pds=pds), 12, 1), (STATUS, 0, 1):
        registry = shown(status)
        assert value(registry, "upstreams", kind="pds", state="reconnecting") == reconnecting
        assert value(registry, "upstreams", kind="relay", state="idle") == idle
        assert value(registry, "upstreams", kind="relay", state="connected") == 0


def test_a_condition_of_an_upstream_is_shown_under_its_name() -> None:
    reasons = {"frames_not_taken a": "why", "frames_not_taken b:443": "why"}
    registry = shown(replace(STATUS, reasons=reasons))
    held = {name for name in CONDITIONS if value(registry, "condition", condition=name)}
    assert held == {"frames_not_taken"}


def test_frames_and_what_was_dropped_of_them_are_counted_by_upstream() -> None:
    metrics = Metrics()
    upstream = metrics.upstream("a:1", ["commit", "info"], ["did", "rev"])
    upstream.count_frames({"commit": 2}, {"did": 3, "rev": 0}, too_big=1)
    upstream.count_frames({"commit": 1}, {}, too_big=0)
    for label, name, counts in [
        ("type", "upstream_frames_total", {"commit": 3, "info": 0}),
        ("reason", "dropped_total", {"did": 3, "rev": 0}),
        ("kind", "upstream_floods_total", {"control": 0}),
    ]:
        for each, count in counts.items():
            assert value(metrics.registry, name, **{"upstream": "a:1", label: each}) == count
    assert value(metrics.registry, "upstream_too_big_total", upstream="a:1") == 1


def test_requests_for_keys_are_counted_once_somebody_asks_for_their_metrics() -> None:
    metrics = Metrics()
    assert value(metrics.registry, "key_requests_total", result="ok") is None
    keys = metrics.keys(["timeout"])
    keys.requests["timeout"].inc()
    keys.refreshes["age"].inc()
    keys.seconds.observe(0.2)
    assert value(metrics.registry, "key_requests_total", result="ok") == 0
    assert value(metrics.registry, "key_requests_total", result="timeout") == 1
    assert value(metrics.registry, "key_refreshes_total", cause="age") == 1
    assert value(metrics.registry, "key_refreshes_total", cause="announced") == 0
    assert value(metrics.registry, "key_request_seconds_count") == 1


@pytest.mark.parametrize("wires", [("classic", "v1"), ()])
def test_wires_are_shown_from_the_start_and_others_when_they_are_used(wires: tuple[str, ...]) -> None:
    metrics = Metrics(wires)
    assert value(metrics.registry, "subscribers", wire="v1") == (0 if wires else None)
    metrics.subscribers["v1"].inc()
    metrics.count_sent("v1", 3, 500)
    assert value(metrics.registry, "subscribers", wire="v1") == 1
    assert value(metrics.registry, "messages_sent_total", wire="v1") == 3
    assert value(metrics.registry, "bytes_sent_total", wire="v1") == 500


def test_stored_events_are_counted_by_kind() -> None:
    metrics = Metrics()
    kinds = [CREATE, CREATE, DELETE]
    events = [Event(kind, b"did:plc:a", b"x.y.z", b"1", b"rev", b"", b"") for kind in kinds]
    metrics.count_events(Batch.of(events, range(1, 4)))
    counts = {
        kind: value(metrics.registry, "events_total", kind=kind) for kind in ("create", "delete", "update")
    }
    assert counts == {"create": 2, "delete": 1, "update": 0}


def test_events_are_counted_by_collection() -> None:
    metrics = Metrics()
    events = [Event(CREATE, b"did:plc:a", b"x.y.z", b"1", b"rev", b"", b"")] * 2
    metrics.count_events(Batch.of(events, range(1, 3)))
    assert metrics.collections.totals() == {"x.y.z": 2, "other": 0}


def test_values_are_summed_up_by_a_label() -> None:
    metrics = Metrics()
    for name in "a", "b":
        metrics.upstream(name, (), ["did", "rev"]).count_frames({}, {"did": 2}, 0)
    metrics.disconnects["slow"].inc()
    assert metrics.totals() == {"drops": {"did": 4}, "disconnects": {"slow": 1}, "refused": {}}


def test_parts_that_are_made_again_go_on_counting() -> None:
    """A process that leads again has new parts, which count what was counted before."""
    metrics = Metrics()
    for _ in range(2):
        metrics.keys(("timeout",)).requests["ok"].inc()
        metrics.admission(("ok", "refused"), ("hash",)).verdicts["refused", "hash"].inc()
        metrics.workers()["died"].inc()
    for waiting in (1.0, 2.0):
        metrics.watch_keys(lambda: 0.0, iter((waiting,)).__next__)
    assert value(metrics.registry, "key_requests_total", result="ok") == 2
    assert value(metrics.registry, "verify_total", verdict="refused", reason="hash") == 2
    assert value(metrics.registry, "verify_worker_restarts_total", cause="died") == 2
    assert value(metrics.registry, "key_requests_waiting") == 2
