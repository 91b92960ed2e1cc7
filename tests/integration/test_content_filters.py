"""Content filters through the socket: live, after an update, and replayed, each with its own records."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.builders import DID as ALICE
from tests.builders import account, commit, create, delete, identity
from tests.integration.test_filters import LIKE, POST, number
from tests.relay import Relay
from tests.serving import Start, get, published
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.model.sample import in_sample

BOB = "did:plc:bobbobbobbobbobbobbobbob"
OLD = f"at://{ALICE}/{POST}/1"
FACETS = [{"features": [{"$type": "app.bsky.richtext.facet#mention", "did": BOB}], "index": {}}]
FOLLOW = "app.bsky.graph.follow"
V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
NAMES_OF_V2 = {"wantedCollections": "collections", "wantedDids": "dids"}

FRAMES = list(
    enumerate(
        [
            commit(1, [create(f"{POST}/1", {"text": "Good morning", "langs": ["en-US"]})]),
            commit(2, [create(f"{POST}/2", {"text": "Guten Morgen!", "langs": ["de"], "facets": FACETS})]),
            commit(
                3, [create(f"{POST}/3", {"text": "GOOD  night", "reply": {"parent": {"uri": OLD}}})], repo=BOB
            ),
            commit(4, [create(f"{LIKE}/4", {"subject": {"uri": OLD, "cid": "x"}})], repo=BOB),
            commit(5, [create(f"{FOLLOW}/5", {"subject": ALICE})], repo=BOB),
            commit(6, [create(f"{POST}/6", {"text": "", "embed": {"$type": "app.bsky.embed.images"}})]),
            commit(7, [delete(f"{POST}/7")]),
            identity(8, handle="alice.example.com"),
            account(9, did=BOB),
            # Ends each test: it meets every filter of the first kind.
            commit(
                10,
                [
                    create(
                        f"{POST}/10",
                        {
                            "text": "good morgen",
                            "langs": ["en", "de"],
                            "facets": FACETS,
                            "reply": {"parent": {"uri": OLD}},
                            "subject": OLD,
                            "embed": {"$type": "app.bsky.embed.video"},
                        },
                    )
                ],
            ),
        ],
        1,
    )
)

CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({"lang": ["en"]}, [1]),
    ({"lang": ["en", "de"]}, [1, 2]),
    ({"lang": ["de"], "text": ["morgen"]}, [2]),
    ({"mentions": [BOB]}, [2]),
    ({"replyTo": [ALICE]}, [3]),
    ({"subject": [ALICE]}, [4, 5]),
    ({"subject": [OLD]}, [4]),
    ({"subject": [ALICE], "wantedCollections": [POST, LIKE]}, [4]),
    ({"hasMedia": True}, [6]),
    ({"text": ["good"]}, [1, 3]),
    ({"text": ["good"], "excludeDids": [BOB]}, [1]),
    ({"text": ["Good Morgen", "good night"]}, [3]),
    ({"lang": ["en"], "kinds": ["commit", "identity"]}, [1, 8]),
    ({"lang": ["en"], "wantedDids": [ALICE]}, [1]),
    ({"lang": ["en"], "sample": 100}, [1]),
]


@pytest.fixture
async def live(start: Start, relay: Relay) -> Service:
    service = await start()
    await relay.wait_accepted(1)
    return service


@pytest.mark.parametrize(("asked", "wanted"), CASES)
async def test_a_bot_gets_what_it_needs(
    asked: dict[str, Any], wanted: list[int], live: Service, relay: Relay
) -> None:
    query: dict[str, Any] = {name: "true" if value is True else value for name, value in asked.items()}
    async with (
        subscribe(live.port, **query) as at_the_tip,
        subscribe(live.port, "/v1/subscribe", mentions="did:plc:nobody") as updated,
    ):
        await updated.update(**asked)
        await (await updated.connection.ping())
        relay.publish(FRAMES)
        await published(live, 10)
        async with subscribe(live.port, cursor=1, **query) as behind:
            for subscriber in (at_the_tip, updated, behind):
                events = await subscriber.events(len(wanted) + 1)
                assert [number(event) for event in events] == [*wanted, 10]


async def test_a_sample_is_of_accounts_whatever_they_do(live: Service, relay: Relay) -> None:
    dids = [f"did:plc:{n:024d}" for n in range(100)]
    frames = [(n, commit(n, [create(f"{LIKE}/{n}", {})], repo=did)) for n, did in enumerate(dids, 1)]
    frames += [(n, account(n, did=did)) for n, did in enumerate(dids, 101)]
    chosen = [did for did in dids if in_sample(did.encode(), 2_500)] * 2
    async with subscribe(live.port, sample="25") as at_the_tip:
        relay.publish(frames)
        await published(live, 200)
        async with subscribe(live.port, cursor=1, sample="25") as behind:
            for subscriber in (at_the_tip, behind):
                assert [event["did"] for event in await subscriber.events(len(chosen))] == chosen


async def test_an_update_ends_a_content_filter(live: Service, relay: Relay) -> None:
    async with subscribe(live.port, mentions="did:plc:nobody") as subscriber:
        await subscriber.update()
        await (await subscriber.connection.ping())
        relay.publish(FRAMES)
        assert [number(event) for event in await subscriber.events(10)] == list(range(1, 11))
        await subscriber.update(langs=["en"])
        code, reason = await subscriber.ended()
    assert code == 1008
    assert "did you mean lang?" in reason


@pytest.mark.parametrize(("asked", "wanted"), CASES)
async def test_the_other_endpoints_have_the_same_filters(
    asked: dict[str, Any], wanted: list[int], live: Service, relay: Relay
) -> None:
    query: dict[str, Any] = {name: "true" if value is True else value for name, value in asked.items()}
    of_v2 = {NAMES_OF_V2.get(name, name): value for name, value in query.items()}
    relay.publish(FRAMES)
    await published(live, 10)
    async with subscribe(live.port, V2, cursor=0, **of_v2) as subscriber:
        messages = [(await subscriber.event())["payload"] for _ in range(len(wanted) + 1)]
    assert [int(each.get("rkey") or each["identity"]["seq"]) for each in messages] == [*wanted, 10]
    ending = urlencode({"cursor": 1, "limit": len(wanted) + 1, **query}, doseq=True)
    status, text = await get(live.port, f"/events?{ending}")
    assert (status, [number(json.loads(line)) for line in text.splitlines()]) == (200, [*wanted, 10])
