from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import event
from tests.unit.model.asking import (
    ANN,
    ANYTHING,
    BOB,
    EVENTS,
    FOLLOW,
    GOOD,
    LIKE,
    NAMES,
    POST,
    WITHOUT_LIST,
    Asked,
)

from jetstream.errors import InvalidParameter
from jetstream.model.batch import Batch
from jetstream.model.did_set import DidSet
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, KIND_NAMES, SYNC, UPDATE, Event
from jetstream.model.filter import DIDS_MAX, EVERYTHING, Filter
from jetstream.model.lists import NAMES_MAX
from jetstream.model.sample import in_sample


def wants(wanted: Filter, one: Event) -> bool:
    return wanted.wants(one.kind, one.did, one.collection)


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
    names = [f"com.example.c{number}" for number in range(NAMES_MAX)]

    assert len(Filter.parse(names, []).collections) == NAMES_MAX == 100
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


class Tried(bytes):
    """A collection that counts the prefixes that it is compared with."""

    tried = 0

    def startswith(self, *args: Any) -> bool:
        self.tried += 1
        return super().startswith(*args)


@pytest.mark.parametrize("asked", ["collections", "exclude_collections"])
def test_of_many_prefixes_one_is_tried(asked: str) -> None:
    names = [f"com.example.{a}{b}" for a in "abcdefghij" for b in ("", "b", "-a", "-b", "0", "z", "zz")]
    wanted = Filter.parse(**{"collections": (), "dids": (), asked: [f"{name}.*" for name in names]})
    for name in [*names, "com.example.a1", "com.example", "zz.example.a", "a.b"]:
        collection = Tried(name.encode() + b".name")
        assert wanted.wants_collection(collection) is ((name in names) == (asked == "collections"))
        assert collection.tried <= 1


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


# The new parts


def refused(**asked: Any) -> tuple[str, str]:
    with pytest.raises(InvalidParameter) as caught:
        Asked(**asked).parse()
    return caught.value.name, caught.value.value


def outcome(asked: Asked) -> Filter | str:
    """Return the filter, or the name of the parameter that is refused."""
    try:
        return asked.parse()
    except InvalidParameter as error:
        return error.name


ALL_KINDS = ["commit", "identity", "account", "sync"]
ALL_OPERATIONS = ["create", "update", "delete"]


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        (Asked(), set()),
        (Asked(kinds=ALL_KINDS), set()),
        (Asked(kinds=ALL_KINDS, operations=ALL_OPERATIONS), set()),
        (Asked(operations=ALL_OPERATIONS), set()),
        (Asked(kinds=["commit"]), {CREATE, UPDATE, DELETE}),
        (Asked(kinds=["identity", "identity", "account"]), {IDENTITY, ACCOUNT}),
        (Asked(kinds=["sync"]), {SYNC}),
        (Asked(kinds=["commit", "account"], operations=["delete"]), {DELETE, ACCOUNT}),
        (Asked(operations=["create", "update"]), {CREATE, UPDATE, IDENTITY, ACCOUNT, SYNC}),
    ],
)
def test_kinds_and_operations_are_one_set(asked: Asked, kinds: set[bytes]) -> None:
    assert asked.parse().kinds == kinds


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Asked(), Asked(kinds=ALL_KINDS)),
        (Asked(kinds=["commit"]), Asked(kinds=["commit"], operations=ALL_OPERATIONS)),
        (Asked([POST]), Asked([POST, LIKE], exclude_collections=[LIKE, LIKE])),
        (
            Asked(["app.bsky.feed.*"]),
            Asked(["app.bsky.feed.*", FOLLOW], exclude_collections=["app.bsky.graph.*"]),
        ),
        (
            Asked(["app.*"], exclude_collections=["app.bsky.*"]),
            Asked(["app.*"], exclude_collections=["app.bsky.*", "app.bsky.graph.*", POST]),
        ),
        (
            Asked(["app.bsky.*", "com.*"], exclude_collections=["com.*"]),
            Asked(["app.bsky.*", "com.a.*"], exclude_collections=["com.a.b.*", "com.*"]),
        ),
        (Asked(dids=[ANN]), Asked(dids=[ANN, BOB], exclude_dids=[BOB])),
    ],
)
def test_exceptions_from_what_is_listed_leave_a_shorter_list(one: Asked, other: Asked) -> None:
    assert one.parse() == other.parse()
    assert hash(one.parse()) == hash(other.parse())


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        (Asked(kinds=["commits"]), "kinds"),
        (Asked(kinds=["Commit"]), "kinds"),
        (Asked(kinds=[""]), "kinds"),
        (Asked(kinds=["create"]), "kinds"),
        (Asked(operations=["c"]), "operations"),
        (Asked(operations=["commit"]), "operations"),
        (Asked(operations=[""]), "operations"),
        (Asked(kinds=["identity"], operations=["create"]), "operations"),
        (Asked([POST], kinds=["identity", "account"]), "wantedCollections"),
        (Asked(kinds=["sync"], exclude_collections=[POST]), "excludeCollections"),
        (Asked(exclude_collections=["app.bsky.fo*"]), "excludeCollections"),
        (Asked(exclude_collections=["*"]), "excludeCollections"),
        (Asked([POST], exclude_collections=[LIKE]), "excludeCollections"),
        (Asked(["app.bsky.feed.*"], exclude_collections=[POST, FOLLOW]), "excludeCollections"),
        (Asked(["app.bsky.feed.*"], exclude_collections=["app.bsky.feedback.*"]), "excludeCollections"),
        (Asked([POST], exclude_collections=[f"{POST}.*"]), "excludeCollections"),
        (Asked([POST], exclude_collections=[POST]), "excludeCollections"),
        (Asked([POST, "app.bsky.graph.*"], exclude_collections=["app.*"]), "excludeCollections"),
        (Asked(exclude_dids=["alice.example"]), "excludeDids"),
        (Asked(dids=[ANN], exclude_dids=[BOB]), "excludeDids"),
        (Asked(dids=[ANN, BOB], exclude_dids=[BOB, ANN]), "excludeDids"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: Asked, parameter: str) -> None:
    assert refused(**asked._asdict())[0] == parameter


