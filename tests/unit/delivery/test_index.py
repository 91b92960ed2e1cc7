from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from unittest.mock import create_autospec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import event
from tests.unit.delivery.encodings import CLASSIC, V1
from tests.unit.model.asking import ANN, BOB, EVENTS, GOOD, LIKE, POST, Asked

from jetstream.delivery.did_index import TUPLE_MAX, ListIndex
from jetstream.delivery.feature_cache import FeatureCache
from jetstream.delivery.index import Groups
from jetstream.delivery.subscriber import Encoding, Group, Sink, Subscriber, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.batch import Batch
from jetstream.model.content import Content, features_of
from jetstream.model.did_set import DidSet
from jetstream.model.event import IDENTITY, Event
from jetstream.model.filter import DIDS_PER_STEP, RECORDS, Filter
from jetstream.steps import Steps, finish

REMEMBERED = 1_000
NOWHERE = create_autospec(Sink, instance=True)  # groups only say who gets what


def subscriber(
    *collections: str, dids: tuple[str, ...] = (), limit: int = 0, encoding: Encoding = CLASSIC
) -> Subscriber:
    options = SubscriberOptions(Filter.parse(collections, dids), limit)
    return Subscriber(NOWHERE, encoding, options, 0, 0.0)


def wanted(groups: Groups, batch: Batch, start: int, stop: int) -> dict[Subscriber, list[int]]:
    """Return the events that each subscriber wants, by their indices."""
    found: dict[Subscriber, list[int]] = {}
    for group, indices in groups.wanted(batch, start, stop).items():
        assert indices
        found |= {member: list(indices) for member in group.members}
    return found


def slowly(members: list[Subscriber], batch: Batch, start: int, stop: int) -> dict[Subscriber, list[int]]:
    """Ask every subscriber about every event: the model that the index is compared with."""
    found = {member: selected(member.options, batch, start, stop) for member in members}
    return {member: indices for member, indices in found.items() if indices}


def selected(options: SubscriberOptions, batch: Batch, start: int, stop: int) -> list[int]:
    chosen = options.wanted.select(batch, start, stop)
    return [
        i
        for i in chosen
        if options.content is None
        or batch.kinds[i] not in RECORDS
        or options.content.matches(features_of(batch.bodies[i]))
    ]


def is_empty(groups: Groups) -> bool:
    parts = groups._parts
    named = (parts._by_collection, parts._by_content._all, parts._by_sample)
    indices = (
        groups._groups,
        groups._refined,
        groups._with_dids,
        groups._by_list,
        groups._lists._lists,
        *groups._lists.by_did.shards,
        *groups._by_did.shards,
        parts.everything,
        parts._by_content._by_term,
        parts._by_content._by_phrase._by_word,
        parts._by_content._by_phrase._word_of,
        parts._by_kind.groups,
        parts._by_kind._parts,
    )
    return not any(indices) and not any(part.groups or part.remembered for part in named)


def test_equal_subscribers_share_a_group_and_its_bytes() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    one, other = subscriber(POST, "app.bsky.graph.*"), subscriber("app.bsky.graph.*", POST, POST)
    groups.add(one)
    groups.add(other)

    assert len(groups._groups) == 1
    assert one.group is other.group
    assert one.group is not None
    assert list(one.group.members) == [one, other]


def test_unequal_subscribers_do_not() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    for each in (
        subscriber(),
        subscriber(encoding=V1),
        subscriber(limit=9),
        subscriber(POST),
        subscriber(dids=(ANN,)),
        subscriber(POST, dids=(ANN,)),
    ):
        groups.add(each)

    assert len(groups._groups) == 6


def test_each_gets_what_it_asked_for() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    everyone, posts, ann = subscriber(), subscriber(POST), subscriber(dids=(ANN,))
    for each in (everyone, posts, ann):
        groups.add(each)
    events = [event(collection=LIKE, did=ANN), event(collection=POST, did=BOB), event(IDENTITY, did=BOB)]
    batch = Batch.of(events, [1, 2, 3])
    assert wanted(groups, batch, 0, 3) == {everyone: [0, 1, 2], posts: [1, 2], ann: [0]}


