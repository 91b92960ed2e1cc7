"""Log lines that another party can cause are throttled."""

from __future__ import annotations

import gc
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from jetstream.logging_setup import Throttled, configure, tell_omitted


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


def test_a_burst_is_told_at_the_end_of_its_minute_although_no_line_follows() -> None:
    now = 0.0
    with capture_logs() as lines:
        log = Throttled(structlog.get_logger(), clock=lambda: now)
        for now in (0.0, 1.0, 2.0, 30.0):
            log.warning("bad request", peer=now)
        for now in (59.0, 60.0, 61.0, 500.0):  # noqa: B007 - the clock
            tell_omitted()
    seen = [(line["event"], line["log_level"], line["peer"]) for line in lines]
    assert seen == [("bad request", "warning", 0.0), ("bad request", "warning", 30.0)]
    assert (lines[1]["omitted"], lines[1]["ago_s"]) == (2, 30.0)


def test_what_was_told_begins_another_minute() -> None:
    now = 0.0
    with capture_logs() as lines:
        log = Throttled(structlog.get_logger(), clock=lambda: now)
        for now in (0.0, 1.0):
            log.info("refused", peer=now)
        now = 60.0
        log.tell()
        for now in (119.0, 120.0):
            log.info("refused", peer=now)
    assert [(line["peer"], line.get("omitted")) for line in lines] == [(0.0, None), (1.0, None), (120.0, 1)]


def test_at_the_end_everything_is_told() -> None:
    with capture_logs() as lines:
        log = Throttled(structlog.get_logger(), clock=lambda: 0.0)
        for peer in "abc":
            log.info("refused", peer=peer)
            log.info("closed", peer=peer)
        tell_omitted(waiting=False)
        tell_omitted(waiting=False)
    seen = [(line["event"], line["peer"], line.get("omitted")) for line in lines]
    assert seen == [
        ("refused", "a", None),
        ("closed", "a", None),
        ("refused", "c", 1),
        ("closed", "c", 1),
    ]


def test_an_error_that_is_told_later_has_no_traceback() -> None:
    with capture_logs() as lines:
        log = Throttled(structlog.get_logger(), clock=lambda: 0.0)
        for _ in range(2):
            try:
                float("failed")
            except ValueError:
                log.exception("failed")
        log.tell(waiting=False)
    assert [(line["log_level"], line.get("exc_info")) for line in lines] == [("error", True), ("error", None)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 50.0), st.booleans()), max_size=60))
def test_every_event_is_counted_and_none_more_than_once_a_minute(
    happened: list[tuple[str, float, bool]],
) -> None:
    now, wanted, written = 0.0, Counter[str](), dict[str, float]()

    def write(event: str, **fields: object) -> None:
        assert now - written.get(event, -100.0) >= 60.0
        written[event] = now
        told[event] += 1 + int(str(fields.get("omitted", 0)))

    told = Counter[str]()
    log = Throttled(SimpleNamespace(info=write), clock=lambda: now)
    for event, pause_s, asked in happened:
        now += pause_s
        log.info(event)
        wanted[event] += 1
        if asked:
            log.tell()
    now += 60.0
    log.tell()
    assert told == wanted


def test_bound_loggers_share_the_throttle_and_have_fields_of_their_own() -> None:
    now_s = 0.0
    throttled = Throttled(structlog.get_logger(), clock=lambda: now_s)
    with capture_logs() as lines:
        for name in "a", "b", "c":
            throttled.bind(upstream=name).info("gone", url=name.upper())
        now_s = 60.0
        throttled.tell()
    assert [(line["upstream"], line["url"], line.get("omitted")) for line in lines] == [
        ("a", "A", None),
        ("c", "C", 1),
    ]


@pytest.mark.usefixtures("only_new_objects")
def test_what_a_bound_logger_has_omitted_is_told_too() -> None:
    bound = Throttled(structlog.get_logger()).bind(upstream="a")
    gc.collect()
    with capture_logs() as lines:
        for number in range(3):
            bound.info("a bound burst", number=number)
        tell_omitted(waiting=False)
    numbers = [(line["number"], line["upstream"]) for line in lines if line["event"] == "a bound burst"]
    assert numbers == [(0, "a"), (2, "a")]


def test_a_process_of_several_is_named_in_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("json", process="edge-1"):
        structlog.get_logger("ours").info("event", number=1)
        logging.getLogger("another").warning("of a library")
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["process"]) for line in lines] == [
        ("event", "edge-1"),
        ("of a library", "edge-1"),
    ]


@contextmanager
def configured(form: str, **options: Any) -> Iterator[None]:
    """Configure logging, and let all be as it was at the end."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    try:
        configure("info", form, **options)
        yield
    finally:
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "one\ntwo", "\x9b31m", "\u202e", "all \x00 of it"])
def test_a_value_that_another_party_has_written_is_one_line_and_moves_no_cursor(
    form: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with configured(form):
        structlog.get_logger("ours").warning("upstream: notice", name=text, url="wss://é.example")
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert "upstream: notice" in line
    assert form == "json" or "url=wss://é.example" in line
