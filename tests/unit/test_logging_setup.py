"""Log lines that another party can cause are throttled."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from jetstream.logging_setup import Throttled


def test_each_event_is_logged_once_a_minute_with_the_number_omitted() -> None:
    now = 0.0
    with capture_logs() as lines:
        log = Throttled(structlog.get_logger(), clock=lambda: now)
        for now in (0.0, 1.0, 59.9, 60.0, 60.1, 500.0):
            log.warning("bad request", peer=now)
        log.info("another")
    seen = [(line["event"], line.get("peer"), line.get("omitted")) for line in lines]
    assert seen == [
        ("bad request", 0.0, None),
        ("bad request", 60.0, 2),
        ("bad request", 500.0, 1),
        ("another", None, None),
    ]


def test_an_exception_is_logged_with_its_traceback_once_a_minute() -> None:
    times = iter((0.0, 1.0, 60.0))
    with capture_logs() as lines:
        log = Throttled(structlog.get_logger(), clock=lambda: next(times))
        for _ in range(3):
            try:
                float("failed")
            except ValueError:
                log.exception("failed", peer="a")
    assert [(line["log_level"], line["exc_info"], line.get("omitted")) for line in lines] == [
        ("error", True, None),
        ("error", True, 1),
    ]
