"""`/subscribers.json` and `/subscribers/kick`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from tests.builders import identity
from tests.relay import Relay, numbered
from tests.serving import Start, figures, published, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.settings import parse_networks
from jetstream.web.http import Request
from jetstream.web.subscribers import Subscribers

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
PROXY = parse_networks("127.0.0.1")
HERE, THERE = {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "2001:db8::1"}


async def ask(service: Service, path: str = "/subscribers.json", body: object = None) -> tuple[int, Any]:
    """Get a page, or post to it. Returns the status, and what the body says."""
    url = f"http://127.0.0.1:{service.port}{path}"
    async with aiohttp.ClientSession() as session:
        method = session.get(url) if body is None else session.post(url, json=body)
        async with method as response:
            json = response.content_type == "application/json"
            return response.status, await (response.json() if json else response.text())


async def listed(service: Service, path: str = "/subscribers.json") -> Any:
    status, body = await ask(service, path)
    assert status == 200
    return body


async def kicked(service: Service, unknown: Sequence[int] = (), **body: object) -> int:
    status, answer = await ask(service, "/subscribers/kick", body)
    assert status == 200, answer
    assert answer["unknown_ids"] == list(unknown)
    count: int = answer["kicked"]
    return count


async def test_a_list_says_who_is_connected_and_how_far(relay: Relay, start: Start) -> None:
    relay.publish(numbered([identity(seq) for seq in range(1, 6)]))
    service = await start(upstream_cursor=0, trusted_proxies=PROXY)
    await published(service, 5)
    collection = "app.bsky.feed.post"
    async with (
        subscribe(service.port, "/v1/subscribe", headers=HERE, cursor=0) as first,
        subscribe(service.port, V2, collections=collection),
        subscribe(service.port, requireHello="true"),
    ):
        await first.events(5)
        relay.publish(numbered([identity(6), identity(7)]))
        await published(service, 7)
        await first.events(2)
        body = await listed(service)
        assert (body["total"], body["next"]) == (3, None)
        one, other, waiting = body["subscribers"]
        assert one["filter"]["collections"] == []
        assert other["filter"]["collections"] == [collection]
        some = ("id", "address", "token", "wire", "transport", "compression", "state", "messages", "lag_s")
        assert [one[key] for key in some] == [1, "203.0.113.9", None, "v1", "websocket", "none", "live", 7, 0]
        assert [other[key] for key in some[:7]] == [2, "127.0.0.1", None, "v2", "websocket", "none", "live"]
        assert (waiting["state"], waiting["lag_s"], waiting["messages"]) == ("waiting", None, 0)
        assert one["bytes"] > 7 * 100
        assert abs(one["connected_us"] - service._clock()) < 20_000_000
    await until(lambda: not len(service.subscribe))
    assert await listed(service) == {"total": 0, "next": None, "subscribers": []}


@pytest.mark.parametrize(("accept", "transport"), [("*/*", "ndjson"), ("text/event-stream", "sse")])
async def test_an_event_stream_is_in_the_list(accept: str, transport: str, start: Start) -> None:
    service = await start()
    headers = {"Accept": accept, "Accept-Encoding": "gzip"}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{service.port}/events", headers=headers),
    ):
        [row] = (await listed(service))["subscribers"]
        assert (row["transport"], row["compression"]) == (transport, "gzip")


async def test_a_list_comes_in_pages(start: Start) -> None:
    service = await start()
    async with subscribe(service.port), subscribe(service.port), subscribe(service.port):
        page = await listed(service, "/subscribers.json?limit=2")
        assert ([row["id"] for row in page["subscribers"]], page["next"]) == ([1, 2], 2)
        page = await listed(service, "/subscribers.json?limit=2&after=2")
        assert ([row["id"] for row in page["subscribers"]], page["next"]) == ([3], None)
        assert (await ask(service, "/subscribers.json?after=x"))[0] == 400


async def test_messages_are_counted_whether_they_come_live_or_from_the_log(
    relay: Relay, start: Start
) -> None:
    relay.publish(numbered([identity(1)]))
    service = await start(upstream_cursor=0)
    await published(service, 1)
    async with subscribe(service.port, cursor=0) as old, subscribe(service.port) as new:
        await old.event()
        relay.publish(numbered([identity(2)]))
        assert [(await each.event())["identity"]["seq"] for each in (old, new)] == [2, 2]
        await new.update(wantedDids=["did:plc:nobody"])
        await until(
            lambda: any(
                each.subscriber and each.subscriber.options.wanted.dids
                for each in service.subscribe.clients()
            )
        )
        relay.publish(numbered([identity(3)]))
        await old.event()
        await published(service, 3)
        rows = (await listed(service))["subscribers"]
        assert [row["messages"] for row in rows] == [3, 1]


async def test_a_subscriber_is_disconnected_by_its_id(start: Start) -> None:
    service = await start()
    async with subscribe(service.port) as first, subscribe(service.port) as second:
        assert await kicked(service, ids=[1, 99], reason="too many of you", unknown=[99]) == 1
        code, text, _ = await first.ended_at()
        assert (code, text) == (1008, "too many of you")
        await until(lambda: len(service.subscribe) == 1)
        await second.connection.ping()
        assert [row["id"] for row in (await listed(service))["subscribers"]] == [2]
        assert (await figures(service.port))['jetstream_disconnects_total{reason="kicked"}'] == 1


async def test_subscribers_are_disconnected_by_their_address(start: Start) -> None:
    service = await start(trusted_proxies=PROXY)
    async with (
        subscribe(service.port, headers=HERE) as here,
        subscribe(service.port, headers=THERE) as there,
        subscribe(service.port, "/v1/subscribe"),
    ):
        assert await kicked(service, addresses=["203.0.113.0/24", "2001:db8::1"]) == 2
        for each in (here, there):
            code, text, _ = await each.ended_at()
            assert (code, text) == (1008, "the operator of the server has ended this connection")
        assert await kicked(service, all=True) == 1
        assert await kicked(service, all=True) == 0


async def test_an_event_stream_is_disconnected_too(start: Start) -> None:
    service = await start()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{service.port}/events") as response,
    ):
        assert await kicked(service, ids=[1]) == 1
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is not JSON"),
        (b"[1]", "has not only"),
        (b'{"id":1}', "has not only"),
        (b"{}", "names nobody"),
        (b'{"all":false}', "names nobody"),
        (b'{"ids":1}', "has a value that is no list"),
        (b'{"ids":["1"]}', "has a value that is no list"),
        (b'{"ids":[true]}', "has a value that is no list"),
        (b'{"all":1}', "has a value that is no list"),
        (b'{"addresses":["localhost"]}', "is not an address or a network"),
        (b'{"all":true,"reason":""}', "is not a text of up to 100 characters"),
        (b'{"all":true,"reason":"a\\nb"}', "is not a text of up to 100 characters"),
        (b'{"all":true,"reason":7}', "is not a text of up to 100 characters"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.decode()[:30],
)
async def test_a_body_that_cannot_be_used_disconnects_nobody(body: bytes, problem: str, start: Start) -> None:
    service = await start()
    async with (
        subscribe(service.port) as subscriber,
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{service.port}/subscribers/kick", data=body) as response,
    ):
        assert response.status == 400
        assert problem in await response.text()
        await subscriber.connection.ping()


async def test_a_list_of_many_is_made_in_steps(start: Start) -> None:
    service = await start()
    async with subscribe(service.port) as subscriber:
        [client] = service.subscribe.clients()

        class Many:
            delivery = service.delivery

            def __len__(self) -> int:
                return 5_000

            def clients(self) -> list[Any]:
                return [client] * 5_000

            def has(self, _client: object) -> bool:
                return True

        handler: Any = Subscribers(Many(), service._clock)  # type: ignore[arg-type]
        steps = sum(1 for _ in handler.list(Request("GET", "/subscribers.json", "", 1, {}), None))
        assert steps >= 100
        skipped = sum(1 for _ in handler.list(Request("GET", "/", "after=9", 1, {}), None))
        assert skipped >= 50
        await asyncio.sleep(0)
        await subscriber.connection.ping()
