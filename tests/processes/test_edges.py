"""`jetstream serve --edges 2`: real processes. tests/foreign/test_edges_ends.py has those that end."""

from __future__ import annotations

import json
import signal
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
from tests.builders import commit, like
from tests.edges import QUICK, ended_by, serving
from tests.relay import Relay, numbered
from tests.serving import connected, figures, get, until
from tests.subscriber import Subscriber, subscribe
from websockets.exceptions import ConnectionClosed

from jetstream.limits import WebLimits
from jetstream.supervisor.supervisor import Supervisor
from jetstream.token_bucket import Rate
from jetstream.web.openapi_parts import SCHEMAS

# What is asked for before the last three requests of each kind, and two of those.
LIMITS = replace(
    QUICK,
    web=WebLimits(explanations=Rate(1e-9, 6), gap_pages=Rate(1e-9, 2), did_lists_read=Rate(1e-9, 4)),
)


def frames(first: int, last: int) -> list[tuple[int, bytes]]:
    return numbered([commit(seq, [like(seq)]) for seq in range(first, last + 1)])


async def post(port: int, path: str, body: object) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}{path}", data=data) as response,
    ):
        return response.status, await response.text()


async def listed(port: int, query: str = "") -> list[int]:
    _, text = await get(port, f"/subscribers.json{query}")
    return [each["id"] for each in json.loads(text)["subscribers"]]


async def test_whichever_edge_answers_it_answers_for_all(relay: Relay, tmp_path: Path) -> None:
    """One server for all of this: to start three processes takes seconds of CPU time."""
    relay.publish(frames(1, 100))
    settings: dict[str, Any] = {"upstream_cursor": 0, "ready_lag": None}
    async with serving(relay, tmp_path, LIMITS, **settings) as server, AsyncExitStack() as stack:
        port = server.ports[0]
        subscribers = [await stack.enter_async_context(subscribe(port, cursor=1)) for _ in range(6)]
        await _all_read_the_same(subscribers)
        await _figures_are_of_all(port)
        await connections(server, 6)
        with await connected(port):  # the edge that has one more now is not asked
            await connections(server, 7)
            loads, passed = server.acceptor.loads, dict(server.acceptor.passed)
            fewest = min(loads, key=lambda number: loads[number].total)
            await _figures_are_of_all(port)
            assert server.acceptor.passed[fewest] > passed[fewest]
        await _subscribers_are_one_list(port, subscribers)
        await _a_list_is_known_to_all(port)
        await _rates_hold_for_all_together(server, port)
        await _a_killed_edge_loses_nothing(relay, server, port)


async def connections(server: Supervisor, count: int) -> None:
    """Return once the edges have so many connections."""
    await until(lambda: sum(load.total for load in server.acceptor.loads.values()) == count)


async def _all_read_the_same(subscribers: list[Subscriber]) -> None:
    events = [await each.events(100) for each in subscribers]
    assert all(each == events[0] for each in events)


async def _figures_are_of_all(port: int) -> None:
    found = await figures(port)
    assert found['jetstream_subscribers{wire="classic"}'] == 6
    assert found['jetstream_events_total{kind="create"}'] == 100
    assert found['jetstream_messages_sent_total{wire="classic"}'] == 600
    assert found['jetstream_process_ready{process="ingest"}'] == 1
    assert found["jetstream_ready"] == 1
    _, text = await get(port, "/status.json")
    status = json.loads(text)
    jsonschema_rs.validate({**SCHEMAS["Status"], "components": {"schemas": SCHEMAS}}, status)
    assert status["subscribers"]["total"] == 6
    assert status["events"]["total"] == 100
    assert status["out"]["messages_total"] == 600
    assert [each["name"] for each in status["processes"]] == ["ingest", "edge-1", "edge-2"]
    assert [each["subscribers"] for each in status["processes"]] == [0, 3, 3]
    assert [each["role"] for each in status["processes"]] == ["ingest", "edge", "edge"]
    code, text = await get(port, "/health")
    health = json.loads(text)
    assert (code, health["status"], health["subscribers"]) == (200, "ok", 6)
    assert health["upstreams"][0]["state"] == "connected"
    assert (await get(port, "/ready"))[0] == 200
    assert "connected: ws://" in (await get(port, "/"))[1]
    malformed = "application/openmetrics-text; version=x.y"
    code, text = await get(port, "/metrics", Accept=malformed)
    assert (code, text.endswith("# EOF\n")) == (200, True)


