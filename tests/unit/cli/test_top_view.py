from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from jetstream.cli.top_view import spark, view

EXAMPLE: dict[str, Any] = json.loads((Path(__file__).parent / "status.json").read_text())


def shown(status: object, width: int = 120) -> str:
    out = StringIO()
    assert isinstance(status, dict)
    Console(file=out, width=width).print(view(status, "http://a:6008"))
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    "words",
    [
        "Jetstream 1.0.0 http://a:6008 up 1:06:40 degraded not ready",
        "! the write-ahead log is large: is a reader stuck?",
        "! no frame came for 60 s: see --ready-idle",
        "bsky.network:443 connected 0.2 s 0.0 s 500.1 1,234,567",
        "west reconnecting - - 0.0 -",
        "41 PDSes connected",
        "events/s 500.2",
        "commit/s 499.0",
        "subscribers 12 of 20,000",
        "classic 10, v1 2",
        "none 9, zstd 3",
        "messages/s 6,001.5",
        "bytes/s 2.8 MB",
        "1d 2:03:04 of 1d 0:00:00",
        "size 6.0 GB",
        "disk free 58.2 GB",
        "CPU 20%",
        "memory 61.0 MB",
        "30 of 20,000",
        "0.1, 1.2 ms",
        "1.0, 4.0 ms",
        "app.bsky.feed.like 240.0",
        "dropped: did 3",
        "disconnected: slow 2",
        "refused: full 7",
        "ingest 4100 0 500.2 0.0 0.2 s 11% 71.0 MB 0",
        "edge-1 4101 7 500.1 3,500.5 0.0 s 93% 62.0 MB 2",
        "edge-2 down 4107 - - - - - - 1",
        " ▄█",
    ],
)
def test_every_figure_is_shown(words: str) -> None:
    assert words in shown(EXAMPLE)


def test_a_reason_that_never_occurred_is_left_out() -> None:
    assert "record_json" not in shown(EXAMPLE)
    assert "nothing dropped or refused" in shown(EXAMPLE | {"drops": {}, "disconnects": {}, "refused": {}})


def test_a_server_that_knows_nothing_yet_has_dashes() -> None:
    assert "events/s -" in shown({})


def test_long_lists_are_cut() -> None:
    many = [{"name": f"u{number}", "state": "idle"} for number in range(30)]
    reasons = [{"text": f"r{number}"} for number in range(30)]
    text = shown(EXAMPLE | {"upstreams": many, "reasons": reasons})
    assert "and 20 more" in text
    assert "u9 " in text
    assert "u10 " not in text
    assert "! and 21 more" in text


def test_processes_are_of_a_server_that_has_several() -> None:
    assert "restarts" in shown(EXAMPLE)
    for none in (EXAMPLE | {"processes": []}, {}):
        assert "restarts" not in shown(none)
    narrow = shown(EXAMPLE, width=80)
    assert "process pid subscribers events/s messages/s lag CPU memory restarts" in narrow
    assert "edge-1 4101 7 500.1 3,500.5 0.0 s 93% 62.0 MB 2" in narrow
    many = [{"name": f"edge-{number}"} for number in range(64)]
    text = shown(EXAMPLE | {"processes": many})
    assert "edge-19 down" in text
    assert "edge-20" not in text
    assert "and 44 more" in text


def test_control_characters_of_a_server_do_not_reach_the_terminal() -> None:
    bad = "\x1b[2J[red]x"
    text = shown(EXAMPLE | {"version": bad, "upstreams": [{"name": bad}], "drops": {bad: 1}})
    assert "\x1b" not in text
    assert text.count("?[2J[red]x") == 3
    text = shown(EXAMPLE | {"processes": [{"name": bad, "pid": bad}]})
    assert "\x1b" not in text
    assert text.count("?[2J[red]x") == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(sorted(EXAMPLE)), VALUES, min_size=1, max_size=6), st.data())
def test_no_value_breaks_the_screen(values: dict[str, object], data: st.DataObject) -> None:
    """Another version of the server, or another server, may send anything."""
    for name, value in values.items():
        if isinstance(EXAMPLE[name], dict):
            inner = data.draw(st.sampled_from(sorted(EXAMPLE[name])))
            values[name] = EXAMPLE[name] | {inner: value}
    shown(EXAMPLE | values, 60)


@pytest.mark.parametrize("started_us", [1e300, -1e300, 10**30, -(10**30)])
def test_a_start_that_no_clock_has_is_shown_as_the_longest_or_none(started_us: float) -> None:
    shown(EXAMPLE | {"started_us": started_us})


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], "-"),
        ([None], " "),
        ([0.0, 0.0], "▁▁"),
        ([0.0, None, 4.0, 8.0], "▁ ▄█"),
        ([8.0] * 60, "█" * 30),
    ],
)
def test_bars(values: list[float | None], bars: str) -> None:
    assert spark(values) == bars


@given(st.lists(st.none() | st.floats(0, 1e12), min_size=1, max_size=400))
def test_bars_are_at_most_thirty(values: list[float | None]) -> None:
    assert 1 <= len(spark(values)) <= 30
