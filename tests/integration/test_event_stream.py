"""`/events`: lines and Server-Sent Events over HTTP, on real sockets, and with real programs."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from tests.builders import LIKE, commit, create, identity
from tests.event_streams import EventStream, event_stream, times
from tests.fixtures import captured_frames
from tests.programs import program
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, figures, get, health, published, running, until
from tests.subscriber import PATIENCE_S, subscribe

from jetstream.app import Service
from jetstream.limits import DeliveryLimits, Limits, WebLimits
from jetstream.settings import Settings
from jetstream.web.subscribe import FAILED

ROOT = Path(__file__).resolve().parents[2]
POST = "app.bsky.feed.post"
BODIES = [False, True]  # lines, Server-Sent Events
CODINGS = ["", "gzip", "zstd"]
EVERY_BODY = [(sse, coding) for sse in BODIES for coding in CODINGS]
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}
# Looked at so often that a test need not wait.
WATCHED = DeliveryLimits(watch_interval_s=0.01, ping_interval_s=0.02)


def identities(first: int, stop: int) -> list[tuple[int, bytes]]:
    return [(seq, identity(seq)) for seq in range(first, stop)]


def large(first: int, stop: int) -> list[tuple[int, bytes]]:
    """Return events of 100 kB each, which do not compress well."""
    noise = Random(1)

    def text() -> str:
        return b64encode(noise.randbytes(75_000)).decode()

    return [(n, commit(n, [create(f"{LIKE}/{n}", {"text": text()})])) for n in range(first, stop)]


async def seqs(stream: EventStream, count: int) -> list[int]:
    return [json.loads(message)["identity"]["seq"] for message in await stream.messages(count)]


async def texts(service: Service, count: int, wire: str) -> list[str]:
    """Return the events as a WebSocket gets them."""
    query: dict[str, Any] = {"cursor": 0} if wire == "v2" else {"cursor": 1, "wire": wire}
    path = "/xrpc/network.bsky.jetstream.subscribeEvents" if wire == "v2" else "/subscribe"
    async with subscribe(service.port, path, **query) as subscriber, asyncio.timeout(PATIENCE_S):
        found = [await subscriber.connection.recv() for _ in range(count)]
    return [message for message in found if isinstance(message, str)]


async def first(stream: EventStream, count: int) -> list[str]:
    """Return the first events; heartbeats, which are the reader's own, are left out."""
    found = [message async for message in _events(stream, count)]
    assert len(found) == count
    return found


async def _events(stream: EventStream, count: int) -> AsyncIterator[str]:
    while count and (message := await stream.message()) is not None:
        if "Heartbeat" not in message:
            count -= 1
            yield message


# All events


@pytest.mark.parametrize("wire", ["classic", "v1", "v2"])
async def test_real_events_are_the_same_bytes_as_over_a_websocket(
    wire: str, relay: Relay, start: Start
) -> None:
    """Live and replayed, as lines and as Server-Sent Events, with each content coding."""
    service = await start(upstream_cursor=0)
    async with AsyncExitStack() as streams:

        async def opened(**query: Any) -> list[EventStream]:
            return [
                await streams.enter_async_context(
                    event_stream(service.port, sse=sse, coding=coding, wire=wire, **query)
                )
                for sse, coding in EVERY_BODY
            ]

        live = await opened()
        relay.publish(numbered(captured_frames()))
        await until(lambda: service.log.statistics().events >= 92)
        expected = await texts(service, 92, wire)
        replayed = await opened(cursor="1")
        for (sse, coding), one, other in zip(EVERY_BODY, live, replayed, strict=True):
            assert one.headers.get("content-encoding", "") == coding
            assert await first(one, 92) == expected, (sse, coding, "live")
            assert await first(other, 92) == expected, (sse, coding, "replayed")