async def _subscribers_are_one_list(port: int, subscribers: list[Subscriber]) -> None:
    ids = await listed(port)
    assert len(set(ids)) == 6
    assert ids == sorted(ids)
    first = await listed(port, "?limit=4")
    assert first + await listed(port, f"?limit=4&after={first[-1]}") == ids
    assert await listed(port, f"?after={10**20 - 1}") == []  # no message has such a number
    status, text = await post(port, "/subscribers/kick", {"ids": [ids[0], ids[-1], 7]})
    assert (status, json.loads(text)) == (200, {"kicked": 2, "unknown_ids": [7]})
    assert await listed(port) == ids[1:-1]
    assert json.loads((await post(port, "/subscribers/kick", {"all": True}))[1]) == {
        "kicked": 4,
        "unknown_ids": [],
    }
    assert {(await each.ended())[0] for each in subscribers} == {1008}
    assert await post(port, "/subscribers/kick", {}) == (
        400,
        "body: 'of the request' names nobody: send ids, addresses, or \"all\": true\n",
    )


async def _a_list_is_known_to_all(port: int) -> None:
    did = "did:plc:" + "a" * 24
    status, text = await post(port, "/filters", [did])
    assert status == 200
    list_id = json.loads(text)["id"]
    for _ in range(4):
        code, text = await get(port, f"/explain?filter={list_id}")
        assert (code, json.loads(text)["filter"]["dids"]["some"]) == (200, [did])
    assert (await post(port, "/filters", b"no"))[0] == 400


async def _rates_hold_for_all_together(server: Supervisor, port: int) -> None:
    """With one connection to each edge, which ask in turn."""
    await connections(server, 0)
    async with AsyncExitStack() as stack:
        connectors = [aiohttp.TCPConnector(limit=1) for _ in range(2)]
        clients = [aiohttp.ClientSession(connector=each) for each in connectors]
        sessions = [await stack.enter_async_context(each) for each in clients]
        url = f"http://127.0.0.1:{port}"
        for session in sessions:
            async with session.get(f"{url}/cursors") as response:
                await response.read()
        assert [load.total for load in server.acceptor.loads.values()] == [1, 1]
        for method, path in (("GET", "/explain"), ("GET", "/gaps"), ("POST", "/filters")):
            codes = []
            for session in (*sessions, sessions[0]):
                data = b"did:plc:a" if method == "POST" else None
                async with session.request(method, url + path, data=data) as response:
                    await response.read()
                    codes.append(response.status)
            assert codes == [200, 200, 429], path


async def _a_killed_edge_loses_nothing(relay: Relay, server: Supervisor, port: int) -> None:
    """Its client comes back with its cursor; counters do not fall; a list is still known."""
    await connections(server, 0)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(subscribe(port, cursor=1)) for _ in range(2)]
        before = await figures(port)
        read = [await each.events(100) for each in clients]
        await ended_by(server.edges[0], signal.SIGKILL)
        relay.publish(frames(101, 110))
        lost = 0
        for number, client in enumerate(clients):
            try:
                read[number] += await client.events(10)
            except ConnectionClosed:
                lost += 1
                async with subscribe(port, cursor=read[number][-1]["time_us"] + 1) as again:
                    read[number] += await again.events(10)
        assert lost == 1
        assert read[0] == read[1]
        assert len({each["time_us"] for each in read[0]}) == 110
    after = await figures(port)
    for name, value in before.items():
        if name.endswith("_total"):
            assert after[name] >= value, name
    assert after['jetstream_process_ends_total{cause="died",process="edge-1"}'] == 1
