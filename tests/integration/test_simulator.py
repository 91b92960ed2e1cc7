"""The simulator over real sockets, read by clients that know nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import libipld
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from jetstream.simulator import check, server
from jetstream.simulator.firehose import LiveFirehose
from jetstream.simulator.stream import Stream
from jetstream.simulator.world import Population, SteadyClock, World
from jetstream.testing import SimulatedNetwork, network, simulated_network

__all__ = ["network"]  # a fixture: pytest finds it here


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def subscribe(network: SimulatedNetwork, cursor: int | None = None) -> connect:
    query = "" if cursor is None else f"?cursor={cursor}"
    return connect(network.firehose_url + query, max_size=None, max_queue=None, compression=None)


async def frames(ws: ClientConnection, count: int) -> list[dict[str, Any]]:
    """Receive frames: each one's body, with its kind under `t`."""
    received = []
    for _ in range(count):
        header, body = libipld.decode_dag_cbor_multi(await ws.recv(decode=False))
        received.append({"t": header.get("t")} | body)
    return received


async def closing(ws: ClientConnection) -> tuple[int | None, list[bytes]]:
    """Read on to the end: the close code, None where there was none, and what came before it."""
    received: list[bytes] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            received.append(bytes(await ws.recv(decode=False)))
    return ws.close_code if ws.close_code != 1006 else None, received


async def test_without_a_cursor_a_subscriber_gets_new_messages(network: SimulatedNetwork) -> None:
    network.emit(5)
    async with subscribe(network) as ws:
        await network.wait_subscribed()
        network.emit(50)
        assert [body["seq"] for body in await frames(ws, 50)] == list(range(6, 56))


async def test_a_cursor_begins_after_it(network: SimulatedNetwork) -> None:
    network.emit(20)
    async with subscribe(network, 0) as all_of_it, subscribe(network, 15) as the_rest:
        assert [body["seq"] for body in await frames(all_of_it, 20)] == list(range(1, 21))
        assert [body["seq"] for body in await frames(the_rest, 5)] == list(range(16, 21))
        network.emit(1)
        assert (await frames(all_of_it, 1)) == (await frames(the_rest, 1))


async def test_a_cursor_in_the_future_is_refused_with_an_error_frame(network: SimulatedNetwork) -> None:
    network.emit(3)
    async with subscribe(network, 4) as ws:
        code, (error,) = await closing(ws)
    header, body = libipld.decode_dag_cbor_multi(error)
    assert (code, header, body["error"]) == (1008, {"op": -1}, "FutureCursor")


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "9" * 17])
async def test_a_cursor_that_is_not_a_number_is_refused_before_the_upgrade(
    network: SimulatedNetwork, http: aiohttp.ClientSession, cursor: str
) -> None:
    async with http.get(f"{network.url}{server.SUBSCRIBE}?cursor={cursor}") as answer:
        body = await answer.json()
    assert (answer.status, body["error"]) == (400, "InvalidRequest")
    assert cursor in body["message"]


@contextlib.asynccontextmanager
async def small_window() -> AsyncIterator[tuple[LiveFirehose, str]]:
    """Serve a firehose that remembers 100 frames."""
    world = World(Population(repos=5, records=5), 1, SteadyClock(1_767_225_600_000_000, 2500))
    firehose = LiveFirehose(Stream(world, window=100))
    async with server.serving(server.build(firehose, [])) as port:
        yield firehose, f"ws://{server.HOST}:{port}{server.SUBSCRIBE}"


def speak(firehose: LiveFirehose, count: int) -> None:
    for _ in range(count):
        firehose.stream.advance()
    firehose.publish()


async def test_a_cursor_older_than_the_window_is_told_so_and_gets_the_whole_window() -> None:
    async with small_window() as (firehose, url):
        speak(firehose, 1000)
        async with connect(f"{url}?cursor=5") as ws:
            (info,) = await frames(ws, 1)
            assert (info["t"], info["name"]) == ("#info", "OutdatedCursor")
            held = firehose.stream.end - firehose.stream.first
            numbers = [body["seq"] for body in await frames(ws, held)]
        assert numbers == list(range(1001 - held, 1001))


async def test_a_reader_that_the_window_overtakes_is_cut_off() -> None:
    async with small_window() as (firehose, url), connect(url, max_queue=1, max_size=None) as ws:
        await firehose.wait_subscribed()
        for _ in range(10):  # 50 MB, more than the buffers of a socket hold
            firehose.stream.inject("oversized")
        speak(firehose, 1)
        await asyncio.sleep(0)
        speak(firehose, 300)
        code, received = await closing(ws)
    header, body = libipld.decode_dag_cbor_multi(received[-1])
    assert (code, header, body["error"]) == (1008, {"op": -1}, "ConsumerTooSlow")
    assert len(received) < 100


