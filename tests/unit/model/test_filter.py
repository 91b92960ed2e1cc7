from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import event

from jetstream.errors import InvalidParameter
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE, Event
from jetstream.model.filter import COLLECTIONS_MAX, DIDS_MAX, EVERYTHING, Filter

POST, LIKE, FOLLOW = "app.bsky.feed.post", "app.bsky.feed.like", "app.bsky.graph.follow"
ANN, BOB = "did:plc:ann", "did:web:bob.example"


def wants(wanted: Filter, one: Event) -> bool:
    return wanted.wants(one.kind, one.did, one.collection)


def slowly_wants(collections: list[str], dids: list[str], one: Event) -> bool:
    """Say what the parameters mean, name by name: the model that filters are held against."""
    if dids and one.did.decode() not in dids:
        return False
    if one.kind in {IDENTITY, ACCOUNT} or not collections:
        return True
    name = one.collection.decode()
    return any(name.startswith(asked[:-1]) if asked.endswith("*") else name == asked for asked in collections)


# Reading


@pytest.mark.parametrize(
    "collection",
    [
        POST,
        "app.bsky.graph.*",
        "app.bsky.*",
        "app.*",
        "com.example.fooBar",
        "COM.example.fooBar.*",
        "a.1.b",
        "a-a.b-b.c",
        "app.bsky.feed.post.*",
    ],
)
def test_collections_that_are_good(collection: str) -> None:
    assert not Filter.parse([collection], []).every_collection


@pytest.mark.parametrize(
    "collection",
    [
        "",
        "*",
        ".*",
        "app.bsky.graph.fo*",
        "app.bsky.*.post",
        "*.bsky.feed.post",
        "app.bsky.**",
        "app.bsky.*.*",
        "app.bsky",
        "app.bsky.",
        "app*",
        "app..*",
        ".app.*",
        "1app.*",
        "app.-a.*",
        "app.bsky.* ",
        " app.bsky.*",
        "app.bsky.*\n",
        "app.bsky.feed.post ",
        "app.bsky.feed.post\n",
        "app.bsky.feed.3post",
        "app.bsky.feed.po-st",
        "at://app.bsky.feed.post",
        "app.bsky.feed.p\N{CYRILLIC SMALL LETTER O}st",
        "a." * 200 + "*",
    ],
)
def test_collections_that_are_bad(collection: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Filter.parse([POST, collection], [])
    assert (caught.value.name, caught.value.value) == ("wantedCollections", collection)


@pytest.mark.parametrize(
    "did", ["", "*", "did:plc", "did:plc:", " did:plc:a", "did:plc:a\n", "alice.example", "did:plc:*"]
)
def test_dids_that_are_bad(did: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Filter.parse([], [ANN, did])
    assert (caught.value.name, caught.value.value) == ("wantedDids", did)


def test_a_hundred_collections_are_the_most() -> None:
    names = [f"com.example.c{number}" for number in range(COLLECTIONS_MAX)]

    assert len(Filter.parse(names, []).collections) == COLLECTIONS_MAX == 100
    with pytest.raises(InvalidParameter, match="wantedCollections: '101' are too many: at most 100"):
        Filter.parse([*names, POST], [])


def test_ten_thousand_dids_are_the_most() -> None:
    dids = [f"did:plc:{number}" for number in range(DIDS_MAX)]

    assert len(Filter.parse([], dids).dids) == DIDS_MAX == 10_000
    with pytest.raises(InvalidParameter, match="wantedDids: '10001' are too many: at most 10000"):
        Filter.parse([], [*dids, ANN])


def test_nothing_asked_for_is_everything() -> None:
    assert Filter.parse([], []) == EVERYTHING == Filter()
    assert EVERYTHING.everything
    assert EVERYTHING.every_collection
    assert not Filter.parse([POST], []).everything
    assert not Filter.parse([], [ANN]).everything
    assert Filter.parse([], [ANN]).every_collection


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([POST, LIKE], [LIKE, POST, LIKE]),
        (["app.bsky.*"], ["app.bsky.*", POST, "app.bsky.feed.*", "app.bsky.*"]),
        (["app.*"], ["app.bsky.*", "app.*", FOLLOW]),
        (["app.bsky.feed.*", FOLLOW], [FOLLOW, LIKE, "app.bsky.feed.*"]),
    ],
)
def test_filters_that_ask_for_the_same_are_equal(one: list[str], other: list[str]) -> None:
    assert Filter.parse(one, [ANN, BOB]) == Filter.parse(other, [BOB, ANN, BOB])
    assert hash(Filter.parse(one, [])) == hash(Filter.parse(other, []))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([POST], [LIKE]),
        (["app.bsky.feed.*"], ["app.bsky.feed.post.*"]),
        (["app.bsky.feed.post"], ["app.bsky.feed.post.*"]),
        ([POST], []),
        (["app.bsky.feed.*", "app.bsky.feedback.*"], ["app.bsky.feed.*"]),
    ],
)
def test_filters_that_do_not_are_not(one: list[str], other: list[str]) -> None:
    assert Filter.parse(one, []) != Filter.parse(other, [])


