"""What `/health` shows of a status, and how often `/metrics` is rendered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import orjson
import pytest

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.status import LogStatistics, PdsStatus, Status, UpstreamStatus
from jetstream.token_bucket import Rate
from jetstream.web import pages
from jetstream.web.http import Request

ASKED = Request("GET", "/metrics", "", 1, {})
STATUS = Status(
    version="1.2",
    now_us=5_500_000,
    tip=4_000_000,
    log=LogStatistics(3, 4096, 1_000_001, 4_000_000, writable=True, wal_bytes=512, damaged=1),
    upstreams=(UpstreamStatus("relay.example:443", "wss://relay.example", "idle", 7, 9, 0.25),),
    reasons={"clock": "the clock is wrong"},
    subscribers=2,
)
UPSTREAM = {
    "name": "relay.example:443",
    "url": "wss://relay.example",
    "state": "idle",
    "seq": 7,
    "lag_s": 0.25,
}


def test_health_shows_the_status() -> None:
    answer = pages.health(lambda: STATUS)(ASKED)
    assert answer.status == 200
    assert orjson.loads(answer.body) == {
        "status": "degraded",
        "reasons": ["the clock is wrong"],
        "version": "1.2",
        "upstream": UPSTREAM,
        "upstreams": [UPSTREAM],
        "pds": None,
        "waiting": None,
        "last_event_age_s": 1.5,
        "log": {
            "events": 3,
            "bytes": 4096,
            "wal_bytes": 512,
            "damaged": 1,
            "oldest_us": 1_000_001,
            "oldest": "1970-01-01T00:00:01.000001Z",
            "newest_us": 4_000_000,
            "newest": "1970-01-01T00:00:04.000000Z",
        },
        "subscribers": 2,
    }


def test_health_shows_how_many_pdses_are_in_which_state() -> None:
    pds = PdsStatus(Counter({"connected": 300, "reconnecting": 12}), ("a.example:443", "b"))
    status = replace(STATUS, upstreams=(), pds=pds)
    body = orjson.loads(pages.health(lambda: status)(ASKED).body)
    assert (body["upstream"], body["upstreams"]) == (None, [])
    assert body["pds"] == {
        "connected": 300,
        "idle": 0,
        "reconnecting": 12,
        "not_connected": ["a.example:443", "b"],
    }


def test_health_shows_the_first_of_thousands_of_reasons() -> None:
    reasons = {f"frames_not_taken {number}": f"reason {number}" for number in range(1_000)}
    body = orjson.loads(pages.health(lambda: replace(STATUS, reasons=reasons))(ASKED).body)
    assert body["reasons"][:2] == ["reason 0", "reason 1"]
    assert body["reasons"][pages.REASONS_MAX :] == [f"and {1_000 - pages.REASONS_MAX} more"]


@pytest.mark.parametrize(("writable", "code"), [(True, 200), (False, 503)])
def test_health_fails_while_events_cannot_be_stored(writable: bool, code: int) -> None:
    status = replace(STATUS, log=replace(STATUS.log, writable=writable))
    assert pages.health(lambda: status)(ASKED).status == code


def test_metrics_are_rendered_for_each_request_within_the_budget() -> None:
    limits = WebLimits(metrics_renderings=Rate(0, 3))
    page = pages.metrics(Metrics(), limits, clock=lambda: 0.0)

    answers = [page(ASKED) for _ in range(9)]

    assert len({id(answer) for answer in answers}) == 4  # the first one is free
    assert answers[3:] == [answers[3]] * 6


def test_metrics_that_are_too_old_are_rendered_again_over_the_budget() -> None:
    now_s = 0.0
    page = pages.metrics(Metrics(), WebLimits(metrics_renderings=Rate(0, 0)), clock=lambda: now_s)
    first = page(ASKED)
    now_s = 0.9
    assert page(ASKED) is first
    now_s = 1.0
    assert page(ASKED) is not first