def test_a_group_that_wants_nothing_is_not_named() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    for each in (subscriber(POST), subscriber(dids=(BOB,)), subscriber(LIKE, dids=(ANN,))):
        groups.add(each)

    assert wanted(groups, Batch.of([event(collection="com.example.a", did=ANN)], [1]), 0, 1) == {}


def test_a_newcomer_is_seen_by_collections_that_were_seen_before() -> None:
    groups, batch = Groups(REMEMBERED, finish, FeatureCache(1 << 20)), Batch.of([event(collection=POST)], [1])
    first, second = subscriber(POST), subscriber("app.bsky.*")
    groups.add(first)
    groups.wanted(batch, 0, 1)
    groups.add(second)

    assert set(wanted(groups, batch, 0, 1)) == {first, second}
    groups.remove(first)
    assert set(wanted(groups, batch, 0, 1)) == {second}


def test_hostile_collections_do_not_fill_the_memory() -> None:
    groups = Groups(10, finish, FeatureCache(1 << 20))
    reader = subscriber("com.*")
    groups.add(reader)
    batch = Batch.of([event(collection=f"com.example.c{number}") for number in range(100)], range(100))

    assert len(wanted(groups, batch, 0, 100)[reader]) == 100
    assert len(groups._parts._by_collection.remembered) <= 10


CONTENTS = (
    None,
    None,
    Content.parse(lang=["en", "de"]),
    Content.parse(lang=["en"], text=["good morning", "hi"]),
    Content.parse(mentions=[ANN, BOB], lang=["de"]),
    Content.parse(text=["good evening", "good morning", "ood"]),
    Content.parse(mentions=[ANN], text=["hi", "good morning"]),
    Content.parse(text=["猫", "hi"], has_media=True),
    Content.parse(subject=[ANN]),
    Content.parse(has_media=True),
)
BODIES = (
    b'{"langs":["de","en"],"text":"Good morning"}',
    b'{"langs":["en-US"],"text":"Good evening"}',
    b'{"facets":[{"features":[{"$type":"app.bsky.richtext.facet#mention","did":"did:plc:ann"}]}],"langs":["de"]}',
    b'{"facets":[{"features":[{"$type":"app.bsky.richtext.facet#mention","did":"did:plc:ann"}]}],"text":"Hi"}',
    '{"embed":{"$type":"app.bsky.embed.video"},"text":"黒猫"}'.encode(),
    b'{"subject":{"uri":"at://did:plc:ann/app.bsky.feed.post/1"}}',
    b'{"embed":{"$type":"app.bsky.embed.video"},"text":"hi"}',
    b"{}",
)
POOL = st.tuples(
    GOOD, st.sampled_from([0, 0, 120, 200]), st.sampled_from(CONTENTS), st.sampled_from([CLASSIC, V1])
)


def options(asked: Asked, limit: int, content: Content | None) -> SubscriberOptions:
    """Return options as a request would, but for a content filter that matches nothing."""
    try:
        named = None if content is None else ("lang", "en")
        return SubscriberOptions(Filter.parse(**asked._asdict(), content=named), limit, content)
    except InvalidParameter:
        return SubscriberOptions(asked.parse(), limit)