def test_exceptions_have_the_bounds_of_the_lists() -> None:
    names = [f"com.example.c{number}" for number in range(NAMES_MAX + 1)]
    dids = [f"did:plc:{number}" for number in range(DIDS_MAX + 1)]

    assert len(Asked(exclude_collections=names[1:]).parse().excluded_collections) == NAMES_MAX
    assert refused(exclude_collections=names) == ("excludeCollections", "101")
    assert len(Asked(exclude_dids=dids[1:]).parse().excluded_dids) == DIDS_MAX
    assert refused(exclude_dids=dids) == ("excludeDids", "10001")
    assert refused(kinds=["commit"] * 101) == ("kinds", "101")
    assert refused(operations=["create"] * 101) == ("operations", "101")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"dids": ["did:plc:a", "did:plc:c"]},
        {"exclude_dids": ["did:plc:a"]},
        {"dids": ["did:plc:c"], "exclude_dids": ["did:plc:a", "did:plc:c"], "sample": "99.99"},
        {"kinds": ["commit"], "collections": [POST]},
    ],
)
def test_whatever_is_asked_for_beside_a_large_list_the_list_is_not_copied(more: dict[str, Any]) -> None:
    """It takes 10 MB, and a request a hundred bytes."""
    listed = DidSet([b"did:plc:a", *(b"did:plc:%d" % n for n in range(50))])
    wanted = Filter.parse(**{"collections": [], "dids": [], **more}, listed=listed)
    assert wanted.listed is listed
    assert len(wanted.dids) <= 1
    assert wanted.dids.isdisjoint(listed)


def test_what_leaves_nothing_of_a_large_list_is_refused() -> None:
    listed = DidSet([ANN.encode(), BOB.encode()])
    outside = BOB if in_sample(ANN.encode(), 2_000) else ANN
    assert refused(exclude_dids=[ANN, BOB], listed=listed) == ("excludeDids", ANN)
    assert refused(exclude_dids=["did:plc:dan"], listed=listed) == ("excludeDids", "did:plc:dan")
    assert refused(sample="20", listed=DidSet([outside.encode()])) == ("sample", "20")
    inside = ANN if outside == BOB else BOB
    assert refused(sample="20", exclude_dids=[inside], listed=listed) == ("excludeDids", inside)
    assert Asked(dids=["did:plc:dan"], exclude_dids=[ANN, BOB], listed=listed).parse().dids == {
        b"did:plc:dan"
    }


