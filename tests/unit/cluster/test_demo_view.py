from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from jetstream.cluster.demo_view import Row, Served, of_edge, of_ingest, of_server, to_try, view


def shown(what: RenderableType) -> list[list[str]]:
    out = StringIO()
    Console(file=out, width=160).print(what)
    return [line.split() for line in out.getvalue().splitlines()]


def status(*not_ready: str, subscribers: int = 0) -> dict[str, Any]:
    return {
        "ready": not not_ready,
        "not_ready": [{"text": each} for each in not_ready],
        "subscribers": {"total": subscribers},
    }


def test_each_process_has_a_line() -> None:
    rows = [
        Row("balancer", 7, "http://localhost:6008", "2 connections"),
        Row("edge-1", None, "http://127.0.0.1:6009", "gone", "bad"),
    ]
    assert shown(view(Served("ws://localhost:6008/subscribe", 49.6), rows)) == [
        ["events", "ws://localhost:6008/subscribe", "50", "new", "a", "second"],
        ["process", "pid", "where", "state"],
        ["balancer", "7", "http://localhost:6008", "2", "connections"],
        ["edge-1", "-", "http://127.0.0.1:6009", "gone"],
    ]


def test_a_rate_that_is_not_known_is_a_dash() -> None:
    assert shown(view(Served("ws://x"), []))[0] == ["events", "ws://x", "-", "new", "a", "second"]


@pytest.mark.parametrize(
    ("answer", "text", "mood"),
    [
        (None, "does not answer", "bad"),
        (status(), "0 subscribers", "good"),
        (status(subscribers=1), "1 subscriber", "good"),
        (
            status("it lags", "it stops", subscribers=2),
            "2 subscribers; not ready: it lags; it stops",
            "waits",
        ),
    ],
)
def test_an_edge(answer: dict[str, Any] | None, text: str, mood: str) -> None:
    assert of_edge(answer) == (text, mood)


@pytest.mark.parametrize(
    ("answer", "epoch", "text", "mood"),
    [
        (None, 1, "does not answer", "bad"),
        (status(), 2, "leads, term 2", "good"),
        (status(), None, "stands by", "waits"),
        (status("no frame"), 2, "leads, term 2; not ready: no frame", "bad"),
    ],
)
def test_an_ingest(answer: dict[str, Any] | None, epoch: int | None, text: str, mood: str) -> None:
    assert of_ingest(answer, epoch) == (text, mood)


def test_what_a_process_says_is_cut() -> None:
    text, _ = of_edge(status("x" * 1000))
    assert len(text) < 150


@pytest.mark.parametrize(
    ("accepts", "standby", "synchronous", "text", "mood"),
    [
        (False, False, True, "does not answer", "bad"),
        (True, False, False, "primary", "good"),
        (True, True, True, "standby, synchronous", "good"),
        (True, True, False, "standby, not connected", "waits"),
        (True, True, None, "standby, without a primary", "waits"),
    ],
)
def test_a_server(accepts: bool, standby: bool, synchronous: bool | None, text: str, mood: str) -> None:
    assert of_server(accepts=accepts, standby=standby, synchronous=synchronous) == (text, mood)


def test_what_to_try_names_the_files_of_this_cluster() -> None:
    lines = to_try(
        "ws://localhost:6008/subscribe", Path("/tmp/x"), "postgresql://h/d", ingests=2, restarts=True
    ).plain
    assert "  # read events\n  jetstream tail\n" in lines
    assert "kill -9 $(cat /tmp/x/ingest-1.pid)" in lines
    assert "ingest-2 leads after 3 s" in lines
    assert "psql postgresql://h/d" in lines
    assert "stays away" not in lines
    other = to_try("ws://localhost:7000/subscribe", Path("d"), "p", ingests=1, restarts=False).plain
    assert "jetstream tail ws://localhost:7000/subscribe" in other
    assert "stays away" in other
    assert "ingest-2" not in other
