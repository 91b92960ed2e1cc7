"""Filters through the socket: in a URL, a hello or an update, and for a reader live or behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from tests.builders import DID as ALICE
from tests.builders import account, commit, create, delete, identity
from tests.relay import Relay
from tests.serving import Start, published
from tests.subscriber import Event, subscribe

from jetstream.app import Service

BOB = "did:plc:bobbobbobbobbobbobbobbob"
CAROL = "did:web:carol.example.com"
LIKE = "app.bsky.feed.like"
POST = "app.bsky.feed.post"
FOLLOW = "app.bsky.graph.follow"
BLOCK = "app.bsky.graph.block"
OTHER = "com.example.thing"
NEAR = "app.bskyx.feed.like"  # begins as `app.bsky` does, but not as `app.bsky.` does

STREAM = [
    commit(1, [create(f"{LIKE}/1", {"n": 1})]),
    commit(2, [create(f"{POST}/2", {"text": "two"})]),
    commit(3, [create(f"{FOLLOW}/3", {})], repo=BOB),
    commit(4, [delete(f"{BLOCK}/4")], repo=BOB),
    commit(5, [create(f"{OTHER}/5", {})]),
    commit(6, [create(f"{NEAR}/6", {})], repo=CAROL),
    identity(7, handle="alice.example.com"),
    account(8, did=BOB),
    commit(9, [create(f"{LIKE}/9", {})], repo=CAROL),
    identity(10, did="did:plc:last"),
]
LAST = "did:plc:last"
FRAMES = list(enumerate(STREAM, 1))

CASES: list[tuple[list[str], list[str], list[int]]] = [
    ([], [], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ([LIKE], [], [1, 7, 8, 9]),
    ([LIKE, BLOCK], [], [1, 4, 7, 8, 9]),
    (["app.bsky.graph.*"], [], [3, 4, 7, 8]),
    (["app.bsky.graph.*", POST], [], [2, 3, 4, 7, 8]),
    (["app.bsky.*"], [], [1, 2, 3, 4, 7, 8, 9]),
    (["app.*"], [], [1, 2, 3, 4, 6, 7, 8, 9]),
    (["com.example.*", "app.bskyx.*"], [], [5, 6, 7, 8]),
    (["org.example.nothing"], [], [7, 8]),
    ([], [ALICE], [1, 2, 5, 7]),
    ([], [BOB, CAROL], [3, 4, 6, 8, 9]),
    ([LIKE], [ALICE], [1, 7]),
    ([LIKE], [BOB], [8]),
    (["app.bsky.graph.*"], [BOB, CAROL], [3, 4, 8]),
    ([], ["did:plc:nobody"], []),
]


# The other lists of a filter.
MORE: list[tuple[dict[str, Any], list[int]]] = [
    ({"kinds": ["identity"]}, [7, 10]),
    ({"kinds": ["commit"]}, [1, 2, 3, 4, 5, 6, 9]),
    ({"kinds": ["account", "sync"]}, [8]),
    ({"kinds": ["commit"], "operations": ["delete"]}, [4]),
    ({"operations": ["delete"]}, [4, 7, 8, 10]),
    ({"kinds": ["commit"], "wantedCollections": [LIKE]}, [1, 9]),
    ({"operations": ["create"], "wantedCollections": ["app.bsky.graph.*"]}, [3, 7, 8, 10]),
    ({"excludeCollections": ["app.*"]}, [5, 7, 8, 10]),
    (
        {"wantedCollections": ["app.bsky.*"], "excludeCollections": [POST, "app.bsky.graph.*"]},
        [1, 7, 8, 9, 10],
    ),
    ({"excludeDids": [ALICE]}, [3, 4, 6, 8, 9, 10]),
    ({"excludeDids": [BOB, CAROL], "kinds": ["commit"]}, [1, 2, 5]),
    ({"wantedDids": [ALICE, BOB], "excludeDids": [BOB], "kinds": ["identity"]}, [7]),
]


def number(event: Event) -> int:
    """Return which frame of the stream an event is of."""
    body = event.get("commit") or event.get("identity") or event["account"]
    return int(body.get("rkey") or body["seq"])


def query(collections: Sequence[str], dids: Sequence[str]) -> dict[str, Any]:
    """Return parameters that ask for these, and for the identity of the last DID, which ends each test."""
    return {"wantedCollections": collections, "wantedDids": [*dids, LAST] if dids else []}


@pytest.fixture
async def live(start: Start, relay: Relay) -> Service:
    """A server that is connected to a relay with nothing to say yet."""
    service = await start()
    await relay.wait_accepted(1)
    return service


@pytest.mark.parametrize(("collections", "dids", "wanted"), CASES)
async def test_a_filter_passes_what_is_wanted_and_nothing_else(
    collections: list[str], dids: list[str], wanted: list[int], live: Service, relay: Relay
) -> None:
    asked = query(collections, dids)
    async with (
        subscribe(live.port, **asked) as at_the_tip,
        subscribe(live.port, requireHello="true") as hello,
        subscribe(live.port, wantedDids="did:plc:nobody") as updated,
    ):
        await hello.update(**asked)
        await updated.update(**asked)
        for subscriber in (hello, updated):
            await (await subscriber.connection.ping())  # its message has been taken
        relay.publish(FRAMES)
        await published(live, 10)
        async with subscribe(live.port, "/v1/subscribe", cursor=1, **asked) as behind:
            for subscriber in (at_the_tip, hello, updated, behind):
                events = await subscriber.events(len(wanted) + 1)
                assert [number(event) for event in events] == [*wanted, 10]


@pytest.mark.parametrize(("asked", "wanted"), MORE)
async def test_every_list_of_a_filter_live_updated_and_replayed(
    asked: dict[str, Any], wanted: list[int], live: Service, relay: Relay
) -> None:
    async with (
        subscribe(live.port, "/v1/subscribe", **asked) as at_the_tip,
        subscribe(live.port, wantedDids="did:plc:nobody") as updated,
    ):
        await updated.update(**asked)
        await (await updated.connection.ping())
        relay.publish(FRAMES)
        await published(live, 10)
        async with subscribe(live.port, cursor=1, **asked) as behind:
            for subscriber in (at_the_tip, updated, behind):
                events = await subscriber.events(len(wanted))
                assert [number(event) for event in events] == wanted


async def test_a_mistaken_name_in_an_update_closes_with_what_was_meant(live: Service) -> None:
    async with subscribe(live.port) as subscriber:
        await subscriber.update(wantedcollections=[LIKE])
        code, reason = await subscriber.ended()
    assert code == 1008
    assert "did you mean wantedCollections?" in reason


async def test_one_list_may_be_given_by_commas_and_by_repetition(live: Service, relay: Relay) -> None:
    async with subscribe(live.port, wantedCollections=[f"{LIKE},{POST}", BLOCK]) as subscriber:
        relay.publish(FRAMES)
        events = await subscriber.events(7)
    assert [number(event) for event in events] == [1, 2, 4, 7, 8, 9, 10]


async def test_an_update_replaces_all_three(live: Service, relay: Relay) -> None:
    asked: dict[str, Any] = {"wantedCollections": LIKE, "wantedDids": ALICE, "maxMessageSizeBytes": 10}
    async with subscribe(live.port, **asked) as subscriber:
        await subscriber.update()
        await (await subscriber.connection.ping())
        relay.publish(FRAMES)
        assert [number(event) for event in await subscriber.events(10)] == list(range(1, 11))


async def test_an_update_may_name_ten_thousand_repos(live: Service, relay: Relay) -> None:
    dids = [f"did:plc:{n:024d}" for n in range(10_000)]
    async with subscribe(live.port) as subscriber:
        await subscriber.update(wantedDids=dids)
        await (await subscriber.connection.ping())
        chosen = (9_999, 0, 5_000)
        relay.publish(FRAMES + [(20 + n, identity(20 + n, did=dids[chosen[n]])) for n in range(3)])
        assert [event["did"] for event in await subscriber.events(3)] == [dids[n] for n in chosen]


async def test_an_update_takes_effect_at_one_position(live: Service, relay: Relay) -> None:
    """Whenever it comes: before it all is judged by the old filter, after it by the new."""
    updated = False

    async def publish() -> int:
        """Publish until an event has come by the new filter; return the last number, a post's."""
        seq = 0
        while not updated or seq % 2:
            seq += 1
            relay.publish([(seq, commit(seq, [create(f"{LIKE if seq % 2 else POST}/{seq}", {})]))])
            await asyncio.sleep(0)
        return seq

    async with subscribe(live.port, wantedCollections=LIKE) as subscriber, asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(publish())
        numbers = [number(event) for event in await subscriber.events(20)]
        await subscriber.update(wantedCollections=[POST])
        while numbers[-1] % 2:
            numbers.append(number(await subscriber.event()))
        updated = True
        count = await publishing
        while numbers[-1] != count:
            numbers.append(number(await subscriber.event()))
    last_like = max(n for n in numbers if n % 2)
    splits = [
        [*range(1, split, 2), *range(split + split % 2, count + 1, 2)]
        for split in (last_like + 1, last_like + 2)
    ]
    assert numbers in splits


