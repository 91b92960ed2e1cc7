from __future__ import annotations

import asyncio
import json
from unittest.mock import create_autospec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import event

from jetstream.delivery import index as module
from jetstream.delivery.index import _TUPLE_GROUPS_MAX, Group, Groups
from jetstream.delivery.lanes import Lane
from jetstream.delivery.subscriber import Sink, Subscriber, SubscriberOptions
from jetstream.delivery.wires import CLASSIC, V1, Wire
from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, Event
from jetstream.model.filter import DIDS_PER_STEP, Filter
from jetstream.steps import finish

POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
ANN, BOB = "did:plc:ann", "did:plc:bob"
NOWHERE = create_autospec(Sink, instance=True)  # groups only say who gets what


def subscriber(
    *collections: str, dids: tuple[str, ...] = (), limit: int = 0, wire: Wire = CLASSIC
) -> Subscriber:
    return Subscriber(
        NOWHERE, wire, SubscriberOptions(Filter.parse(collections, dids), limit), Lane(0), 0, 0.0
    )


def messages(groups: Groups, batch: Batch, start: int, stop: int) -> dict[Subscriber, list[bytes]]:
    """Return what each subscriber is sent, without the heads of the frames."""
    sent: dict[Subscriber, list[bytes]] = {}
    for group, frames in groups.deliveries(batch, start, stop).items():
        assert frames
        sent |= {member: [frame[frame.index(b"{") :] for frame in frames] for member in group.members}
    return sent


def slowly(members: list[Subscriber], batch: Batch, start: int, stop: int) -> dict[Subscriber, list[bytes]]:
    """Ask every subscriber about every event: the model that the index is held against."""
    sent = {}
    for member in members:
        options = member.options
        all_messages = [(batch.event(i), member.wire.message(batch, i)) for i in range(start, stop)]
        wanted = [
            message
            for one, message in all_messages
            if options.wanted.wants(one.kind, one.did, one.collection)
            and (not options.message_bytes_max or len(message) <= options.message_bytes_max)
        ]
        if wanted:
            sent[member] = wanted
    return sent


def is_empty(groups: Groups) -> bool:
    indices = (groups._groups, groups._wires, groups._everything, groups._by_collection, *groups._by_did)
    return len(groups) == 0 and not any(indices) and not groups._resolved


def test_equal_subscribers_share_a_group_and_its_bytes() -> None:
    groups = Groups()
    one, other = subscriber(POST, "app.bsky.graph.*"), subscriber("app.bsky.graph.*", POST, POST)
    groups.add(one)
    groups.add(other)

    assert len(groups) == 1
    assert one.group is other.group
    assert one.group is not None
    assert list(one.group.members) == [one, other]


def test_unequal_subscribers_do_not() -> None:
    groups = Groups()
    for each in (
        subscriber(),
        subscriber(wire=V1),
        subscriber(limit=9),
        subscriber(POST),
        subscriber(dids=(ANN,)),
        subscriber(POST, dids=(ANN,)),
    ):
        groups.add(each)

    assert len(groups) == 6


def test_each_gets_what_it_asked_for_in_its_own_wire() -> None:
    groups = Groups()
    everyone, posts, ann = subscriber(), subscriber(POST, wire=V1), subscriber(dids=(ANN,))
    for each in (everyone, posts, ann):
        groups.add(each)
    events = [event(collection=LIKE, did=ANN), event(collection=POST, did=BOB), event(IDENTITY, did=BOB)]
    batch = Batch.of(events, [1, 2, 3])
    sent = messages(groups, batch, 0, 3)

    assert [json.loads(message)["time_us"] for message in sent[everyone]] == [1, 2, 3]
    assert [json.loads(message)["kind"] for message in sent[posts]] == ["commit", "identity"]
    assert [json.loads(message)["time_us"] for message in sent[ann]] == [1]


def test_whoever_wants_nothing_of_it_is_not_named() -> None:
    groups = Groups()
    for each in (
        subscriber(POST),
        subscriber(dids=(BOB,)),
        subscriber(limit=10),
        subscriber(LIKE, dids=(ANN,)),
    ):
        groups.add(each)

    assert messages(groups, Batch.of([event(collection="com.example.a", did=ANN)], [1]), 0, 1) == {}


@pytest.mark.parametrize("over", [0, 1])
def test_limits_are_on_the_message_and_held_to_the_byte(over: int) -> None:
    for size in (50, 125, 126, 4_000, 65_535, 65_536):
        batch = Batch.of([event(IDENTITY, did="a", body=b'"%b"' % (b"x" * size))], [1])
        length = len(CLASSIC.message(batch, 0))
        groups = Groups()
        limited = subscriber(limit=length - over)
        groups.add(limited)

        assert (limited in messages(groups, batch, 0, 1)) is (over == 0)


