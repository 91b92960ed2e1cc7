from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from jetstream.bench.mix import EVERYTHING, Part, Wanted, choose_checked, filters, parse

DIDS = [f"did:plc:{number}" for number in range(500)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("unfiltered", [Part("unfiltered", 0, 1)]),
        ("dids:20", [Part("dids", 20, 1)]),
        ("unfiltered=9, collections:50=0.5", [Part("unfiltered", 0, 9), Part("collections", 50, 0.5)]),
    ],
)
def test_a_description_is_read(text: str, parts: list[Part]) -> None:
    assert parse(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "all", "dids", "dids:0", "dids:10001", "collections:9999", "unfiltered=0", "dids:2=-1", "dids:2,"],
)
def test_a_bad_description_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not one of|must be from|share of 0"):
        parse(text)


def test_everyone_with_dids_has_as_many_of_their_own() -> None:
    made = filters(parse("dids:20"), 100, DIDS, Random(1))
    assert {len(one.dids) for one in made} == {20}
    assert len(set(made)) == 100
    assert set().union(*(one.dids for one in made)) <= set(DIDS)


def test_there_are_as_many_collection_filters_as_asked_for() -> None:
    made = filters(parse("collections:50"), 5_000, DIDS, Random(1))
    assert len(set(made)) == 50
    assert all(one.collections and not one.dids for one in made)


def test_shares_are_kept() -> None:
    made = filters(parse("unfiltered=9,dids:1=1"), 2_000, DIDS, Random(1))
    assert 150 < Counter(one.kind for one in made)["dids"] < 250


def test_more_dids_than_are_known_are_refused() -> None:
    with pytest.raises(ValueError, match="20 DIDs each are more than the 3 accounts known"):
        filters(parse("dids:20"), 1, DIDS[:3], Random(1))


@pytest.mark.parametrize(
    ("wanted", "did", "collection", "answer"),
    [
        (EVERYTHING, "did:plc:a", "app.bsky.feed.like", True),
        (Wanted(frozenset({"app.bsky.feed.*"})), "did:plc:a", "app.bsky.feed.like", True),
        (Wanted(frozenset({"app.bsky.feed.*"})), "did:plc:a", "app.bsky.feedback", False),
        (Wanted(frozenset({"app.bsky.feed.post"})), "did:plc:a", "app.bsky.feed.postgate", False),
        (Wanted(frozenset({"app.bsky.feed.post"})), "did:plc:a", "", True),
        (Wanted(dids=frozenset({"did:plc:a"})), "did:plc:a", "app.bsky.feed.like", True),
        (Wanted(dids=frozenset({"did:plc:a"})), "did:plc:b", "", False),
    ],
)
def test_a_filter_wants_what_a_server_must_send(
    wanted: Wanted, did: str, collection: str, answer: bool
) -> None:
    assert wanted.wants(did, collection) is answer


def test_a_filter_is_written_as_parameters() -> None:
    wanted = Wanted(frozenset({"b.b.b", "a.a.a"}))
    assert wanted.query() == [("wantedCollections", "a.a.a"), ("wantedCollections", "b.b.b")]
    assert Wanted(dids=frozenset({"did:plc:a"})).query() == [("wantedDids", "did:plc:a")]


def test_those_to_check_are_spread_over_the_order() -> None:
    chosen = sorted(choose_checked([EVERYTHING] * 800, 8, 64, Random(1)))
    assert [place // 100 for place in chosen] == list(range(8))


def test_of_many_filters_up_to_the_limit_are_checked_and_of_accounts_all() -> None:
    wanted = filters(parse("collections:50"), 500, DIDS, Random(1)) + filters(
        parse("dids:2"), 300, DIDS, Random(1)
    )
    chosen = choose_checked(wanted, 8, 64, Random(1))
    assert len([place for place in chosen if place < 500]) == 50
    assert {place for place in chosen if place >= 500} == set(range(500, 800))


def test_fewer_than_are_to_be_checked_are_all_checked() -> None:
    assert choose_checked([EVERYTHING] * 3, 8, 64, Random(1)) == {0, 1, 2}
    assert choose_checked([], 8, 64, Random(1)) == set()