async def test_ids_are_positions_and_a_client_resumes_behind_the_last(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 21))
    service = await start(upstream_cursor=0)
    await published(service, 20)
    async with event_stream(service.port, sse=True, cursor=1) as stream:
        first = [await stream.event() for _ in range(10)]
        assert stream.sse.retry_ms == 2000
    events = [event for event in first if event is not None]
    assert [int(event.id) for event in events] == times([event.data for event in events])
    # An `EventSource` comes back with the URL that it had, cursor and all.
    headers = {"Last-Event-ID": events[-1].id}
    async with event_stream(service.port, sse=True, headers=headers, cursor=1) as stream:
        assert await seqs(stream, 10) == list(range(11, 21))


async def test_a_browser_loses_and_repeats_nothing_across_restarts(relay: Relay, tmp_path: Path) -> None:
    """As an `EventSource` does: the same URL again, with the last ID."""
    found, last = list[int](), ""
    for first in (1, 11, 21):
        relay.publish(identities(first, first + 5))
        cursor = 0 if first == 1 else None
        settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=cursor)
        async with running(Service(settings)) as service:
            headers = {"Last-Event-ID": last} if last else {}
            async with event_stream(service.port, sse=True, headers=headers, cursor=1) as stream:
                relay.publish(identities(first + 5, first + 10))
                await published(service, first + 9)
                service.stop()
                while (event := await stream.event()) is not None and event.type == "message":
                    found.append(json.loads(event.data)["identity"]["seq"])
                    last = event.id
    assert found == list(range(1, 31))


async def test_filters_and_sizes_are_those_of_a_subscription(relay: Relay, start: Start) -> None:
    posts = [create(f"{POST}/{n}", {"text": "x" * (2_000 if n == 2 else 20)}) for n in range(4)]
    relay.publish(numbered([commit(1, [create(f"{LIKE}/1", {}), *posts]), identity(2)]))
    service = await start(upstream_cursor=0)
    await published(service, 2)
    query: dict[str, Any] = {
        "wantedCollections": POST,
        "maxMessageSizeBytes": 700,
        "wire": "classic",
        "cursor": 1,
    }
    async with event_stream(service.port, **query) as stream:
        found = [json.loads(message) for message in await stream.messages(4)]
    assert [event["type"] for event in found] == ["com", "com", "com", "id"]


# Real programs


@pytest.mark.parametrize("flags", [[], ["--compressed"]])
async def test_curl_and_jq_show_a_post_as_soon_as_it_is_stored(
    flags: list[str], relay: Relay, start: Start
) -> None:
    if not (shutil.which("curl") and shutil.which("jq")):
        pytest.skip("curl or jq is not installed")
    service = await start(upstream_cursor=0)
    url = f"http://localhost:{service.port}/events?wantedCollections={POST}"
    command = f"curl -sN {' '.join(flags)} '{url}' | jq --unbuffered -c .commit.record"
    async with program("sh", "-c", command) as showing:
        await until(lambda: len(service.delivery))
        for seq in range(1, 4):
            relay.publish([(seq, commit(seq, [create(f"{POST}/{seq}", {"text": f"post {seq}"})]))])
            assert json.loads(await showing.line())["text"] == f"post {seq}"
    await until(lambda: not len(service.delivery))


@pytest.mark.parametrize("flags", [[], ["--compressed"]])
async def test_curl_knows_whether_the_body_was_complete(flags: list[str], relay: Relay, start: Start) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    relay.publish(identities(1, 11))
    service = await start(upstream_cursor=0)
    await published(service, 10)
    url = f"http://localhost:{service.port}/events?cursor=1&limit=10"
    async with program("curl", "-sN", *flags, url) as curl:
        code, out, _ = await curl.ended()
    assert (code, [json.loads(line)["identity"]["seq"] for line in out.splitlines()]) == (
        0,
        list(range(1, 11)),
    )


@pytest.mark.parametrize("flags", [[], ["--compressed"]])
async def test_curl_exits_with_18_when_the_server_fails(flags: list[str], relay: Relay, start: Start) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    service = await start(upstream_cursor=0)
    async with program("curl", "-sN", *flags, f"http://localhost:{service.port}/events") as curl:
        await until(lambda: len(service.delivery))
        relay.publish(identities(1, 2))
        assert json.loads(await curl.line())["identity"]["seq"] == 1
        service.subscribe.close_all(FAILED)
        assert await curl.ended() == (18, "", "")