def test_a_wire_that_nobody_reads_is_not_rendered() -> None:
    groups, batch = Groups(), Batch.of([event(did=ANN)], [1])
    reader = subscriber(wire=V1)
    groups.add(reader)
    groups.deliveries(batch, 0, 1)
    assert set(batch.frames) == {"v1"}

    groups.remove(reader)
    other = Batch.of([event()], [1])
    assert groups.deliveries(other, 0, 1) == {}
    assert other.frames == {}


def test_a_newcomer_is_seen_by_collections_that_were_seen_before() -> None:
    groups, batch = Groups(), Batch.of([event(collection=POST)], [1])
    first, second = subscriber(POST), subscriber("app.bsky.*")
    groups.add(first)
    groups.deliveries(batch, 0, 1)
    groups.add(second)

    assert set(messages(groups, batch, 0, 1)) == {first, second}
    groups.remove(first)
    assert set(messages(groups, batch, 0, 1)) == {second}


def test_hostile_collections_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COLLECTIONS_REMEMBERED", 10)
    groups = Groups()
    reader = subscriber("com.*")
    groups.add(reader)
    batch = Batch.of([event(collection=f"com.example.c{number}") for number in range(100)], range(100))

    assert len(messages(groups, batch, 0, 100)[reader]) == 100
    assert len(groups._resolved) <= 10


POOL = st.builds(
    lambda collections, dids, limit, wire: (tuple(collections), tuple(dids), limit, wire),
    st.lists(st.sampled_from([POST, LIKE, "app.bsky.*", "com.*"]), max_size=2),
    st.lists(st.sampled_from([ANN, BOB, "did:plc:eve"]), max_size=2),
    st.sampled_from([0, 0, 120, 200]),
    st.sampled_from([CLASSIC, V1]),
)
EVENTS = st.builds(
    event,
    st.sampled_from([CREATE, DELETE, IDENTITY, ACCOUNT]),
    st.sampled_from([ANN, BOB, "did:plc:dan"]),
    st.sampled_from([POST, LIKE, "com.example.a"]),
    body=st.sampled_from([b"{}", b'{"a":"' + b"x" * 60 + b'"}']),
)


@given(st.lists(POOL, max_size=8), st.lists(EVENTS, min_size=1, max_size=12), st.data())
@settings(max_examples=200)
def test_the_index_gives_what_asking_everybody_gives(
    pool: list[tuple[tuple[str, ...], tuple[str, ...], int, Wire]], events: list[Event], data: st.DataObject
) -> None:
    groups = Groups()
    batch = Batch.of(events, range(1, len(events) + 1))
    start = data.draw(st.integers(0, len(events) - 1))
    stop = data.draw(st.integers(start + 1, len(events)))
    members = [
        subscriber(*collections, dids=dids, limit=limit, wire=wire) for collections, dids, limit, wire in pool
    ]
    for member in members:
        groups.add(member)
    for leaver in data.draw(st.permutations(members)):
        assert messages(groups, batch, start, stop) == slowly(members, batch, start, stop)
        groups.remove(leaver)
        members.remove(leaver)
        assert leaver.group is None

    assert groups.deliveries(batch, start, stop) == {}
    assert is_empty(groups)


def test_few_and_many_groups_may_name_one_did() -> None:
    groups, batch = Groups(), Batch.of([event(did=ANN)], [1])
    members = [subscriber(dids=(ANN, f"did:plc:other{n}")) for n in range(2 * _TUPLE_GROUPS_MAX)]
    for count, member in enumerate(members, 1):
        groups.add(member)
        assert len(messages(groups, batch, 0, 1)) == count
    for count, member in enumerate(members, 1):
        groups.remove(member)
        assert len(messages(groups, batch, 0, 1)) == len(members) - count
    assert is_empty(groups)


async def test_a_large_group_goes_into_the_index_and_out_of_it_in_steps() -> None:
    groups, dids = Groups(), [f"did:plc:{n}" for n in range(5 * DIDS_PER_STEP)]
    one = subscriber(dids=tuple(dids))
    assert groups.takes_steps(one)
    group = Group(one.wire, one.options)
    assert len(list(groups.index(group))) == 5
    groups.add(one, group)
    assert one.group is group
    assert not groups.takes_steps(one)
    groups.remove(one)
    assert len(groups) == 0
    assert sum(map(len, groups._by_did)) == len(dids)
    while any(groups._by_did) or groups._wires:  # noqa: ASYNC110 - the worker tells nobody
        await asyncio.sleep(0.001)
    assert is_empty(groups)


def test_a_group_that_is_partly_indexed_is_forgotten() -> None:
    groups = Groups()
    large = Group(
        CLASSIC, SubscriberOptions(Filter.parse([], [f"did:plc:{n}" for n in range(5 * DIDS_PER_STEP)]))
    )
    next(groups.index(large))
    finish(groups._unindex(large))
    assert is_empty(groups)