@given(
    st.lists(st.tuples(POOL, st.integers(0, 1)), max_size=8),
    st.lists(st.tuples(EVENTS, st.sampled_from(BODIES)), min_size=1, max_size=12),
    st.sampled_from([1, 5, 1_000]),
    st.data(),
)
@settings(max_examples=120)
def test_the_index_gives_what_asking_everybody_gives(
    pool: list[tuple[tuple[Asked, int, Content | None, Encoding], int]],
    written: list[tuple[Event, bytes]],
    per_step: int,
    data: st.DataObject,
) -> None:
    """For the groups of two lanes, which come and go in any order, and may use the same lists."""
    events = [one._replace(body=body if one.kind in RECORDS else b"") for one, body in written]
    lists = ListIndex(finish)
    lanes = [Groups(REMEMBERED, finish, FeatureCache(1 << 20), lists, per_step) for _ in range(2)]
    batch = Batch.of(events, range(1, len(events) + 1))
    start = data.draw(st.integers(0, len(events) - 1))
    stop = data.draw(st.integers(start + 1, len(events)))
    members: list[list[Subscriber]] = [[], []]
    all_of_them = [
        (lane, Subscriber(NOWHERE, encoding, options(asked, limit, content), 0, 0.0))
        for (asked, limit, content, encoding), lane in pool
    ]
    for lane, member in data.draw(st.permutations(all_of_them * 2)):
        if member.group is None:
            lanes[lane].add(member)
            members[lane].append(member)
        else:
            lanes[lane].remove(member)
            members[lane].remove(member)
            assert member.group is None
        for groups, there in zip(lanes, members, strict=True):
            assert wanted(groups, batch, start, stop) == slowly(there, batch, start, stop)

    assert all(groups.wanted(batch, start, stop) == {} and is_empty(groups) for groups in lanes)


LIST = DidSet(b"did:plc:%d" % n for n in range(3 * DIDS_PER_STEP))


def beside(listed: DidSet, n: int) -> Subscriber:
    """Return a subscriber to a list of DIDs, with other options than any other one."""
    wanted = Filter.parse([f"com.example.c{n}"], [f"did:web:{n}.example"], listed=listed)
    return Subscriber(NOWHERE, CLASSIC, SubscriberOptions(wanted), 0, 0.0)


def test_however_many_groups_use_a_list_it_stands_under_its_dids_once() -> None:
    lists = ListIndex(finish)
    lanes = [Groups(REMEMBERED, finish, FeatureCache(1 << 20), lists) for _ in range(2)]
    members = [(lane, beside(LIST, n)) for n in range(500) for lane in lanes]
    for lane, member in members:
        lane.add(member)
    assert all(member.options.wanted.listed is LIST for _, member in members)
    entries = [entry for shard in lists.by_did.shards for entry in shard.values()]
    assert len(entries) == len(LIST)
    assert all(len(entry) == 1 for entry in entries)
    # Beside the list, each stands under the DID that it names.
    assert [sum(map(len, lane._by_did.shards)) for lane in lanes] == [500, 500]
    batch = Batch.of([event(collection="com.example.c7", did="did:plc:11")], [1])
    assert wanted(lanes[0], batch, 0, 1) == {members[14][1]: [0]}
    for lane, member in members:
        lane.remove(member)
    assert all(map(is_empty, lanes))


def test_a_list_is_indexed_by_the_first_of_its_groups_in_steps_and_removed_with_the_last() -> None:
    deferred = list[Steps[None]]()
    groups = Groups(REMEMBERED, deferred.append, FeatureCache(1 << 20))
    one, other = beside(LIST, 1), beside(LIST, 2)
    assert groups.takes_steps(one)
    group = Group(one.encoding, one.options)
    assert len(list(groups.index(group))) == 3
    groups.add(one, group)
    assert not groups.takes_steps(other)
    groups.add(other)
    groups.remove(one)
    assert deferred == []
    groups.remove(other)
    (steps,) = deferred
    assert groups.takes_steps(one)
    # A new group does not take part in what is being removed.
    finish(groups.index(group := Group(one.encoding, one.options)))
    groups.add(one, group)
    finish(steps)
    batch = Batch.of([event(collection="com.example.c1", did="did:plc:11")], [1])
    assert wanted(groups, batch, 0, 1) == {one: [0]}
    groups.remove(one)
    finish(deferred[1])
    assert is_empty(groups)


