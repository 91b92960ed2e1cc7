"""What an upstream is asked. How it answers is tested with real servers, in tests/integration."""

from __future__ import annotations

import pytest

from jetstream.upstream.mirror.question import newest_of, question_of
from jetstream.upstreams import SUBSCRIBE_EVENTS_PATH

CURSOR = f"cursor={10**18}"


@pytest.mark.parametrize(
    ("url", "asked", "fields"),
    [
        (f"wss://a.example{SUBSCRIBE_EVENTS_PATH}", f"https://a.example/events?{CURSOR}", {}),
        (f"ws://[::1]:7{SUBSCRIBE_EVENTS_PATH}", f"http://[::1]:7/events?{CURSOR}", {}),
        (
            f"wss://a.example/x{SUBSCRIBE_EVENTS_PATH}?token=t",
            f"https://a.example/x/events?token=t&{CURSOR}",
            {},
        ),
        (
            f"wss://me:p%40ss@a.example{SUBSCRIBE_EVENTS_PATH}",
            f"https://a.example/events?{CURSOR}",
            {"Authorization": "Basic bWU6cEBzcw=="},
        ),
    ],
)
def test_the_question_goes_to_the_events_of_the_same_server(
    url: str, asked: str, fields: dict[str, str]
) -> None:
    assert question_of(url) == (asked, fields)


async def test_a_server_that_is_not_there_does_not_answer() -> None:
    assert await newest_of(f"ws://127.0.0.1:1{SUBSCRIBE_EVENTS_PATH}", 5.0) is None