@pytest.mark.parametrize("path", ["/subscribe?wire=classic", "/subscribe?wire=v1", "/v1/subscribe?wire="])
async def test_messages_longer_than_the_limit_are_left_out(path: str, live: Service, relay: Relay) -> None:
    def post(seq: int, text: str) -> tuple[int, bytes]:
        return seq, commit(seq, [create(f"{POST}/{seq}", {"text": text})])

    async with subscribe(live.port, path) as sample:
        relay.publish([post(1, "é" * 100)])
        size = len(await sample.connection.recv(decode=False))
    async with (
        subscribe(live.port, f"{path}&maxMessageSizeBytes={size}") as fits,
        subscribe(live.port, f"{path}&maxMessageSizeBytes={size - 1}") as too_long,
        subscribe(live.port, path) as updated,
        subscribe(live.port, f"{path}&requireHello=true") as hello,
    ):
        await updated.update(maxMessageSizeBytes=size)
        await hello.update(maxMessageSizeBytes=size)
        for subscriber in (updated, hello):
            await (await subscriber.connection.ping())
        relay.publish([post(2, "é" * 100), post(3, "é" * 100 + "x"), post(4, "")])
        for subscriber in (fits, updated, hello):
            assert [number(event) for event in await subscriber.events(2)] == [2, 4]
        assert number(await too_long.event()) == 4
    async with subscribe(live.port, f"{path}&maxMessageSizeBytes={size}&cursor=1") as behind:
        assert [number(event) for event in await behind.events(3)] == [1, 2, 4]