def test_a_list_that_is_partly_indexed_is_forgotten() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    one = beside(LIST, 1)
    group = Group(one.encoding, one.options)
    next(groups.index(group))
    assert groups.takes_steps(one)
    groups.forget(group)
    assert is_empty(groups)


def test_one_that_goes_while_its_list_is_indexed_takes_no_events_from_others() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    gone = beside(LIST, 1)  # which names a DID beside the list
    next(groups.index(group := Group(gone.encoding, gone.options)))
    groups.forget(group)
    groups.add(other := subscriber(dids=(ANN,)))
    batch = Batch.of([event(collection=POST, did=ANN)], [1])
    assert wanted(groups, batch, 0, 1) == {other: [0]}
    groups.remove(other)
    assert is_empty(groups)


def test_a_list_that_one_has_left_half_indexed_is_indexed_once_by_another() -> None:
    deferred = list[Steps[None]]()
    groups = Groups(REMEMBERED, deferred.append, FeatureCache(1 << 20))
    own = tuple(f"did:plc:own{n}" for n in range(2 * DIDS_PER_STEP))  # its removal is deferred
    gone = Group(CLASSIC, SubscriberOptions(Filter.parse([], own, listed=LIST)))
    next(groups.index(gone))
    groups.forget(gone)
    one = Subscriber(NOWHERE, CLASSIC, SubscriberOptions(Filter.parse([], [], listed=LIST)), 0, 0.0)
    finish(groups.index(group := Group(one.encoding, one.options)))
    groups.add(one, group)
    for steps in deferred:
        finish(steps)
    batch = Batch.of([event(collection=POST, did=next(iter(LIST)).decode())], [1])
    assert wanted(groups, batch, 0, 1) == {one: [0]}
    groups.remove(one)
    finish(deferred[-1])
    assert is_empty(groups)


OWN = tuple(f"did:plc:{n}" for n in range(DIDS_PER_STEP, 4 * DIDS_PER_STEP))
LARGE_FILTERS = (
    Filter.parse([], [], listed=LIST),
    Filter.parse([POST], [], listed=LIST),
    Filter.parse([], [ANN], listed=LIST),
    Filter.parse([], OWN, listed=LIST),
    Filter.parse([], OWN),
    Filter.parse([POST], OWN),
    Filter.parse([], [ANN]),
)
NAMED = (ANN, BOB, "did:plc:1", f"did:plc:{DIDS_PER_STEP}", OWN[-1])
OF_NAMED = Batch.of(
    [event(collection=collection, did=did) for collection in (LIKE, POST) for did in NAMED], range(1, 11)
)


@given(st.lists(st.tuples(st.sampled_from(LARGE_FILTERS), st.integers(0, 8), st.booleans()), max_size=10))
@settings(max_examples=60)
def test_what_is_left_in_the_middle_of_indexing_changes_nothing_for_others(
    program: list[tuple[Filter, int, bool]],
) -> None:
    """Each of `program` joins, leaves, or is gone after so many steps of indexing. Removals wait."""
    deferred = list[Steps[None]]()
    groups, there = Groups(REMEMBERED, deferred.append, FeatureCache(1 << 20)), dict[Filter, Subscriber]()
    for wants, steps, works in program:
        if wants in there:
            groups.remove(there.pop(wants))
        else:
            one = Subscriber(NOWHERE, CLASSIC, SubscriberOptions(wants), 0, 0.0)
            indexing = groups.index(group := Group(one.encoding, one.options))
            if any(True for _ in islice(indexing, steps + 1)) and next(indexing, "over") is None:
                groups.forget(group)
            else:
                finish(indexing)
                groups.add(one, group)
                there[wants] = one
        if works and deferred:
            finish(deferred.pop(0))
        members = list(there.values())
        assert wanted(groups, OF_NAMED, 0, 10) == slowly(members, OF_NAMED, 0, 10)
    for one in there.values():
        groups.remove(one)
    for removal in deferred:
        finish(removal)
    assert is_empty(groups)


