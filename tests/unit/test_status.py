"""What follows from the state of a server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jetstream.status import LogStatistics, Status

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
