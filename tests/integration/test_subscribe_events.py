"""`subscribeEvents` over real sockets: the v2 wire, live and replayed, and its own rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
import zstandard
from tests.builders import DID as ALICE
from tests.builders import LIKE, commit, delete, identity, like, sync
from tests.fixtures import captured_frames, json_lines
from tests.relay import Relay, numbered
from tests.serving import Start, figures, published, until
from tests.subscriber import Event, subscribe
from tests.unit.eventlog.trimming import trim
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from jetstream.app import Service
from jetstream.dictionary.own import OWN

NSID = "network.bsky.jetstream."
PATH = f"/xrpc/{NSID}subscribeEvents"
BOB = "did:plc:bobbobbobbobbobbobbobbob"
POST = "app.bsky.feed.post"
FUTURE = 32503680000000000  # the year 3000
# A commit of a like, an identity, a sync, a delete, and a like of Bob's.
FRAMES = [
    (1, commit(1, [like(1)])),
    (2, identity(2)),
    (3, sync(3)),
    (4, commit(4, [delete(f"{POST}/2")])),
    (5, commit(5, [like(3)], repo=BOB)),
]


@pytest.fixture
async def service(relay: Relay, start: Start) -> Service:
    """A server whose log holds the events of `FRAMES`."""
    relay.publish(FRAMES)
    service = await start(upstream_cursor=0)
    await published(service, 5)
    return service


def payloads(events: list[Event]) -> list[dict[str, Any]]:
    assert {event["$type"] for event in events} == {"message"}
    return [event["payload"] for event in events]


def kinds(events: list[Event]) -> list[str]:
    return [payload["$type"].removeprefix(f"{NSID}subscribeEvents#") for payload in payloads(events)]


def decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(OWN.data))


async def refusal(port: int, query: str, **headers: str) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a request that asks for an upgrade and is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(
            f"ws://127.0.0.1:{port}{PATH}?{query}", additional_headers=headers, compression=None, proxy=None
        ):
            pass
    response = caught.value.response
    assert response.headers["Content-Type"] == "application/json"
    assert int(response.headers["Content-Length"]) == len(response.body or b"")
    return response.status_code, json.loads(response.body or b"")


async def test_from_the_oldest_event_it_sends_every_kind(service: Service) -> None:
    async with subscribe(service.port, PATH, cursor=0) as subscriber:
        events = await subscriber.events(5)
        assert subscriber.connection.response is not None
        assert subscriber.connection.response.headers["Jetstream-Wire"] == "v2"
    assert kinds(events) == ["commit", "identity", "sync", "commit", "commit"]
    seqs = [payload["seq"] for payload in payloads(events)]
    assert seqs == sorted(set(seqs))
    assert payloads(events)[2]["sync"]["seq"] == 3


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe"])
async def test_no_other_wire_has_syncs(path: str, service: Service, relay: Relay) -> None:
    async with subscribe(service.port, path, cursor=0) as subscriber:
        replayed = await subscriber.events(4)
        relay.publish([(6, sync(6)), (7, identity(7))])
        live = await subscriber.events(1)
    assert [str(event.get("kind", event.get("type")))[:2] for event in replayed] == ["co", "id", "co", "co"]
    assert live[0]["identity"]["seq"] == 7
    assert (await figures(service.port))['jetstream_events_total{kind="sync"}'] == 2


async def test_captured_events_are_the_same_live_and_replayed(relay: Relay, start: Start) -> None:
    pairs = numbered(captured_frames())
    expected = json_lines("firehose/events.v1.jsonl")
    service = await start(upstream_cursor=0)
    async with subscribe(service.port, PATH) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        relay.publish(pairs)
        live = await subscriber.events(len(expected))
    async with subscribe(service.port, PATH, cursor=0) as subscriber:
        replayed = await subscriber.events(len(expected))
    assert replayed == live
    for payload, v1 in zip(payloads(live), expected, strict=True):
        assert payload["did"] == v1["did"]
        assert {name: payload[name] for name in v1["commit"]} == v1["commit"]
        assert list(payload)[1:] == sorted(list(payload)[1:])


async def test_without_a_cursor_in_the_past_it_begins_with_the_next_event(
    service: Service, relay: Relay
) -> None:
    for seq, query in ((6, {}), (7, {"cursor": ""}), (8, {"cursor": FUTURE})):
        async with subscribe(service.port, PATH, **query) as subscriber:
            relay.publish([(seq, identity(seq))])
            [payload] = payloads(await subscriber.events(1))
            assert payload["identity"]["seq"] == seq


async def test_a_cursor_is_a_seq_and_a_time_and_of_every_wire(service: Service) -> None:
    async with subscribe(service.port, "/subscribe", cursor=0) as subscriber:
        times = [event["time_us"] for event in await subscriber.events(4)]
    async with subscribe(service.port, PATH, cursor=times[1]) as subscriber:
        events = await subscriber.events(4)
    assert payloads(events)[0]["seq"] == times[1]
    assert kinds(events) == ["identity", "sync", "commit", "commit"]


async def test_a_cursor_below_what_is_kept_is_moved_up_with_a_word(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, PATH, cursor=10**15) as subscriber:
        first, *events = payloads(await subscriber.events(6))
    assert (first["name"], "seq" in first) == ("OutdatedCursor", False)
    assert str(events[0]["seq"]) in first["message"]
    await trim(service.log, service.log.tip + 1)
    relay.publish([(6, identity(6))])
    await published(service, 6)
    async with subscribe(service.port, PATH, cursor=events[-1]["seq"]) as subscriber:
        first, event = payloads(await subscriber.events(2))
    assert first["name"] == "OutdatedCursor"
    assert event["identity"]["seq"] == 6


async def test_a_seq_of_another_server_is_refused(service: Service) -> None:
    status, body = await refusal(service.port, "cursor=8669")
    assert (status, body["error"]) == (400, "CursorTooOld")
    assert str(service.log.statistics().oldest_us) in body["message"]


FILTERS = [
    ({"kinds": ["sync"]}, ["sync"]),
    ({"kinds": ["identity", "account"]}, ["identity"]),
    ({"kinds": ["commit"]}, ["commit", "commit", "commit"]),
    ({"kinds": ["commit"], "collections": [POST]}, ["commit"]),
    ({"collections": [LIKE]}, ["commit", "identity", "sync", "commit"]),
    ({"collections": ["app.bsky.graph.*"]}, ["identity", "sync"]),
    ({"dids": [BOB]}, ["commit"]),
    ({"dids": [ALICE], "collections": [LIKE]}, ["commit", "identity", "sync"]),
    ({"kinds": ["commit"], "operations": ["delete"]}, ["commit"]),
    ({"excludeCollections": [LIKE, POST]}, ["identity", "sync"]),
    ({"excludeDids": [ALICE]}, ["commit"]),
    ({"maxMessageSizeBytes": 300}, ["identity"]),
]


@pytest.mark.parametrize(("query", "expected"), FILTERS, ids=[str(query) for query, _ in FILTERS])
async def test_filters_select_the_same_live_and_replayed(
    query: dict[str, Any], expected: list[str], relay: Relay, start: Start
) -> None:
    service = await start(upstream_cursor=0)
    async with subscribe(service.port, PATH, **query) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        relay.publish(FRAMES)
        live = await subscriber.events(len(expected))
    async with subscribe(service.port, PATH, cursor=0, **query) as subscriber:
        replayed = await subscriber.events(len(expected))
    assert kinds(live) == expected
    assert replayed == live


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_heartbeat_says_how_far_the_stream_was_judged(compressed: bool, service: Service) -> None:
    query = {"zstdDictionary": OWN.dictionary_id} if compressed else {}
    read: Callable[[Any], bytes] = decompressor().decompress if compressed else str.encode
    url = f"ws://127.0.0.1:{service.port}{PATH}?{urlencode({**query, 'heartbeat': 1, 'dids': BOB})}"
    async with connect(url, compression=None, proxy=None) as connection, asyncio.timeout(20):
        first, second = [json.loads(read(await connection.recv()))["payload"] for _ in range(2)]
    assert {first["name"], second["name"]} == {"Heartbeat"}
    assert str(service.log.tip) in first["message"]
    assert "live: true" in first["message"]
    assert first == second


async def test_a_client_that_did_not_ask_gets_events_only(service: Service, relay: Relay) -> None:
    async with subscribe(service.port, PATH, cursor=0, heartbeat="") as subscriber:
        await subscriber.events(5)
        relay.publish([(6, identity(6))])
        assert kinds(await subscriber.events(1)) == ["identity"]


async def test_it_ends_where_it_was_told_to(service: Service) -> None:
    async with subscribe(service.port, PATH, cursor=0, limit=2) as subscriber:
        assert kinds(await subscriber.rest()) == ["commit", "identity"]
        assert subscriber.connection.close_code == 1000


async def test_the_subprotocol_is_echoed(service: Service) -> None:
    url = f"ws://127.0.0.1:{service.port}{PATH}"
    offered = [Subprotocol("other"), Subprotocol("xrpc.v1.json")]
    async with connect(url, subprotocols=offered, proxy=None) as connection:
        assert connection.subprotocol == "xrpc.v1.json"
    async with connect(url, subprotocols=offered[:1], proxy=None) as connection:
        assert connection.subprotocol is None


@pytest.mark.parametrize("message", ["{}", b"{}", {"type": "options_update", "payload": {}}, ""])
async def test_a_message_of_the_client_ends_the_connection(message: object, service: Service) -> None:
    async with subscribe(service.port, PATH) as subscriber:
        await subscriber.say(message)
        code, reason = await subscriber.ended()
    assert code == 1008
    assert "takes no messages" in reason
    label = service.metrics.disconnects["unexpected_data"]
    await until(lambda: label._value.get() == 1)


async def test_pings_are_answered(service: Service) -> None:
    async with subscribe(service.port, PATH) as subscriber:
        async with asyncio.timeout(20):
            await (await subscriber.connection.ping())


async def test_the_server_stops_with_1012_here_and_1001_elsewhere(relay: Relay, start: Start) -> None:
    service = await start(upstream_cursor=0)
    async with subscribe(service.port, PATH) as events, subscribe(service.port, "/v1/subscribe") as v1:
        service.stop()
        assert (await events.ended())[0] == 1012
        assert (await v1.ended())[0] == 1001


@pytest.mark.parametrize(
    "query",
    [
        "kinds=",
        "dids=alice.test",
        "collections=app.*",
        "cursor=abc",
        "cursor=%zz",
        "maxMessageSizeBytes=-1",
        "wantedDids=x",
        "compress=true",
        "zstdDictionary=0",
    ],
)
async def test_refusals_are_json(query: str, service: Service) -> None:
    status, body = await refusal(service.port, query)
    assert (status, body["error"]) == (400, "InvalidRequest")
    assert query.partition("=")[0] in body["message"] or "query" in body["message"]


async def test_an_unknown_dictionary_has_a_name_of_its_own(service: Service) -> None:
    status, body = await refusal(service.port, "zstdDictionary=1")
    assert (status, body["error"]) == (400, "UnknownZstdDictionary")


async def test_over_the_limit_clients_are_asked_to_come_back(relay: Relay, start: Start) -> None:
    service = await start(upstream_cursor=0, max_subscribers=1)
    async with subscribe(service.port, PATH):
        with pytest.raises(InvalidStatus) as caught:
            async with subscribe(service.port, PATH):
                pass
    response = caught.value.response
    assert (response.status_code, int(response.headers["Retry-After"]) > 0) == (503, True)
    assert json.loads(response.body or b"")["error"] == "ServiceUnavailable"


async def test_without_an_upgrade_there_is_a_sentence(service: Service) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{service.port}{PATH}") as response,
    ):
        assert (response.status, response.content_type) == (426, "text/plain")
        assert response.headers["Upgrade"] == "websocket"
        assert PATH in await response.text()


async def test_a_body_is_never_the_next_request(service: Service) -> None:
    """Neither that of a method that is not there, nor of one that is only read."""
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for name in ("planSnapshot", "getSegment", "nope"):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        head = f"POST /xrpc/{NSID}{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled)}\r\n\r\n"
        writer.write(head.encode() + smuggled)
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"Connection: close" in answer
        assert b'"error":"Method' in answer