ANNS = DidSet([ANN.encode(), b"did:plc:nobody"])
# 50 different filters that all want each of these events, of every kind that the index knows.
EVENTS_OF_ANN = Batch.of([event(collection=POST, did=ANN, body=BODIES[0]) for _ in range(60)], range(60))
MANY_FILTERS: dict[str, Callable[[int], SubscriberOptions]] = {
    "collections": lambda n: SubscriberOptions(Filter.parse([POST], []), 1_000 + n),
    "kinds": lambda n: SubscriberOptions(Filter.parse([], [], kinds=["commit"]), 1_000 + n),
    "samples": lambda n: SubscriberOptions(Filter.parse([], [], sample=f"99.{n + 10}")),
    "content": lambda n: SubscriberOptions(Filter.parse([], []), 1_000 + n, CONTENTS[2]),
    "excluded": lambda n: SubscriberOptions(Filter.parse([], [], exclude_dids=[f"did:plc:{n}"])),
    "dids": lambda n: SubscriberOptions(Filter.parse([], [ANN, f"did:plc:{n}"])),
    "dids and content": lambda n: SubscriberOptions(Filter.parse([], [ANN, f"did:plc:{n}"]), 0, CONTENTS[2]),
    "a list": lambda n: SubscriberOptions(Filter.parse([POST], [f"did:web:{n}.example"], listed=ANNS)),
    "lists": lambda n: SubscriberOptions(Filter.parse([], [], listed=DidSet([ANN.encode(), b"%d" % n]))),
}


TALK = Batch.of(
    [event(collection=POST, did=ANN, body=b'{"text":"%s"}' % (b"the rest of " * 100)) for _ in range(10)],
    range(10),
)


@pytest.mark.parametrize("dids", [(), (ANN,)])
def test_what_is_searched_in_a_step_is_bounded(dids: tuple[str, ...]) -> None:
    """A step searches less where phrases are many and texts are long, also within one record."""
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20), per_step=1_000)
    for n in range(10):
        content = Content.parse(
            text=[f"rest of the rest {n} {other} of the" for other in ("the", "of", "rest")]
        )
        groups.add(
            Subscriber(NOWHERE, CLASSIC, SubscriberOptions(Filter.parse([], dids), n, content), 0, 0.0)
        )
    content = Content.parse(text=[f"rest of the {'rest of the ' * n} the" for n in range(1, 20)])
    groups.add(Subscriber(NOWHERE, CLASSIC, SubscriberOptions(Filter.parse([], dids), 0, content), 0, 0.0))
    assert len(list(groups.judge(TALK, 0, 1))) >= 2
    assert len(list(groups.judge(TALK, 0, 10))) >= 20
    assert groups.wanted(TALK, 0, 10) == {}


@pytest.mark.parametrize("name", MANY_FILTERS)
def test_what_is_judged_in_a_step_is_bounded(name: str) -> None:
    """A step judges fewer events where there are more groups, whatever they ask for."""
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20), per_step=200)
    for n in range(50):
        groups.add(Subscriber(NOWHERE, CLASSIC, MANY_FILTERS[name](n), 0, 0.0))
    steps = list(groups.judge(EVENTS_OF_ANN, 0, 60))
    assert len(steps) >= 60 * 50 // 300
    assert [len(found) for found in groups.wanted(EVENTS_OF_ANN, 0, 60).values()] == [60] * 50


def test_few_groups_are_one_step() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    for one in (subscriber(), subscriber(POST), subscriber(dids=(ANN,))):
        groups.add(one)
    assert list(groups.judge(EVENTS_OF_ANN, 0, 60)) == []


