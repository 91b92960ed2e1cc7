"""`/explain`: what it says of parameters, and of the last minute's events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.builders import LIKE, commit, create, delete, identity
from tests.relay import Relay, numbered
from tests.serving import Start, get, published

from jetstream.app import Service
from jetstream.clock import unix_us
from jetstream.limits import Limits, WebLimits
from jetstream.token_bucket import Rate


async def explained(service: Service, query: str = "") -> Any:
    status, text = await get(service.port, f"/explain?{query}")
    assert status == 200, text
    return json.loads(text)


@pytest.fixture
async def service(relay: Relay, start: Start) -> Service:
    """Return a server with two likes, a follow, a delete and an identity event of two repos."""
    service = await start(upstream_cursor=0)
    paths = f"{LIKE}/a", f"{LIKE}/b", "app.bsky.graph.follow/c"
    ops = [*(create(path, {"path": path}) for path in paths[:2]), delete(f"{LIKE}/d")]
    ops.insert(2, create(paths[2], {"subject": "did:plc:c"}))
    relay.publish(numbered([commit(1, ops, repo="did:plc:a"), identity(2, did="did:plc:b")]))
    await published(service, 2)
    return service


async def test_everything(service: Service) -> None:
    seen = await explained(service)
    assert seen["wire"] == "classic"
    assert seen["filter"] == {
        "collections": [],
        "excludeCollections": [],
        "dids": {"number": 0, "some": []},
        "excludeDids": {"number": 0, "some": []},
        "kinds": [],
        "sample": 100,
        "records": [],
        "text": [],
    }
    minute = seen["last_minute"]
    assert (minute["events"], minute["matched"]) == (5, 5)
    assert 0 < minute["zstd_bytes"] < minute["bytes"]


@pytest.mark.parametrize(
    ("query", "matched"),
    [
        ("wantedCollections=app.bsky.feed.like", 4),
        ("wantedCollections=app.bsky.feed.like&kinds=commit", 3),
        ("operations=create&kinds=commit", 3),
        ("wantedDids=did:plc:b", 1),
        ("excludeDids=did:plc:b", 4),
        ("wantedCollections=com.nobody.*", 1),
        ("maxMessageSizeBytes=1", 0),
        ("subject=did:plc:c", 1),
        ("subject=did:plc:c&kinds=commit,identity", 2),
        ("text=absent", 0),
        ("sample=0.01", 0),
    ],
)
async def test_how_many_events_match(query: str, matched: int, service: Service) -> None:
    minute = (await explained(service, query))["last_minute"]
    assert (minute["events"], minute["matched"]) == (5, matched)


async def test_what_a_prefix_matches(service: Service) -> None:
    query = "wantedCollections=app.bsky.*,com.nobody.*&excludeCollections=app.bsky.graph.*"
    seen = await explained(service, query)
    assert seen["prefixes"] == {"app.bsky.*": [LIKE], "com.nobody.*": []}
    assert seen["filter"]["collections"] == ["app.bsky.*", "com.nobody.*"]
    assert seen["filter"]["excludeCollections"] == ["app.bsky.graph.*"]


async def test_collections_beyond_a_number_are_not_shown(relay: Relay, start: Start) -> None:
    limits = WebLimits(explained_collections_max=2, explained_per_turn=1)
    service = await start(upstream_cursor=0, limits=Limits(web=limits))
    relay.publish(numbered([commit(1, [delete(f"com.example.{name}/a") for name in "abcd"])]))
    await published(service, 1)
    seen = await explained(service, "wantedCollections=com.example.*")
    assert seen["prefixes"] == {"com.example.*": ["com.example.a", "com.example.b"]}
    assert seen["last_minute"]["matched"] == 4


async def test_how_a_content_filter_is_understood(service: Service) -> None:
    seen = await explained(service, "lang=en,DE&hasMedia&text=Good++Morning&sample=12.5")
    assert seen["filter"]["records"] == [["has:text"], ["has:media"], ["lang:de", "lang:en"]]
    assert seen["filter"]["text"] == ["good morning"]
    assert seen["filter"]["sample"] == 12.5
    assert seen["filter"]["kinds"] == ["create", "update"]


async def test_where_it_begins_and_ends(service: Service) -> None:
    seen = await explained(service, "cursor=0&until=2100-01-01T00:00:00Z&limit=3&heartbeat=9&wire=v2")
    assert (seen["wire"], seen["limit"], seen["heartbeat"]) == ("v2", 3, 9)
    assert seen["begins_us"] == service.log.oldest_us
    assert seen["until"] == "2100-01-01T00:00:00.000000Z"


async def test_older_events_are_not_counted(relay: Relay, start: Start) -> None:
    ahead_us = 0
    service = await start(upstream_cursor=0, clock_settle=1e-6, clock=lambda: unix_us() + ahead_us)
    relay.publish(numbered([commit(1)]))
    await published(service, 1)
    assert (await explained(service))["last_minute"]["events"] == 1
    ahead_us = 61_000_000
    await explained(service)  # so that the clock sees the step, which it follows when it has lasted
    assert (await explained(service))["last_minute"]["events"] == 0


async def test_an_empty_log(start: Start) -> None:
    assert (await explained(await start()))["last_minute"]["events"] == 0


async def test_a_bad_parameter_is_refused(service: Service) -> None:
    assert await get(service.port, "/explain?wantedDids=bob") == (
        400,
        "wantedDids: 'bob' is not a DID, such as did:plc:…\n",
    )


async def test_it_has_a_budget(start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(explanations=Rate(0, 2))))
    assert [(await get(service.port, "/explain"))[0] for _ in range(3)] == [200, 200, 429]


async def test_those_that_wait_are_bounded(start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(explanations_waiting_max=0)))
    assert (await get(service.port, "/explain"))[0] == 429


async def test_several_at_once_are_answered_one_after_another(relay: Relay, start: Start) -> None:
    service = await start(upstream_cursor=0, limits=Limits(web=WebLimits(explained_per_turn=1)))
    relay.publish(numbered([commit(1), commit(2), commit(3)]))
    await published(service, 3)
    answers = await asyncio.gather(*(explained(service, f"limit={n}") for n in (1, 2, 3)))
    assert [(each["limit"], each["last_minute"]["events"]) for each in answers] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("query", "key", "shown"),
    [
        (f"maxMessageSizeBytes={'9' * 20}", "maxMessageSizeBytes", 2**63 - 1),
        (f"limit={'9' * 20}", "limit", 2**63 - 1),
        (f"until={'9' * 20}", "until", "9999-12-31T23:59:59.999999Z"),
    ],
)
async def test_numbers_beyond_json_are_cut(query: str, key: str, shown: object, service: Service) -> None:
    assert (await explained(service, query))[key] == shown