def test_a_sample_is_subtracted_from_what_is_listed() -> None:
    ann, bob = ANN.encode(), BOB.encode()
    assert in_sample(ann, 2_000) is not in_sample(bob, 2_000)
    inside = ANN if in_sample(ann, 2_000) else BOB
    assert Asked(dids=[ANN, BOB], sample="20").parse() == Asked(dids=[inside]).parse()
    assert (
        Asked(exclude_dids=[ANN, BOB], sample="20").parse()
        == Asked(exclude_dids=[inside], sample="20.00").parse()
    )
    assert Asked(sample="100").parse() == EVERYTHING
    outside = BOB if inside == ANN else ANN
    assert refused(dids=[outside], sample="20") == ("sample", "20")


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        (Asked(), {CREATE, UPDATE}),
        (Asked(operations=["create"]), {CREATE}),
        (Asked(operations=ALL_OPERATIONS), {CREATE, UPDATE}),
        (Asked(kinds=["commit", "identity"]), {CREATE, UPDATE, IDENTITY}),
        (Asked(kinds=ALL_KINDS), {CREATE, UPDATE, IDENTITY, ACCOUNT, SYNC}),
    ],
)
def test_a_content_filter_leaves_out_what_has_no_record_unless_kinds_names_it(
    asked: Asked, kinds: set[bytes]
) -> None:
    assert Filter.parse(**asked._asdict(), content=("lang", "en")).kinds == kinds


@pytest.mark.parametrize("asked", [Asked(operations=["delete"]), Asked(kinds=["identity"])])
def test_a_content_filter_where_nothing_has_a_record_is_refused(asked: Asked) -> None:
    with pytest.raises(InvalidParameter, match="lang: 'en' applies to creates and updates"):
        Filter.parse(**asked._asdict(), content=("lang", "en"))


def test_a_batch_without_an_excluded_repo_is_selected_as_a_range() -> None:
    batch = Batch.of([event(did=ANN), event(IDENTITY, did=ANN), event(did=BOB)], [1, 2, 3])
    assert Asked(exclude_dids=[BOB]).parse().select(batch, 0, 2) == range(2)
    assert Asked(exclude_dids=[BOB]).parse().select(batch, 1, 3) == [1]
    assert Asked(kinds=["commit"]).parse().select(batch, 2, 3) == range(2, 3)


@given(GOOD, st.lists(EVENTS, max_size=20), st.data())
@settings(max_examples=300)
def test_what_is_selected_is_what_is_wanted(asked: Asked, events: list[Event], data: st.DataObject) -> None:
    wanted = asked.parse()
    batch = Batch.of(events, range(1, len(events) + 1))
    start = data.draw(st.integers(0, len(events)))
    stop = data.draw(st.integers(start, len(events)))
    expected = [index for index in range(start, stop) if asked.wants(events[index])]

    assert list(wanted.select(batch, start, stop)) == expected
    assert [index for index in range(start, stop) if wants(wanted, events[index])] == expected


@given(ANYTHING, st.data())
def test_neither_order_nor_repetition_nor_what_a_prefix_covers_matters(
    asked: Asked, data: st.DataObject
) -> None:
    def shuffled(values: Sequence[str]) -> list[str]:
        return data.draw(st.permutations([*values, *values]))

    def more(names: Sequence[str]) -> list[str]:
        prefixes = tuple(name[:-1] for name in names if name.endswith("*"))
        return shuffled([*names, *[name for name in NAMES if prefixes and name.startswith(prefixes)]])

    other = Asked(
        more(asked.collections),
        shuffled(asked.dids),
        shuffled(asked.kinds),
        shuffled(asked.operations),
        more(asked.exclude_collections),
        shuffled(asked.exclude_dids),
        asked.sample,
        asked.listed,
    )
    assert outcome(other) == outcome(asked)


# An event of each sort that a filter can tell from the others.
UNIVERSE = [
    event(kind, did, name)
    for kind in KIND_NAMES
    for did in (ANN, BOB, "did:plc:dan", "did:plc:eve", "did:plc:x")
    for name in (
        *(name.replace("*", "x") for name in NAMES),
        *("app.bsky.graph.x", "org.x.y", "com.example.a.b"),
    )
]


@given(WITHOUT_LIST, WITHOUT_LIST)
def test_unequal_filters_without_a_list_want_different_events(one: Asked, other: Asked) -> None:
    same = all(one.wants(each) == other.wants(each) for each in UNIVERSE)
    sync = [not each.kinds or "sync" in each.kinds for each in (one, other)]
    if one.parse() == other.parse():
        assert same
    elif sync[0] == sync[1]:
        assert not same