def test_no_sample_is_tried_that_does_not_have_the_account() -> None:
    """Of a kind and a collection, the groups are in the order of their samples."""
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    for share in range(1, 400):
        groups.add(Subscriber(NOWHERE, CLASSIC, options(Asked(sample=f"{share / 4}"), 0, None), 0, 0.0))
    batch = Batch.of([event(did=f"did:plc:{n}") for n in range(50)], range(50))
    groups.wanted(batch, 0, 50)
    ((bounds, standing),) = groups._parts._by_sample.remembered.values()
    assert bounds == sorted(bounds)
    assert [each.options.wanted.sample for each in standing] == [25 * share for share in range(1, 400)]


def test_records_are_parsed_only_of_collections_that_a_content_filter_wants() -> None:
    features = FeatureCache(1 << 20)
    groups = Groups(REMEMBERED, finish, features)
    batch = Batch.of([event(collection=name, body=BODIES[0]) for name in (POST, LIKE, POST)], [1, 2, 3])
    groups.add(subscriber(LIKE))
    assert wanted(groups, batch, 0, 3)
    assert features.size == 0
    reader = Subscriber(NOWHERE, CLASSIC, options(Asked([POST]), 0, CONTENTS[2]), 0, 0.0)
    groups.add(reader)
    assert wanted(groups, batch, 0, 3)[reader] == [0, 2]
    assert len(features.parsed(batch)._features) == 2


def test_records_are_parsed_only_of_dids_that_a_content_filter_stands_beside() -> None:
    features = FeatureCache(1 << 20)
    groups = Groups(REMEMBERED, finish, features)
    one = Subscriber(NOWHERE, CLASSIC, options(Asked(dids=[ANN]), 0, CONTENTS[2]), 0, 0.0)
    groups.add(one)
    batch = Batch.of([event(did=did, body=BODIES[0]) for did in (BOB, ANN, BOB)], [1, 2, 3])
    assert wanted(groups, batch, 0, 3) == {one: [1]}
    assert len(features.parsed(batch)._features) == 1
    assert wanted(groups, Batch.of([event(did=ANN)], [4]), 0, 1) == {}
    groups.remove(one)
    assert is_empty(groups)


def test_few_and_many_groups_may_name_one_did() -> None:
    groups, batch = Groups(REMEMBERED, finish, FeatureCache(1 << 20)), Batch.of([event(did=ANN)], [1])
    members = [subscriber(dids=(ANN, f"did:plc:other{n}")) for n in range(2 * TUPLE_MAX)]
    for count, member in enumerate(members, 1):
        groups.add(member)
        assert len(wanted(groups, batch, 0, 1)) == count
    for count, member in enumerate(members, 1):
        groups.remove(member)
        assert len(wanted(groups, batch, 0, 1)) == len(members) - count
    assert is_empty(groups)


def test_a_large_group_goes_into_the_index_and_out_of_it_in_steps() -> None:
    deferred = list[Steps[None]]()
    groups, dids = (
        Groups(REMEMBERED, deferred.append, FeatureCache(1 << 20)),
        [f"did:plc:{n}" for n in range(5 * DIDS_PER_STEP)],
    )
    one = subscriber(dids=tuple(dids))
    assert groups.takes_steps(one)
    group = Group(one.encoding, one.options)
    assert len(list(groups.index(group))) == 5
    groups.add(one, group)
    assert one.group is group
    assert not groups.takes_steps(one)
    groups.remove(one)
    assert len(groups._groups) == 0
    assert sum(map(len, groups._by_did.shards)) == len(dids)
    (steps,) = deferred
    assert len(list(steps)) == 5
    assert is_empty(groups)


def test_a_group_that_is_partly_indexed_is_forgotten() -> None:
    groups = Groups(REMEMBERED, finish, FeatureCache(1 << 20))
    large = Group(
        CLASSIC, SubscriberOptions(Filter.parse([], [f"did:plc:{n}" for n in range(5 * DIDS_PER_STEP)]))
    )
    next(groups.index(large))
    finish(groups._unindex(large))
    assert is_empty(groups)