async def test_pings_are_answered_and_messages_of_clients_ignored(network: SimulatedNetwork) -> None:
    async with subscribe(network) as ws:
        await network.wait_subscribed()
        await ws.send("hello")
        await ws.send(b"\xff")
        await (await ws.ping())
        network.emit(1)
        assert len(await frames(ws, 1)) == 1


async def test_a_dropped_connection_ends_without_a_close_frame_and_can_be_resumed(
    network: SimulatedNetwork,
) -> None:
    async with subscribe(network) as ws:
        await network.wait_subscribed()
        network.emit(3, faults=["drop"])
        code, received = await closing(ws)
    last = libipld.decode_dag_cbor_multi(received[-1])[1]["seq"]
    assert (code, last) == (None, 1)
    async with subscribe(network, last) as ws:
        assert [body["seq"] for body in await frames(ws, 2)] == [2, 3]


async def test_an_error_frame_is_the_last_frame(network: SimulatedNetwork) -> None:
    async with subscribe(network) as ws:
        await network.wait_subscribed()
        network.emit(3, faults=["error_frame"])
        code, received = await closing(ws)
    assert (code, len(received), libipld.decode_dag_cbor_multi(received[-1])[0]) == (1008, 2, {"op": -1})


async def test_a_stalled_connection_is_silent_and_others_are_not(network: SimulatedNetwork) -> None:
    async with subscribe(network) as stalled:
        await network.wait_subscribed()
        network.emit(1, faults=["stall"])
        await frames(stalled, 1)
        pong = asyncio.ensure_future(await stalled.ping())
        async with subscribe(network) as other:
            await network.wait_subscribed()
            network.emit(1)
            await frames(other, 1)
            await (await other.ping())
        assert not pong.done()
        stalled.transport.abort()


async def test_all_subscribers_get_the_same_bytes(network: SimulatedNetwork) -> None:
    async with contextlib.AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(subscribe(network)) for _ in range(5)]
        await network.wait_subscribed(5)
        network.emit(100)
        received = [[await ws.recv() for _ in range(100)] for ws in readers]
    assert all(each == received[0] for each in received)


