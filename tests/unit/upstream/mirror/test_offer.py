"""Which header of a response is that of one of our servers."""

from __future__ import annotations

import pytest

from jetstream.upstream.mirror.offer import Offer, offer_of

OURS = {
    "Jetstream-Wire": "v2",
    "Jetstream-Cursor": "1700000000000000",
    "Jetstream-Forget": "deleted,takendown",
}


def test_one_of_ours_says_where_it_begins_and_what_it_erases() -> None:
    assert offer_of(OURS) == Offer(1_700_000_000_000_000, frozenset({"deleted", "takendown"}))
    assert offer_of(OURS | {"Jetstream-Forget": "none"}) == Offer(1_700_000_000_000_000, frozenset())


@pytest.mark.parametrize(
    "changes",
    [
        {"Jetstream-Wire": "v1"},
        {"Jetstream-Cursor": ""},
        {"Jetstream-Cursor": "-1"},
        {"Jetstream-Cursor": "1" * 19},
        {"Jetstream-Cursor": "\u0661"},
        {"Jetstream-Forget": ""},
        {"Jetstream-Forget": "deleted,"},
        {"Jetstream-Forget": "DELETED"},
        {"Jetstream-Forget": ",".join(["a"] * 20)},
    ],
)
def test_anything_else_is_none(changes: dict[str, str]) -> None:
    assert offer_of(OURS | changes) is None


def test_no_header_is_none() -> None:
    assert offer_of({}) is None