# Judging


@pytest.mark.parametrize(
    ("asked", "collection", "is_wanted"),
    [
        (POST, POST, True),
        (POST, "app.bsky.feed.postgate", False),
        (POST, "app.bsky.feed.Post", False),
        ("app.bsky.feed.*", POST, True),
        ("app.bsky.feed.*", "app.bsky.feed.sub.post", True),
        ("app.bsky.feed.*", "app.bsky.feedback.post", False),
        ("app.bsky.*", "app.bskyx.feed.post", False),
        ("app.bsky.feed.post.*", POST, False),
        ("app.*", "app.bsky.feed.post", True),
        ("app.*", "com.app.feed", False),
    ],
)
def test_prefixes_reach_as_far_as_their_dot(asked: str, collection: str, is_wanted: bool) -> None:
    assert wants(Filter.parse([asked], []), event(collection=collection)) is is_wanted


@pytest.mark.parametrize("kind", [IDENTITY, ACCOUNT])
def test_identity_and_account_events_pass_every_collection_filter(kind: bytes) -> None:
    assert wants(Filter.parse([POST], []), event(kind))
    assert list(Filter.parse([POST], []).select(Batch.of([event(kind)], [1]), 0, 1)) == [0]


def test_a_filter_that_wants_all_of_a_batch_selects_a_range() -> None:
    """Which is shared with readers of everything, and faster to render."""
    batch = Batch.of([event(collection=POST), event(IDENTITY), event(collection=POST)], [1, 2, 3])
    assert Filter.parse([POST], []).select(batch, 1, 3) == range(1, 3)
    assert Filter.parse([LIKE], []).select(batch, 0, 3) == [1]


@pytest.mark.parametrize("kind", [CREATE, UPDATE, DELETE, IDENTITY, ACCOUNT])
def test_dids_judge_every_kind(kind: bytes) -> None:
    wanted = Filter.parse([], [ANN])

    assert wants(wanted, event(kind, did=ANN))
    assert not wants(wanted, event(kind, did=BOB))
    assert not wants(wanted, event(kind, did=ANN + "x"))


def test_both_lists_must_agree() -> None:
    wanted = Filter.parse([POST], [ANN])
    events = [event(collection=name, did=did) for name in (POST, LIKE) for did in (ANN, BOB)]

    assert [wants(wanted, one) for one in events] == [True, False, False, False]


ASKED = st.lists(
    st.sampled_from([POST, LIKE, FOLLOW, "app.*", "app.bsky.*", "app.bsky.graph.*", "com.example.a"]),
    max_size=4,
)
DIDS = st.lists(st.sampled_from([ANN, BOB, "did:plc:eve"]), max_size=3)
EVENTS = st.builds(
    event,
    st.sampled_from([CREATE, UPDATE, DELETE, IDENTITY, ACCOUNT]),
    st.sampled_from([ANN, BOB, "did:plc:dan"]),
    st.sampled_from([POST, LIKE, FOLLOW, "app.other.thing", "com.example.a", "com.example.a.b"]),
)


@given(ASKED, DIDS, st.lists(EVENTS, max_size=20), st.data())
@settings(max_examples=300)
def test_what_is_selected_is_what_is_wanted(
    asked: list[str], dids: list[str], events: list[Event], data: st.DataObject
) -> None:
    wanted = Filter.parse(asked, dids)
    batch = Batch.of(events, range(1, len(events) + 1))
    start = data.draw(st.integers(0, len(events)))
    stop = data.draw(st.integers(start, len(events)))
    expected = [index for index in range(start, stop) if slowly_wants(asked, dids, events[index])]

    assert list(wanted.select(batch, start, stop)) == expected
    assert [index for index in range(start, stop) if wants(wanted, events[index])] == expected


@given(ASKED, DIDS, st.data())
def test_neither_order_nor_repetition_nor_what_a_prefix_covers_matters(
    asked: list[str], dids: list[str], data: st.DataObject
) -> None:
    universe = [POST, LIKE, FOLLOW, "app.bsky.*", "app.bsky.graph.*"]
    prefixes = tuple(name[:-1] for name in asked if name.endswith("*"))
    covered = [name for name in universe if name.startswith(prefixes)] if prefixes else []
    other = data.draw(st.permutations(asked + asked + covered))

    assert Filter.parse(other, dids[::-1] + dids) == Filter.parse(asked, dids)