async def test_aiohttp_reads_events_of_every_size(relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(1, [create(f"{LIKE}/1", {"text": "x" * 980_000})]), identity(2)]))
    service = await start(upstream_cursor=0)
    await published(service, 2)
    url = f"http://127.0.0.1:{service.port}/events?cursor=1&limit=2"
    async with aiohttp.ClientSession() as session, session.get(url, read_bufsize=1 << 20) as response:
        assert response.headers["Content-Encoding"] in {"gzip", "zstd"}
        found = [json.loads(line)["kind"] async for line in response.content]
    assert found == ["commit", "identity"]


async def test_a_page_in_node_reads_it_with_fetch(relay: Relay, start: Start) -> None:
    if not shutil.which("node"):
        pytest.skip("Node is not installed")
    relay.publish(identities(1, 4))
    service = await start(upstream_cursor=0)
    await published(service, 3)
    code = (
        f"const r = await fetch('http://localhost:{service.port}/events?cursor=1&limit=3');"
        "let t = ''; for await (const c of r.body.pipeThrough(new TextDecoderStream())) t += c;"
        "console.log(t.trim().split('\\n').map(l => JSON.parse(l).identity.seq).join())"
    )
    async with program("node", "--input-type=module", "-e", code) as node:
        assert await node.line() == "1,2,3\n"


# The end


@pytest.mark.parametrize(("sse", "coding"), EVERY_BODY)
async def test_a_server_that_stops_ends_the_body(sse: bool, coding: str, relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 3))
    service = await start(upstream_cursor=0)
    await published(service, 2)
    async with event_stream(service.port, sse=sse, coding=coding, cursor=1) as stream:
        last_us = times(await stream.messages(2))[-1]
        service.stop()
        if sse:
            event = await stream.event()
            assert event is not None
            assert event.type == "close"
            assert json.loads(event.data) == {
                "code": 1001,
                "reason": f"the server is shutting down: connect again; cursor={last_us + 1}",
            }
        assert await stream.message() is None
        assert stream.complete


@pytest.mark.parametrize(("sse", "coding"), EVERY_BODY)
async def test_a_slow_reader_finds_its_body_incomplete(
    sse: bool, coding: str, relay: Relay, start: Start
) -> None:
    limits = Limits(delivery=WATCHED, web=WebLimits(close_timeout_s=0.1))
    service = await start(upstream_cursor=0, limits=limits, subscriber_buffer=100_000, slow_timeout=0.3)
    async with event_stream(service.port, sse=sse, coding=coding, receive_buffer=4096) as stream:
        relay.publish(large(1, 100))
        await until(lambda: not len(service.subscribe))
        messages = await stream.rest()
    assert len(messages) < 99
    assert not stream.complete
    assert (await figures(service.port))['jetstream_disconnects_total{reason="slow"}'] == 1


async def test_a_bounded_replay_ends_with_a_complete_body(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 31))
    service = await start(upstream_cursor=0)
    await published(service, 30)
    async with event_stream(service.port, sse=True, cursor=1, limit=7) as stream:
        assert await seqs(stream, 7) == list(range(1, 8))
        event = await stream.event()
        assert event is not None
        assert (event.type, json.loads(event.data)["code"]) == ("close", 1000)
        assert await stream.event() is None
        assert stream.complete
        last_us = int(event.id)
    headers = {"Last-Event-ID": str(last_us)}
    async with event_stream(service.port, sse=True, headers=headers, cursor=1, until=last_us) as stream:
        assert stream.status == 204
    # A live stream with an `until`, that was cut before it: the client comes back later for the rest.
    async with event_stream(service.port, sse=True, headers=headers, until=last_us + 1_000_000) as stream:
        assert await seqs(stream, 1) == [8]


