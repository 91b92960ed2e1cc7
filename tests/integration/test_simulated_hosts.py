"""Relays, PDSes and the directory of a simulated network over real sockets, and those of a recording."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import libipld
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jetstream.atproto import mst_load, mst_node
from jetstream.atproto.cid import Cid, cid_of
from jetstream.simulator import check, recording, server
from jetstream.simulator.losses import Fate
from jetstream.simulator.network import replay_app
from jetstream.testing import Faults, Relay, SimulatedNetwork, simulated_network


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def bodies(ws: ClientConnection, count: int) -> list[dict[str, Any]]:
    received = [libipld.decode_dag_cbor_multi(await ws.recv(decode=False)) for _ in range(count)]
    return [{"t": header["t"]} | body for header, body in received]


def subscribe(network: SimulatedNetwork, host: str, cursor: int = 0) -> connect:
    return connect(
        f"{network.firehose_urls[host]}?cursor={cursor}", max_size=None, max_queue=None, compression=None
    )


async def get(http: aiohttp.ClientSession, url: str, method: str, **query: Any) -> Any:
    async with http.get(f"{url}/xrpc/com.atproto.sync.{method}", params=query) as answer:
        if answer.content_type != "application/json":
            return await answer.read()
        body = await answer.json()
        return body if answer.status == 200 else (answer.status, body["error"])


async def lines(http: aiohttp.ClientSession, url: str, **query: Any) -> list[dict[str, Any]]:
    async with http.get(f"{url}/export", params=query) as answer:
        assert (answer.status, answer.content_type) == (200, "application/jsonlines")
        return [json.loads(line) for line in (await answer.text()).splitlines()]


async def test_two_readers_of_two_relays_get_different_halves_of_one_world() -> None:
    relays = (Relay(name="a", loss=0.3, seq=500), Relay(name="b", loss=0.3))
    network = simulated_network(relays=relays, disjoint=True)
    async with network.serving(), subscribe(network, "a", 500) as first, subscribe(network, "b") as second:
        await network.wait_subscribed(2)
        network.emit(200)
        sent = [await bodies(first, network.seq - 500), await bodies(second, 50)]
        await network.wait_written()
    assert [body["seq"] for body in sent[0]] == list(range(501, network.seq + 1))
    assert network.missing() == set()
    assert network.missing("a") & network.missing("b") == set()


async def test_frames_come_after_the_lag() -> None:
    network = simulated_network(relays=(Relay(name="a"), Relay(name="b", lag_s=0.3)))
    async with network.serving(), subscribe(network, "a") as prompt, subscribe(network, "b") as late:
        await network.wait_subscribed(2)
        network.emit(5)
        await bodies(prompt, 5)
        with pytest.raises(ConnectionClosed):
            async with subscribe(network, "b", cursor=5) as early:
                await bodies(early, 2)  # an error frame: the relay does not have that number yet
        assert [body["seq"] for body in await bodies(late, 5)] == [1, 2, 3, 4, 5]


async def test_a_relay_that_is_out_ends_its_connections_and_refuses_others_until_it_is_back() -> None:
    network = simulated_network(relays=(Relay(name="a"), Relay(name="b")))
    did = network.world.accounts[0].did

    def write() -> Any:
        return network.world.create_record(did, "app.test.note", {"text": "hello"})

    async with network.serving(), subscribe(network, "a") as prompt, subscribe(network, "b") as broken:
        await network.wait_subscribed(2)
        network.publish(write())
        await bodies(broken, 1)
        network._network.append_to(write(), [Fate.SENT, Fate.OUT])
        network._network.publish()
        with pytest.raises(ConnectionClosed):
            await broken.recv()
        assert broken.close_code == 1006
        with pytest.raises(InvalidStatus, match="503"):
            await subscribe(network, "b")
        network.publish(write())
        async with subscribe(network, "b", cursor=1) as back:
            assert [body["seq"] for body in await bodies(back, 1)] == [2]
        assert [body["seq"] for body in await bodies(prompt, 3)] == [1, 2, 3]
    assert [line["fault"] for line in network.ledger] == ["outage"]


async def test_a_world_as_fast_as_it_is_read_goes_on_while_its_only_relay_is_out() -> None:
    network = simulated_network(relays=(Relay(outage_s=0.5, every_s=0.5),))
    last = 0
    async with network.serving():
        running = asyncio.create_task(network.run(2000))
        while not running.done():
            try:
                async with subscribe(network, "relay", last) as ws:
                    while True:
                        (body,) = await asyncio.wait_for(bodies(ws, 1), 5)
                        assert body["seq"] == last + 1
                        last = body["seq"]
                        if last == network.seq and running.done():
                            break
            except (ConnectionClosed, InvalidStatus):
                await asyncio.sleep(0)
        await running
    assert sum(line["fault"] == "outage" for line in network.ledger) > 50


async def test_each_pds_has_its_accounts_on_a_port_of_its_own(http: aiohttp.ClientSession) -> None:
    network = simulated_network(repos=30, pds=2)
    async with network.serving():
        network.emit(100)
        assert len(set(network.urls.values())) == 3
        owners: dict[str, str] = {}
        for host, url in network.urls.items():
            for entry in (await get(http, url, "listRepos"))["repos"]:
                owners[entry["did"]] = host  # the PDSes come after the relay
        for did, host in owners.items():
            async with http.get(f"{network.url}/{did}") as answer:
                document = await answer.json(content_type=None)
            assert document["service"][0]["serviceEndpoint"] == network.urls[host]
        assert set(owners.values()) == set(network.urls)
        async with subscribe(network, "pds1") as ws:
            (body,) = await bodies(ws, 1)
            assert owners[body.get("repo") or body["did"]] == "pds1"
        of_other_host = next(did for did, host in owners.items() if host == "pds2")
        assert await get(http, network.urls["pds1"], "getRepo", did=of_other_host) == (400, "RepoNotFound")


async def test_a_relay_lists_the_pdses_page_by_page(http: aiohttp.ClientSession) -> None:
    network = simulated_network(repos=30, pds=2)
    async with network.serving():
        (own, *first), cursor = (await get(http, network.url, "listHosts", limit=2)).values()
        (second,) = (await get(http, network.url, "listHosts", limit=2, cursor=cursor))["hosts"]
        named = [f"http://{host['hostname']}" for host in (own, *first, second)]
        assert named == list(network.urls.values())
        assert own["accountCount"] + first[0]["accountCount"] + second["accountCount"] == 30
        (only,) = (await get(http, network.urls["pds2"], "listHosts"))["hosts"]
        assert only == second


async def test_an_account_is_not_served_where_it_is_taken_down(http: aiohttp.ClientSession) -> None:
    network = simulated_network(relays=(Relay(name="a"), Relay(name="b")))
    did = network.world.accounts[0].did
    async with network.serving():
        network.take_down(did, "b")
        assert await get(http, network.urls["b"], "getRepo", did=did) == (400, "RepoTakendown")
        assert (await get(http, network.urls["b"], "getRepoStatus", did=did))["status"] == "takendown"
        assert (await get(http, network.urls["a"], "getRepoStatus", did=did))["active"] is True


async def test_the_export_is_paged_by_number_and_by_time(http: aiohttp.ClientSession) -> None:
    network = simulated_network(rotations=0.2)
    async with network.serving():
        network.emit(100)
        everything = await lines(http, network.url)
        assert len(everything) > 30
        assert "seq" not in everything[0]
        numbered = await lines(http, network.url, after=0)
        assert [entry.pop("seq") for entry in numbered] == list(range(1, len(everything) + 1))
        assert numbered == everything
        assert await lines(http, network.url, after=5, count=3) == [
            entry | {"seq": seq} for seq, entry in enumerate(everything[5:8], 6)
        ]
        after = everything[9]["createdAt"]
        assert await lines(http, network.url, after=after, count=2) == everything[10:12]
        assert await lines(http, network.url, after=everything[-1]["createdAt"]) == []
        for query in ({"count": "0"}, {"count": "x"}, {"after": "yesterday"}, {"after": "9" * 17}):
            async with http.get(f"{network.url}/export", params=query) as answer:
                assert answer.status == 400
                assert (await answer.json())["message"].startswith("Invalid")


async def test_history_verifies_with_the_keys_of_the_audit_log(http: aiohttp.ClientSession) -> None:
    network = simulated_network(rotations=0.1, seed=2)
    async with network.serving():
        network.emit(150)
        async with subscribe(network, "relay") as ws:
            commits = [body for body in await bodies(ws, network.seq) if body["t"] == "#commit"]
        outdated = 0
        for body in commits:
            async with http.get(f"{network.url}/{body['repo']}/log/audit") as answer:
                audit = await answer.json()
            keys = [entry["operation"]["verificationMethods"]["atproto"][8:] for entry in audit]
            signed = [key for key in dict.fromkeys(keys) if _is_signed_by(body, key)]
            assert len(signed) == 1
            outdated += signed != keys[-1:]
        assert outdated > 5
        async with http.get(f"{network.url}/did:plc:{'a' * 24}/log/audit") as answer:
            assert answer.status == 404


def _is_signed_by(body: dict[str, Any], key: str) -> bool:
    try:
        check.check_commit(body, key)
    except check.BadCommitError:
        return False
    return True


@pytest.mark.parametrize(("fault", "status"), [("directory_429", 429), ("directory_500", 500)])
async def test_the_log_can_fail_as_documents_can(
    http: aiohttp.ClientSession, fault: str, status: int
) -> None:
    network = simulated_network()
    did = network.world.accounts[0].did
    async with network.serving():
        for path in ("/export", f"/{did}/log/audit"):
            network.inject(fault)
            async with http.get(network.url + path) as answer:
                assert answer.status == status
            async with http.get(network.url + path) as answer:
                assert answer.status == 200


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, SimulatedNetwork]:
    """Give a recording of a network, and the network itself."""
    network = simulated_network(faults=Faults(truncated_car=0.02, wrong_cid=0.02), pds=1)
    network.emit(300)
    path = tmp_path / "frames.bin.zst"
    stream = network._network.stream
    items, _ = stream.take(stream.first, 10**6)
    with recording.writing(path) as add:
        for item in items:
            add(item.frame)
        add(b"\xff garbage")
    network._network.set_urls(["http://relay.test", "http://pds.test:2583"])
    recording.write_documents(path, network._network.documents())
    return path, network


async def test_a_recording_serves_its_repositories(
    recorded: tuple[Path, SimulatedNetwork], http: aiohttp.ClientSession
) -> None:
    path, network = recorded
    async with server.serving(replay_app(path, 0, in_memory=False)) as port:
        url = f"http://{server.HOST}:{port}"
        repos = (await get(http, url, "listRepos"))["repos"]
        assert {entry["did"] for entry in repos} <= set(network.world.all_accounts)
        assert len(repos) > 15
        newest = 0
        for entry in repos:
            account = network.world.all_accounts[entry["did"]]
            if not entry["active"]:
                continue
            latest = {"cid": entry["head"], "rev": entry["rev"]}
            assert await get(http, url, "getLatestCommit", did=entry["did"]) == latest
            car = await get(http, url, "getRepo", did=entry["did"])
            (root,), blocks = check.read_car(car)
            assert str(root) == entry["head"]
            commit = libipld.decode_dag_cbor(blocks[root])
            assert (commit["did"], commit["rev"]) == (entry["did"], entry["rev"])
            assert isinstance(mst_load.load(blocks, Cid(commit["data"])), mst_node.Node)
            assert all(cid_of(block) == cid for cid, block in blocks.items())
            newest += entry["rev"] == account.repo.rev
        assert newest > 10
        assert await get(http, url, "getRepo", did="did:plc:nobody") == (400, "RepoNotFound")
        hosts = (await get(http, url, "listHosts"))["hosts"]
        assert {host["hostname"] for host in hosts} == {"relay.test", "pds.test:2583"}
        assert {host["seq"] for host in hosts} == {network.seq}


async def test_all_requests_to_a_recording_at_once_are_answered(
    recorded: tuple[Path, SimulatedNetwork], http: aiohttp.ClientSession
) -> None:
    path, _ = recorded
    async with server.serving(replay_app(path, 0, in_memory=True)) as port:
        url = f"http://{server.HOST}:{port}"
        first, *others = await asyncio.gather(*(get(http, url, "listRepos") for _ in range(8)))
        assert all(other == first for other in others)