async def test_at_rate_zero_the_world_waits_for_its_slowest_subscriber(network: SimulatedNetwork) -> None:
    network.resume(rate=0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert network.seq == 0  # nobody listens
    async with subscribe(network) as ws:
        numbers = [body["seq"] for body in await frames(ws, 1000)]
    network.pause()
    assert numbers == list(range(1, 1001))


async def test_a_paused_network_is_silent_and_continues_where_it_was(network: SimulatedNetwork) -> None:
    async with subscribe(network) as ws:
        await network.wait_subscribed()
        network.resume(rate=1000)
        await frames(ws, 20)
        network.pause()
        await network.wait_written()
        last = network.seq
        network.emit(1)
        bodies = await frames(ws, last + 1 - 20)
        assert bodies[-1]["seq"] == last + 1


async def test_a_network_that_stops_sends_a_close_frame_and_may_be_served_again() -> None:
    network = simulated_network()
    async with network.serving():
        ws = await subscribe(network)
        await network.wait_subscribed()
        network.emit(2)
        await frames(ws, 2)
        closed = asyncio.create_task(closing(ws))
    assert await closed == (1001, [])
    async with network.serving(), subscribe(network, 1) as ws:
        assert [body["seq"] for body in await frames(ws, 1)] == [2]


async def test_the_directory_has_every_account_and_no_other(
    network: SimulatedNetwork, http: aiohttp.ClientSession
) -> None:
    for did in network.world.all_accounts:
        async with http.get(f"{network.url}/{did}") as answer:
            document = await answer.json(content_type="application/did+ld+json")
        assert document["id"] == did
        assert document["service"][0]["serviceEndpoint"] == network.url
    async with http.get(f"{network.url}/did:plc:{'a' * 24}") as answer:
        assert answer.status == 404


async def test_the_directory_has_the_key_that_signed(
    network: SimulatedNetwork, http: aiohttp.ClientSession
) -> None:
    async with subscribe(network) as ws:
        await network.wait_subscribed()
        network.emit(30)
        commits = [body for body in await frames(ws, 30) if body["t"] == "#commit"]
    assert commits
    for body in commits:
        async with http.get(f"{network.url}/{body['repo']}") as answer:
            document = await answer.json(content_type=None)
        check.check_commit(body, document["verificationMethod"][0]["publicKeyMultibase"])


async def test_a_did_web_is_served_by_its_own_host(http: aiohttp.ClientSession) -> None:
    network = simulated_network(repos=10, records=1, did_web=0.5)
    (did, *_) = [did for did in network.world.all_accounts if did.startswith("did:web:")]
    async with network.serving():
        headers = {"Host": did.removeprefix("did:web:")}
        async with http.get(f"{network.url}/.well-known/did.json", headers=headers) as answer:
            assert (await answer.json(content_type=None))["id"] == did
        async with http.get(f"{network.url}/.well-known/did.json") as answer:
            assert answer.status == 404


@pytest.mark.parametrize(
    ("fault", "status"), [("directory_404", 404), ("directory_429", 429), ("directory_500", 500)]
)
async def test_requests_to_the_directory_can_fail(
    network: SimulatedNetwork, http: aiohttp.ClientSession, fault: str, status: int
) -> None:
    did = next(iter(network.world.all_accounts))
    network.inject(fault)
    statuses = []
    for _ in range(2):
        async with http.get(f"{network.url}/{did}") as answer:
            statuses.append(answer.status)
    assert statuses == [status, 200]
    assert [(line["fault"], line["did"]) for line in network.ledger] == [(fault, did)]


async def test_the_directory_can_be_slow(http: aiohttp.ClientSession) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with simulated_network(sleep=sleep).serving() as network:
        network.inject("directory_slow")
        async with http.get(f"{network.url}/{network.world.accounts[0].did}") as answer:
            assert answer.status == 200
    assert waited == [5.0]


async def get(http: aiohttp.ClientSession, network: SimulatedNetwork, method: str, **query: Any) -> Any:
    async with http.get(f"{network.url}/xrpc/com.atproto.sync.{method}", params=query) as answer:
        body = await answer.json()
        return body if answer.status == 200 else (answer.status, body["error"])


async def test_repositories_are_listed_page_by_page(
    network: SimulatedNetwork, http: aiohttp.ClientSession
) -> None:
    listed: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while page := await get(http, network, "listRepos", limit=7, **cursor):
        listed += page["repos"]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert [entry["did"] for entry in listed] == list(network.world.all_accounts)
    for entry in listed:
        latest = await get(http, network, "getLatestCommit", did=entry["did"])
        assert latest == {"cid": entry["head"], "rev": entry["rev"]}
    assert await get(http, network, "listRepos", limit=0) == (400, "InvalidRequest")


async def test_repositories_are_listed_by_collection(
    network: SimulatedNetwork, http: aiohttp.ClientSession
) -> None:
    did = network.world.accounts[4].did
    network.publish(network.world.create_record(did, "app.test.note", {"text": "hello"}))
    found = await get(http, network, "listReposByCollection", collection="app.test.note")
    assert found == {"repos": [{"did": did}]}
    assert await get(http, network, "listReposByCollection", collection="app.test") == {"repos": []}
    assert await get(http, network, "listReposByCollection") == (400, "InvalidRequest")


async def test_an_inactive_account_has_a_status_and_no_repository(
    network: SimulatedNetwork, http: aiohttp.ClientSession
) -> None:
    did = network.world.accounts[0].did
    assert (await get(http, network, "getRepoStatus", did=did))["active"] is True
    network.publish(*network.world.set_status(did, active=False, status="suspended"))
    assert await get(http, network, "getRepoStatus", did=did) == {
        "did": did,
        "active": False,
        "status": "suspended",
    }
    assert await get(http, network, "getLatestCommit", did=did) == (400, "RepoSuspended")
    assert await get(http, network, "getRepo", did=did) == (400, "RepoSuspended")
    assert await get(http, network, "getRepoStatus", did="did:plc:nobody") == (400, "RepoNotFound")


async def test_the_network_names_itself_as_a_host(
    network: SimulatedNetwork, http: aiohttp.ClientSession
) -> None:
    network.emit(3)
    (host,) = (await get(http, network, "listHosts"))["hosts"]
    assert (host["seq"], host["accountCount"], host["status"]) == (3, 20, "active")


@pytest.mark.parametrize("fault", [None, "repo_redirects"])
async def test_a_repository_is_exported_whole(
    network: SimulatedNetwork, http: aiohttp.ClientSession, fault: str | None
) -> None:
    network.emit(50)
    did = network.world.accounts[0].did
    network.inject(*[fault] if fault else [])
    async with http.get(f"{network.url}/xrpc/com.atproto.sync.getRepo?did={did}") as answer:
        assert len(answer.history) == (1 if fault else 0)
        assert answer.content_type == "application/vnd.ipld.car"
        (root,), blocks = check.read_car(await answer.read())
    repo = network.world.all_accounts[did].repo
    assert repo.head is not None
    assert root == repo.head.cid
    assert set(repo.records.values()) <= set(blocks.values())


async def test_an_export_can_fail(network: SimulatedNetwork, http: aiohttp.ClientSession) -> None:
    network.inject("repo_fails")
    did = network.world.accounts[0].did
    assert await get(http, network, "getRepo", did=did) == (500, "InternalServerError")
