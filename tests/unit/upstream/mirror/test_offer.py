"""Which header of a response is that of one of our servers."""

from __future__ import annotations

import pytest

from jetstream.upstream.mirror.offer import Offer, offer_of
from jetstream.upstreams import AHEAD_MAX_US

NOW = 1_700_000_000_000_000
OURS = {
    "Jetstream-Wire": "v2",
    "Jetstream-Cursor": "1700000000000000",
    "Jetstream-Forget": "deleted,takendown",
}


def test_one_of_ours_says_where_it_begins_and_what_it_erases() -> None:
    assert offer_of(OURS, NOW) == Offer(1_700_000_000_000_000, frozenset({"deleted", "takendown"}))
    assert offer_of(OURS | {"Jetstream-Forget": "none"}, NOW) == Offer(1_700_000_000_000_000, frozenset())


@pytest.mark.parametrize("ahead_us", [-(10**15), 0, 1, AHEAD_MAX_US])
def test_a_stream_may_begin_as_far_ahead_of_the_clock_as_an_event_may_be(ahead_us: int) -> None:
    assert offer_of(OURS | {"Jetstream-Cursor": str(NOW + ahead_us)}, NOW) == Offer(
        NOW + ahead_us, frozenset({"deleted", "takendown"})
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"Jetstream-Wire": "v1"},
        {"Jetstream-Cursor": ""},
        {"Jetstream-Cursor": "-1"},
        {"Jetstream-Cursor": "1" * 19},
        {"Jetstream-Cursor": "\u0661"},
        {"Jetstream-Cursor": str(NOW + AHEAD_MAX_US + 1)},
        {"Jetstream-Cursor": "9" * 18},
        {"Jetstream-Forget": ""},
        {"Jetstream-Forget": "deleted,"},
        {"Jetstream-Forget": "DELETED"},
        {"Jetstream-Forget": ",".join(["a"] * 20)},
    ],
)
def test_anything_else_is_none(changes: dict[str, str]) -> None:
    assert offer_of(OURS | changes, NOW) is None


def test_no_header_is_none() -> None:
    assert offer_of({}, NOW) is None
