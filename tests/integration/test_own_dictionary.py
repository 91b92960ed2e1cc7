"""Our own dictionary: fetched over HTTP, selected on every WebSocket. Real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import zstandard
from tests.builders import LIKE, commit, create
from tests.fixtures import captured_frames
from tests.relay import Relay, numbered
from tests.serving import Start, get, published, until
from tests.subscriber import PATIENCE_S, Subscriber, subscribe
from tests.unit.delivery.framing.test_zstd import DICTIONARY

from jetstream.dictionary.file import ID
from jetstream.dictionary.own import OWN

V2 = "/xrpc/network.bsky.jetstream.subscribeEvents"
PAGES = ["/zstd-dictionary", "/zstd-dictionary/", "/xrpc/network.bsky.jetstream.getZstdDictionary"]
UPGRADE = {"Upgrade": "websocket", "Connection": "upgrade"}
OWN_ID = OWN.dictionary_id


class Fetched(NamedTuple):
    """A response that was read."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]


async def fetched(port: int, path: str = "/zstd-dictionary", method: str = "GET", **headers: str) -> Fetched:
    url = f"http://127.0.0.1:{port}{path}"
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return Fetched(response.status, response.headers, await response.read())


async def read(subscriber: Subscriber, count: int, dictionary: bytes) -> list[Any]:
    """Read the next events as a client does that has fetched a dictionary; without one, they are plain."""
    decompress = zstandard.ZstdDecompressor(zstandard.ZstdCompressionDict(dictionary)).decompress
    events: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(events) < count:
            message = await subscriber.connection.recv()
            assert isinstance(message, bytes) == bool(dictionary)
            event = json.loads(decompress(message) if isinstance(message, bytes) else message)
            if not event.get("payload", {}).get("$type", "").endswith("#info"):  # the heartbeats of v2
                events.append(event)
    return events


# The page


@pytest.mark.parametrize("path", PAGES)
async def test_the_dictionary_is_served_for_ever(path: str, start: Start) -> None:
    service = await start(zstd_dictionary="none")
    got = await fetched(service.port, path)
    assert (got.status, got.body) == (200, OWN.data)
    assert got.headers["Content-Type"] == "application/octet-stream"
    assert got.headers["X-Zstd-Dictionary-Id"] == str(OWN_ID)
    assert "immutable" in got.headers["Cache-Control"]
    head = await fetched(service.port, path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(OWN.data))
    again = await fetched(service.port, path, **{"If-None-Match": got.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")
    assert again.headers["ETag"] == head.headers["ETag"] == got.headers["ETag"]
    other = await fetched(service.port, f"{path}?id=5")
    assert (other.status, other.error) == (404, "DictionaryNotFound")
    bad = await fetched(service.port, f"{path}?id=x")
    assert (bad.status, bad.error) == (400, "InvalidRequest")


async def test_a_connection_goes_on_after_a_304(start: Start) -> None:
    service = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    request = b"GET %b HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n"
    writer.write(request % b"/zstd-dictionary" + request % b"/nothing")
    async with asyncio.timeout(PATIENCE_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 304 ")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    writer.close()


# Subscriptions


@pytest.mark.parametrize("kept", ["none", "auto", "file"])
@pytest.mark.parametrize(
    ("path", "wire"),
    [("/subscribe", "classic"), ("/v1/subscribe", "v1"), ("/subscribe?wire=v1", "v1"), (V2, "v2")],
)
async def test_captured_events_are_the_same_compressed_live_and_replayed(
    path: str, wire: str, kept: str, relay: Relay, start: Start, tmp_path: Path
) -> None:
    if kept == "file":
        (tmp_path / "file").write_bytes(DICTIONARY)
        kept = str(tmp_path / "file")
    pairs = numbered(captured_frames())
    service = await start(upstream_cursor=0, zstd_dictionary=kept)
    dictionary = (await fetched(service.port)).body
    url = f"{path}{'&' if '?' in path else '?'}zstdDictionary={OWN_ID}"
    async with subscribe(service.port, url) as live:
        assert live.connection.response is not None
        assert live.connection.response.headers["Jetstream-Wire"] == wire
        await until(lambda: len(service.delivery) == 1)
        relay.publish(pairs)
        seen = await read(live, 92, dictionary)
        await published(service, pairs[-1][0])
    async with subscribe(service.port, f"{url}&cursor=0") as behind:
        assert await read(behind, 92, dictionary) == seen
    async with subscribe(service.port, f"{url}&cursor=0".replace(f"zstdDictionary={OWN_ID}", "")) as plain:
        assert await read(plain, 92, b"") == seen


@pytest.mark.parametrize("path", ["/subscribe", "/v1/subscribe"])
async def test_an_unknown_id_is_refused_with_the_current_one(path: str, start: Start) -> None:
    service = await start(zstd_dictionary="none")
    for asked in (0, 5, ID, 1 << 40):
        status, text = await get(service.port, f"{path}?zstdDictionary={asked}", **UPGRADE)
        current = f"the current one is {OWN_ID}, at /zstd-dictionary"
        assert status == 400
        assert text == f"zstdDictionary: '{asked}' is not a dictionary here: {current}\n"
    for bad in ("x", "-1", "1.5"):
        status, text = await get(service.port, f"{path}?zstdDictionary={bad}", **UPGRADE)
        assert (status, text[:15]) == (400, "zstdDictionary:")


async def test_an_unknown_id_has_a_name_on_the_v2_wire(start: Start) -> None:
    service = await start()
    got = await fetched(service.port, f"{V2}?zstdDictionary=5", **UPGRADE)
    assert (got.status, got.error) == (400, "UnknownZstdDictionary")
    assert str(OWN_ID) in got.body.decode()


@pytest.mark.parametrize(("query", "headers"), [("compress=true&", {}), ("", {"Socket-Encoding": "zstd"})])
async def test_ours_contradicts_compress(query: str, headers: dict[str, str], start: Start) -> None:
    service = await start()
    path = f"/subscribe?{query}zstdDictionary={OWN_ID}"
    status, text = await get(service.port, path, **UPGRADE, **headers)
    assert status == 400
    assert "leave one of them out" in text


async def test_the_id_of_the_dictionary_of_v1_clients_selects_it(
    relay: Relay, start: Start, tmp_path: Path
) -> None:
    """On the wire of the path: `zstdDictionary` did not come with v1."""
    (tmp_path / "file").write_bytes(DICTIONARY)
    relay.publish(numbered([commit(1, [create(f"{LIKE}/a", {})])]))
    service = await start(upstream_cursor=0, zstd_dictionary=str(tmp_path / "file"))
    for more, key in (("", "type"), ("&compress=true", "kind"), ("&compress=false", "kind")):
        path = f"/subscribe?cursor=1&zstdDictionary=40000{more}"
        async with subscribe(service.port, path) as subscriber:
            [event] = await read(subscriber, 1, DICTIONARY)
        assert key in event


async def test_an_empty_id_is_plain_json(relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(1, [create(f"{LIKE}/a", {})])]))
    service = await start(upstream_cursor=0)
    async with subscribe(service.port, zstdDictionary="", cursor=1) as plain:
        assert (await plain.event())["type"] == "com"
