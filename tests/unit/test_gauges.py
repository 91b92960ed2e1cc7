"""The families that are made of a status."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.unit.test_metrics import STATUS, UPSTREAM, shown, value

from jetstream.status import EdgeStatus, ReaderStatus

LAG = "subscriber_lag_seconds_bucket"


def test_readers_are_shown_by_how_far_they_are_behind() -> None:
    registry = shown(replace(STATUS, readers=ReaderStatus(4, 3, (10, 0, 4, 0, 0, 0, 1, 2))))
    assert value(registry, "subscribers_behind", how="catching_up") == 4
    assert value(registry, "subscribers_behind", how="lagging") == 3
    found = [value(registry, LAG, le=le) for le in ("1.0", "10.0", "60.0", "21600.0", "86400.0", "+Inf")]
    assert found == [10, 10, 14, 14, 15, 17]


def test_what_the_system_says_is_shown() -> None:
    log = replace(STATUS.log, disk_free_bytes=123)
    registry = shown(replace(STATUS, log=log, written_bytes=456, subscribers_max=20))
    assert value(registry, "disk_free_bytes") == 123
    assert value(registry, "disk_written_bytes_total") == 456
    assert value(registry, "subscribers_max") == 20
    unknown = shown(STATUS)
    assert value(unknown, "disk_free_bytes") is None
    assert value(unknown, "disk_written_bytes_total") is None


def test_collections_are_shown_as_counters() -> None:
    registry = shown(replace(STATUS, collections={"a.b.c": 5, "other": 7}))
    assert value(registry, "events_by_collection_total", collection="a.b.c") == 5
    assert value(registry, "events_by_collection_total", collection="other") == 7


@pytest.mark.parametrize(("age_s", "ready"), [(None, 0), (1.0, 1), (99.0, 0)])
def test_readiness_and_the_age_of_the_last_frame(age_s: float | None, ready: int) -> None:
    upstream = replace(UPSTREAM, last_frame_age_s=age_s)
    registry = shown(replace(STATUS, upstreams=(upstream,), ready_idle_s=60.0))
    assert value(registry, "ready") == ready
    assert value(registry, "upstream_last_frame_age_seconds", upstream=UPSTREAM.name) == age_s


def test_only_an_edge_has_a_lag_behind_its_log() -> None:
    edge = EdgeStatus(lag_s=2.5, writer_silent_s=0.1, writer_alive=True, unread_s=0.1, readable=True)
    assert value(shown(replace(STATUS, edge=edge)), "edge_lag_seconds") == 2.5
    assert value(shown(STATUS), "edge_lag_seconds") is None


def test_the_version_is_a_label() -> None:
    (family,) = [each for each in shown(STATUS).collect() if each.name == "jetstream_build_info"]
    assert family.samples[0].labels["role"] == "all"
    assert family.samples[0].labels["version"] == "1"
    assert family.samples[0].value == 1


def test_openmetrics_can_be_read() -> None:
    registry = shown(replace(STATUS, readers=ReaderStatus(4, 3, (10, 0, 4, 0, 0, 0, 1, 2)), written_bytes=1))
    encode, _ = exposition.choose_encoder("application/openmetrics-text; version=1.0.0")
    text = encode(registry).decode()
    parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {each.name: each.type for each in parsed}
    assert families["jetstream_subscriber_lag_seconds"] == "gaugehistogram"
    assert families["jetstream_disk_written_bytes"] == "counter"