async def test_a_client_that_leaves_is_forgotten(relay: Relay, start: Start) -> None:
    service = await start()
    async with event_stream(service.port), event_stream(service.port, coding="gzip"):
        await until(lambda: len(service.delivery) == 2)
        found = await figures(service.port)
        assert found['jetstream_subscribers{wire="v1"}'] == 2
        assert found['jetstream_event_streams{coding="gzip"}'] == 1
        assert (await health(service.port))[1]["subscribers"] == 2
    await until(lambda: not len(service.subscribe))
    found = await figures(service.port)
    assert found['jetstream_subscribers{wire="v1"}'] == 0
    assert found['jetstream_event_streams{coding="gzip"}'] == 0
    assert found['jetstream_disconnects_total{reason="client"}'] == 2


# Quiet streams


@pytest.mark.parametrize(("sse", "coding"), EVERY_BODY)
async def test_something_is_sent_while_nothing_happens(
    sse: bool, coding: str, relay: Relay, start: Start
) -> None:
    service = await start(upstream_cursor=0, limits=Limits(delivery=WATCHED))
    async with event_stream(service.port, sse=sse, coding=coding) as stream:
        pieces = b""
        while pieces.count(b":\n\n" if sse else b" ") < 3:
            piece = await stream.piece()
            assert piece is not None
            pieces += piece
        relay.publish(identities(1, 3))
        assert await seqs(stream, 2) == [1, 2]


@pytest.mark.parametrize("coding", CODINGS)
async def test_heartbeats_have_an_id_to_resume_at(coding: str, relay: Relay, start: Start) -> None:
    service = await start(upstream_cursor=0)
    async with event_stream(service.port, sse=True, coding=coding, heartbeat=1) as stream:
        event = await stream.event()
        assert event is not None
        beat = json.loads(event.data)
        assert (beat["kind"], str(beat["time_us"])) == ("heartbeat", event.id)


# HTTP


async def test_http_1_0_gets_no_chunks(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 3))
    service = await start(upstream_cursor=0)
    await published(service, 2)
    for coding in CODINGS:
        async with event_stream(service.port, version="1.0", coding=coding, cursor=1, limit=2) as stream:
            assert stream.headers["connection"] == "close"
            assert "transfer-encoding" not in stream.headers
            assert await seqs(stream, 2) == [1, 2]
            assert await stream.piece() in {None, b""}


async def test_head_is_answered_and_takes_no_place(start: Start) -> None:
    service = await start(max_subscribers=1)
    for _ in range(3):
        async with event_stream(service.port, method="HEAD") as stream:
            assert (stream.status, stream.headers["content-type"]) == (200, "application/x-ndjson")
            assert await stream._reader.read() == b""
    assert not len(service.subscribe)
    async with event_stream(service.port, method="HEAD", cursor="x") as stream:
        assert stream.status == 400


async def test_other_sites_may_read_it(start: Start) -> None:
    service = await start()
    async with event_stream(service.port, method="OPTIONS", headers={"Origin": "https://x"}) as stream:
        assert stream.status == 200
        assert stream.headers["access-control-allow-origin"] == "*"
        assert stream.headers["access-control-allow-headers"] == "*, Authorization"
    async with event_stream(service.port) as stream:
        assert stream.headers["access-control-allow-origin"] == "*"


async def test_the_head_tells_the_wire_and_the_positions(relay: Relay, start: Start) -> None:
    relay.publish(identities(1, 3))
    service = await start(upstream_cursor=0)
    await published(service, 2)
    async with event_stream(service.port, cursor=1, wire="classic") as stream:
        found = stream.headers
        assert found["jetstream-wire"] == "classic"
        assert found["jetstream-oldest"] == found["jetstream-cursor"] < found["jetstream-latest"]


