"""`POST /filters` and `filter=<id>`: large lists of DIDs, on every endpoint, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import re
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from tests.builders import LIKE, commit, delete
from tests.relay import Relay, numbered
from tests.serving import Start, get, published, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.errors import InvalidParameter
from jetstream.limits import Limits, RuntimeLimits, WebLimits
from jetstream.model.did_set import DidSet

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
MANY = [f"did:plc:{n}" for n in range(99_999)]


async def upload(port: int, body: str | bytes, **headers: str) -> tuple[int, Any]:
    """Upload a list; return the status, and the JSON or the sentence."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"http://127.0.0.1:{port}/filters",
            data=BytesIO(body.encode() if isinstance(body, str) else body),
            headers=headers,
        ) as response,
    ):
        json = response.content_type == "application/json"
        return response.status, await (response.json() if json else response.text())


@pytest.fixture
async def service(start: Start) -> Service:
    return await start(upstream_cursor=0)


def publish(relay: Relay, seq: int, *dids: str) -> None:
    """Publish a delete of each repo."""
    relay.publish(numbered(commit(seq + n, [delete(f"{LIKE}/a")], repo=did) for n, did in enumerate(dids)))


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe", V2])
async def test_a_subscriber_of_a_list_gets_its_events(path: str, service: Service, relay: Relay) -> None:
    status, made = await upload(service.port, "\n".join([*MANY, "did:plc:last"]))
    assert (status, made["dids"]) == (200, 100_000)
    async with subscribe(service.port, path, filter=made["id"]) as client:
        await until(lambda: len(service.delivery) == 1)
        publish(relay, 1, "did:plc:other", "did:plc:last", "did:plc:0")
        seen = [event.get("payload", event)["did"] for event in await client.events(2)]
    assert seen == ["did:plc:last", "did:plc:0"]


async def test_a_list_and_named_dids_are_one_filter(service: Service, relay: Relay) -> None:
    _, made = await upload(service.port, '["did:plc:a"]')
    query = {"filter": made["id"], "wantedDids": "did:plc:b"}
    publish(relay, 1, "did:plc:c", "did:plc:b", "did:plc:a")
    await published(service, 3)
    async with subscribe(service.port, cursor=1, **query) as client:
        assert [event["did"] for event in await client.events(2)] == ["did:plc:b", "did:plc:a"]


async def test_an_update_selects_a_list(service: Service, relay: Relay) -> None:
    _, made = await upload(service.port, '{"dids":["did:plc:a"]}')
    async with subscribe(service.port, requireHello="true") as client:
        await client.update(filter=made["id"])
        await until(lambda: len(service.delivery) == 1)
        publish(relay, 1, "did:plc:b", "did:plc:a")
        assert (await client.event())["did"] == "did:plc:a"
        await client.update(filter="unknown")
        code, reason = await client.ended()
    assert (code, reason.startswith("filter: 'unknown' is not known here")) == (1008, True)


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe", V2])
async def test_an_unknown_list_is_refused(path: str, service: Service) -> None:
    headers = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    status, text = await get(service.port, f"{path}?filter=abc", **headers)
    assert status == 400
    assert "filter: 'abc' is not known here" in text


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("bob", {}, 400),
        ("", {}, 400),
        (b"x" * ((4 << 20) + 1), {}, 413),
    ],
)
async def test_a_bad_upload_is_refused(
    body: str | bytes, headers: dict[str, str], status: int, service: Service
) -> None:
    assert (await upload(service.port, body, **headers))[0] == status


async def test_an_upload_that_waits_is_told_to_go_on(service: Service) -> None:
    body = b"did:plc:a"
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        b"POST /filters HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    writer.close()


async def test_what_follows_an_upload_is_the_next_request(service: Service) -> None:
    """A body is never taken for a request, nor a request for a body."""
    body = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /filters HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(head + body + b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"400", b"404"]


async def test_it_is_only_written_to(service: Service) -> None:
    status, text = await get(service.port, "/filters")
    assert (status, text) == (405, "/filters is not for GET: use POST\n")


async def test_a_list_is_dropped_although_nobody_asks(start: Start) -> None:
    limits = Limits(
        web=WebLimits(did_lists_kept_s=0.001),
        runtime=RuntimeLimits(watch_every_s=0.001),
    )
    service = await start(limits=limits)
    assert (await upload(service.port, "did:plc:a"))[0] == 200
    await until(lambda: not len(service.subscribe.did_lists))


@pytest.fixture
async def crowded(start: Start) -> Service:
    """Return a server that has room for one list."""
    return await start(limits=Limits(web=WebLimits(did_lists_max=1)))


async def test_a_list_is_in_use_as_long_as_its_subscriber_is_there(crowded: Service) -> None:
    _, made = await upload(crowded.port, "did:plc:a")
    async with subscribe(crowded.port, filter=made["id"]):
        await until(lambda: len(crowded.delivery) == 1)
        assert (await upload(crowded.port, "did:plc:b"))[0] == 503
    await until(lambda: not len(crowded.delivery))
    assert (await upload(crowded.port, "did:plc:b"))[0] == 200


@pytest.mark.usefixtures("only_new_objects")
async def test_a_list_that_an_update_has_replaced_is_not_in_use(crowded: Service) -> None:
    _, made = await upload(crowded.port, "did:plc:replaced\ndid:plc:b")
    async with subscribe(crowded.port, filter=made["id"]) as client:
        await until(lambda: crowded.subscribe.did_lists.bytes_in_use)
        await client.update()
        await until(lambda: not crowded.subscribe.did_lists.bytes_in_use)
        assert (await upload(crowded.port, "did:plc:c"))[0] == 200
        assert not [each for each in gc.get_objects() if type(each) is DidSet and b"did:plc:replaced" in each]


async def test_the_list_of_the_url_is_not_in_use_while_a_hello_is_awaited(crowded: Service) -> None:
    _, made = await upload(crowded.port, "did:plc:a")
    async with subscribe(crowded.port, filter=made["id"], requireHello="true"):
        await until(lambda: len(crowded.subscribe) == 1)
        assert (await upload(crowded.port, "did:plc:b"))[0] == 200


async def test_an_update_may_name_another_list_or_the_same(start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(did_lists_max=2)))
    lists = service.subscribe.did_lists
    first, second = [(await upload(service.port, did))[1]["id"] for did in ("did:plc:a", "did:plc:bb")]
    async with subscribe(service.port, filter=first) as client:
        await until(lambda: lists.bytes_in_use == lists.find(first).size)
        await client.update(filter=second)
        await until(lambda: lists.bytes_in_use == lists.find(second).size)
        await client.update(filter=second, heartbeat=1)
        assert (await client.event())["type"] == "hb"
        assert (await upload(service.port, "did:plc:c"))[0] == 200
        assert lists.find(second).id == second
        with pytest.raises(InvalidParameter):
            lists.find(first)
    await until(lambda: not lists.bytes_in_use)
