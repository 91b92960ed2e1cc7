"""What `/health` shows of a status, and how often `/metrics` is rendered."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from jetstream.limits import WebLimits
from jetstream.metrics import Metrics
from jetstream.status import LogStatistics, Status, UpstreamStatus
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


def test_health_shows_the_status() -> None:
    answer = pages.health(lambda: STATUS)(ASKED)
    assert answer.status == 200
    assert orjson.loads(answer.body) == {
        "status": "degraded",
        "reasons": ["the clock is wrong"],
        "version": "1.2",
        "upstream": {"url": "wss://relay.example", "state": "idle", "seq": 7},
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