@pytest.mark.parametrize(
    "after",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"\0" * 1_000_000,
    ],
)
async def test_what_follows_the_request_is_never_answered(after: bytes, relay: Relay, start: Start) -> None:
    service = await start(upstream_cursor=0)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n" + after)
    stream = EventStream(reader, await reader.readuntil(b"\r\n\r\n"))
    await until(lambda: len(service.delivery))
    writer.write(after)
    relay.publish(identities(1, 11))
    assert await seqs(stream, 10) == list(range(1, 11))
    writer.close()
    await until(lambda: not len(service.subscribe))


async def test_a_body_is_refused(start: Start) -> None:
    service = await start()
    for field in ({"Content-Length": "5"}, {"Transfer-Encoding": "chunked"}):
        async with event_stream(service.port, headers=field) as stream:
            assert stream.status == 413


async def test_a_flood_behind_the_request_ends_the_stream(start: Start) -> None:
    service = await start(limits=Limits(web=WebLimits(lingering_bytes_max=64 << 10, close_timeout_s=0.1)))
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
    stream = EventStream(reader, await reader.readuntil(b"\r\n\r\n"))
    (client,) = service.subscribe._clients
    writer.write(b"x" * 30_000_000)
    event = await stream.event()
    assert event is not None
    assert json.loads(event.data)["reason"].startswith("flood: ")
    assert not stream.complete
    await until(lambda: not len(service.subscribe))
    assert client.sink._discarded < 1 << 20
    writer.close()
    assert (await figures(service.port))['jetstream_disconnects_total{reason="flood"}'] == 1


# Refusals


async def test_a_refusal_is_one_sentence(start: Start) -> None:
    service = await start(max_subscribers=1)
    for query, sentence in (
        ("?cursor=x", "cursor: 'x' "),
        ("?wantedCollections=x", "wantedCollections: 'x' "),
        ("?compress=true", "compress: 'true' is for WebSockets"),
        ("?wire=v3", "wire: 'v3' is not a wire here: there are classic, v1 and v2"),
    ):
        status, text = await get(service.port, f"/events{query}")
        assert (status, text.count("\n")) == (400, 1)
        assert text.startswith(sentence), text
    async with event_stream(service.port), event_stream(service.port) as second:
        assert second.status == 503
        assert second.headers["retry-after"] == "10"
    async with event_stream(service.port, headers=UPGRADE) as stream:
        assert stream.status == 400
    seen = await figures(service.port)
    assert seen['jetstream_refused_total{reason="parameter"}'] == 4
    assert seen['jetstream_refused_total{reason="full"}'] == 1
    assert seen['jetstream_refused_total{reason="transport"}'] == 1


async def test_all_subscribers_share_one_limit(start: Start) -> None:
    service = await start(max_subscribers=2)
    async with subscribe(service.port), event_stream(service.port):
        async with event_stream(service.port) as third:
            assert third.status == 503
        assert (await get(service.port, "/subscribe"))[0] == 426


async def test_a_404_and_a_426_name_it(start: Start) -> None:
    service = await start()
    assert "/events" in (await get(service.port, "/nothing"))[1]
    for path in ("/subscribe", "/v1/subscribe"):
        status, text = await get(service.port, path)
        assert (status, re.search(r"http://\S+/events;", text) is not None) == (426, True)
    assert f"http://127.0.0.1:{service.port}/events" in (await get(service.port, "/"))[1]


async def test_compressors_are_limited(relay: Relay, start: Start) -> None:
    limits = replace(Limits(), web=WebLimits(compressed_streams_max=1))
    service = await start(upstream_cursor=0, limits=limits)
    async with (
        event_stream(service.port, coding="gzip") as first,
        event_stream(service.port, coding="gzip") as second,
        event_stream(service.port, coding="gzip, identity;q=0") as third,
    ):
        assert first.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in second.headers
        assert third.status == 503
        relay.publish(identities(1, 3))
        assert await seqs(first, 2) == await seqs(second, 2) == [1, 2]
    await until(lambda: not len(service.subscribe))
    async with event_stream(service.port, coding="gzip") as stream:
        assert stream.headers["content-encoding"] == "gzip"
