"""What follows from the state of a server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from jetstream.status import EdgeStatus, LogStatistics, PdsStatus, Status, UpstreamStatus

STATUS = Status(
    version="1",
    now_us=5_000_000,
    tip=4_000_000,
    log=LogStatistics(3, 4096, 1_000_000, 4_000_000, writable=True),
    upstreams=(),
    reasons={},
    subscribers=2,
)


@pytest.mark.parametrize(
    ("writable", "reasons", "summary"),
    [
        (True, {}, "ok"),
        (True, {"clock": "the clock is wrong"}, "degraded"),
        (False, {}, "the log cannot be written: is the disk full?"),
        (False, {"log_unwritable": "no space"}, "the log cannot be written: is the disk full?"),
    ],
)
def test_the_summary_names_the_worst(writable: bool, reasons: dict[str, str], summary: str) -> None:
    assert replace(STATUS, log=replace(STATUS.log, writable=writable), reasons=reasons).summary == summary


def test_the_age_of_the_newest_event_is_by_the_servers_clock() -> None:
    assert STATUS.last_event_age_s == 1.0
    assert replace(STATUS, log=replace(STATUS.log, newest_us=None)).last_event_age_s is None


@pytest.mark.parametrize(("tip", "ahead_s"), [(4_000_000, 0), (5_000_000, 0), (7_500_000, 2.5)])
def test_the_tip_may_be_ahead_of_the_clock(tip: int, ahead_s: float) -> None:
    assert replace(STATUS, tip=tip).ahead_s == ahead_s


# Readiness

RELAY = UpstreamStatus("relay.example:443", "wss://relay.example", "connected", 7, 9, 0.25, 1.0, 50)
READY = replace(STATUS, upstreams=(RELAY,), ready_idle_s=60.0, ready_lag_s=60.0)


def failing(status: Status) -> list[str]:
    assert all(check.text and check.hint for check in status.not_ready)
    return [check.check for check in status.not_ready]


def relay(**fields: Any) -> Status:
    return replace(READY, upstreams=(replace(RELAY, **fields),))


def test_a_server_is_ready_while_fresh_frames_are_stored() -> None:
    assert failing(READY) == []
    assert failing(relay(lag_s=None)) == []
    assert failing(relay(last_frame_age_s=60.0, lag_s=59.9)) == []


EDGE = EdgeStatus(lag_s=0.5, writer_silent_s=0.1, writer_alive=True, unread_s=0.1, readable=True)
OF_AN_EDGE = replace(STATUS, role="edge", edge=EDGE, ready_idle_s=60.0, ready_lag_s=60.0)


def edge(**fields: Any) -> Status:
    return replace(OF_AN_EDGE, edge=replace(EDGE, **fields))


def test_an_edge_is_ready_while_it_serves_what_a_living_writer_writes() -> None:
    assert failing(OF_AN_EDGE) == []
    assert failing(edge(lag_s=59.9)) == []
    assert failing(replace(edge(lag_s=1e6), ready_lag_s=None)) == []
    assert edge(lag_s=3.0).lag_s == 3.0


def test_each_check_of_an_edge_may_fail() -> None:
    assert failing(edge(lag_s=60.0)) == ["lag"]
    assert failing(edge(writer_alive=False, writer_silent_s=9.0)) == ["writer_gone"]
    assert failing(edge(writer_alive=False, writer_silent_s=None)) == ["writer_gone"]
    assert failing(edge(readable=False, unread_s=2.0)) == ["log_unreadable"]
    assert failing(replace(OF_AN_EDGE, stopping=True)) == ["stopping"]


def test_the_lag_of_what_came_long_ago_does_not_count() -> None:
    quiet = replace(relay(lag_s=500.0, last_frame_age_s=61.0), ready_idle_s=3_600.0)
    assert failing(quiet) == []
    assert failing(relay(lag_s=500.0, last_frame_age_s=59.0)) == ["lag"]


def test_each_check_may_fail() -> None:
    assert failing(relay(last_frame_age_s=61.0)) == ["upstream_idle"]
    assert failing(relay(last_frame_age_s=None)) == ["upstream_idle"]
    assert failing(relay(lag_s=60.0)) == ["lag"]
    assert failing(replace(READY, stopping=True)) == ["stopping"]
    unwritable = replace(relay(lag_s=99.0), log=replace(READY.log, writable=False))
    assert failing(unwritable) == ["log_unwritable", "lag"]


@pytest.mark.parametrize(
    ("state", "checks"), [("connected", []), ("idle", []), ("reconnecting", ["upstream_idle"])]
)
def test_without_a_limit_a_connection_is_enough(state: Any, checks: list[str]) -> None:
    status = replace(
        relay(state=state, last_frame_age_s=None, lag_s=9e9), ready_idle_s=None, ready_lag_s=None
    )
    assert failing(status) == checks


def test_one_of_several_upstreams_is_enough() -> None:
    gone = replace(RELAY, state="reconnecting", last_frame_age_s=500.0, lag_s=900.0)
    assert failing(replace(READY, upstreams=(gone, RELAY))) == []
    assert failing(replace(READY, upstreams=(gone, gone))) == ["upstream_idle"]


def test_a_pds_of_the_file_is_an_upstream() -> None:
    pds = PdsStatus(Counter({"connected": 1, "reconnecting": 5}), (), 3.0)
    status = replace(READY, upstreams=(), pds=pds)
    assert failing(status) == []
    assert failing(replace(status, ready_idle_s=None)) == []
    assert failing(replace(status, pds=replace(pds, last_frame_age_s=None))) == ["upstream_idle"]
    gone = replace(pds, states=Counter({"reconnecting": 6}))
    assert failing(replace(status, pds=gone, ready_idle_s=None)) == ["upstream_idle"]
