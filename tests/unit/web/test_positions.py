"""Positions in header fields and as JSON."""

from __future__ import annotations

import orjson
import pytest

from jetstream.delivery.delivery import Positions
from jetstream.web.http import Request
from jetstream.web.positions import cursors, position_headers

HELD = Positions(4_000_001, 1_000_001, 4_000_000)
EMPTY = Positions(1, None, None)


def test_header_fields_are_in_unix_microseconds() -> None:
    assert position_headers(HELD) == {
        "Jetstream-Cursor": "4000001",
        "Jetstream-Oldest": "1000001",
        "Jetstream-Latest": "4000000",
    }


def test_what_an_empty_log_does_not_have_is_absent() -> None:
    assert position_headers(EMPTY) == {"Jetstream-Cursor": "1"}


@pytest.mark.parametrize(
    ("positions", "oldest", "latest"),
    [
        (HELD, (1_000_001, "1970-01-01T00:00:01.000001Z"), (4_000_000, "1970-01-01T00:00:04.000000Z")),
        (EMPTY, (None, None), (None, None)),
    ],
)
def test_the_page_has_dates(positions: Positions, oldest: tuple[int, str], latest: tuple[int, str]) -> None:
    answer = cursors(lambda: positions, lambda: 5_500_000)(Request("GET", "/cursors", "", 1, {}))
    body = orjson.loads(answer.body)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.headers == position_headers(positions)
    assert body["cursor_us"] == positions.cursor
    assert (body["oldest_us"], body["oldest"]) == oldest
    assert (body["latest_us"], body["latest"]) == latest
    assert (body["now_us"], body["now"]) == (5_500_000, "1970-01-01T00:00:05.500000Z")
    assert list(body) == [
        "cursor_us",
        "cursor",
        "oldest_us",
        "oldest",
        "latest_us",
        "latest",
        "now_us",
        "now",
    ]
