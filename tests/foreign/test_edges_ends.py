"""`jetstream serve --edges`: processes that are killed, frozen or wrong, and 1,000 connections."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.builders import commit, like
from tests.edges import QUICK, alive, ended_by, serving
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, PATIENCE_S, connected, figures, get, process, until
from tests.subscriber import Event, subscribe
from tests.tls import certificate
from websockets.exceptions import ConnectionClosed

from jetstream.limits import WebLimits
from jetstream.settings import parse_networks
from jetstream.supervisor.channel import ChannelMessage
from jetstream.supervisor.failures import ProcessFailed
from jetstream.supervisor.supervisor import Supervisor
from jetstream.supervisor.view import SNAPSHOT


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


def frames(first: int, last: int) -> list[tuple[int, bytes]]:
    return numbered([commit(seq, [like(seq)]) for seq in range(first, last + 1)])


class Follower:
    """A client that connects again with its cursor whenever its connection ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.events: list[Event] = []
        self.pauses_s: list[float] = []  # from the end of a connection to the next one

    async def run(self) -> None:
        """Read until cancelled."""
        loop, lost_at = asyncio.get_running_loop(), None
        while True:
            cursor = self.events[-1]["time_us"] + 1 if self.events else 1
            try:
                async with subscribe(self._port, cursor=cursor) as subscriber:
                    if lost_at is not None:
                        self.pauses_s.append(loop.time() - lost_at)
                    while True:
                        self.events.append(await subscriber.event())
            except (ConnectionClosed, OSError, EOFError):
                lost_at = loop.time()
            except TimeoutError:
                continue


def have_read(followers: list[Follower], events: int) -> bool:
    return all(len(each.events) >= events for each in followers)


async def test_nothing_is_lost_or_repeated_whichever_process_is_killed(relay: Relay, tmp_path: Path) -> None:
    relay.publish(frames(1, 50))
    async with serving(relay, tmp_path, upstream_cursor=0) as server:
        followers = [Follower(server.ports[0]) for _ in range(8)]
        tasks = [asyncio.create_task(each.run()) for each in followers]
        seq = 50
        for victim in (server.edges[0], server.ingest, server.edges[1], server.ingest, server.edges[0]):
            await until(partial(have_read, followers, seq))
            relay.publish(frames(seq + 1, seq + 50))
            await ended_by(victim, signal.SIGKILL)
            seq += 50
        await until(partial(have_read, followers, seq))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for each in followers:
        rkeys = [event["commit"]["rkey"] for event in each.events]
        assert rkeys == [op.path.split("/")[1] for op in map(like, range(1, seq + 1))]
        times = [event["time_us"] for event in each.events]
        assert times == sorted(set(times))
        assert all(event == first for event, first in zip(each.events, followers[0].events, strict=True))
    pauses = sorted(pause for each in followers for pause in each.pauses_s)
    assert pauses
    print("pauses of clients, s:", [round(each, 2) for each in pauses])  # noqa: T201 - a figure


async def test_a_frozen_process_is_killed_and_replaced(relay: Relay, tmp_path: Path) -> None:
    limits = replace(QUICK, supervisor=replace(QUICK.supervisor, heartbeat_s=0.1, hang_s=1.0))
    relay.publish(frames(1, 3))
    async with serving(relay, tmp_path, limits, upstream_cursor=0) as server:
        for victim in (server.edges[0], server.ingest):
            await ended_by(victim, signal.SIGSTOP)
            assert victim.ends == {"died": 0, "hung": 1}
        async with subscribe(server.ports[0], cursor=1) as subscriber:
            await subscriber.events(3)
            relay.publish(frames(4, 5))
            await subscriber.events(2)


async def test_no_process_outlives_the_supervisor(relay: Relay, tmp_path: Path) -> None:
    async with process(relay.url, tmp_path, "--edges", "2") as server:
        _, text = await get(server.port, "/status.json")
        pids = [each["pid"] for each in json.loads(text)["processes"]]
        assert len(pids) == 3
        os.kill(pids[1], signal.SIGSTOP)  # one is frozen
        server.signal(signal.SIGKILL)
        await server.process.wait()
        await until(lambda: not any(map(alive, pids)))


async def test_signals_stop_all_in_order_and_lines_name_their_process(relay: Relay, tmp_path: Path) -> None:
    relay.publish(frames(1, 3))
    async with process(relay.url, tmp_path, "--edges", "2", "--upstream-cursor", "0") as server:
        async with subscribe(server.port, cursor=1) as subscriber:
            await subscriber.events(3)
            server.signal(signal.SIGTERM)
            code, _ = await subscriber.ended()
        assert code == 1001
        assert await server.ended() == 0
    stopped = [line.get("process") for line in server.log if line["event"] == "stopped"]
    assert sorted(map(str, stopped[:2])) == ["edge-1", "edge-2"]
    assert stopped[2:] == ["ingest", None]


async def test_a_signal_to_all_processes_stops_them_as_one_to_the_first_does(
    relay: Relay, tmp_path: Path
) -> None:
    """As from a service manager, or a process group. The ingest ends while the edges drain."""
    async with process(relay.url, tmp_path, "--edges", "2", "--drain", "1s") as server:
        _, text = await get(server.port, "/status.json")
        pids = [each["pid"] for each in json.loads(text)["processes"]]
        async with subscribe(server.port) as subscriber:
            server.signal(signal.SIGTERM)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            assert (await subscriber.ended())[0] == 1001
        assert await server.ended() == 0
    stopped = [str(line.get("process")) for line in server.log if line["event"] == "stopped"]
    assert sorted(stopped) == ["None", "edge-1", "edge-2", "ingest"]
    assert [line for line in server.log if line["level"] == "error"] == []


async def test_a_second_signal_ends_all_at_once(relay: Relay, tmp_path: Path) -> None:
    async with process(relay.url, tmp_path, "--edges", "1", "--drain", "1000s") as server:
        _, text = await get(server.port, "/status.json")
        pids = [each["pid"] for each in json.loads(text)["processes"]]
        with await connected(server.port) as silent:  # it does not answer the close, which is waited for
            assert await asked(silent, UPGRADE) == "101"
            server.signal(signal.SIGTERM)
            await server.says("stopping")
            assert (await get(server.port, "/ready"))[0] == 503
            server.signal(signal.SIGTERM)
            assert await server.ended() == -signal.SIGTERM
        await until(lambda: not any(map(alive, pids)))


def serve(*flags: str) -> tuple[int, str]:
    """Run a server that cannot start; return its exit code, and the last line that it writes."""
    ended = subprocess.run(
        [sys.executable, "-m", "jetstream", "serve", "--upstream", "127.0.0.1:1", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("JETSTREAM_")},
    )
    return ended.returncode, ended.stderr.splitlines()[-1]


def bad_flags(tmp_path: Path, port: int) -> Iterator[list[str]]:
    file = tmp_path / "file"
    file.write_text("no token")
    data = ["--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    yield ["--data-dir", str(tmp_path / "data"), "--listen", f"127.0.0.1:{port}"]
    yield [*data, "--data-dir", str(file)]
    yield [*data, "--tls-cert", str(tmp_path / "none")]
    yield [*data, "--subscriber-tokens", str(file)]
    yield [*data, "--upstream", "none"]


async def test_what_cannot_be_used_is_refused_in_the_same_words_as_by_one_process(tmp_path: Path) -> None:
    listening = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with listening:
        for flags in bad_flags(tmp_path, listening.sockets[0].getsockname()[1]):
            one = await asyncio.to_thread(serve, *flags)
            several = await asyncio.to_thread(serve, *flags, "--edges", "2")
            assert several == one
            assert one[0] == 2, one


async def test_a_log_that_is_locked_is_refused(relay: Relay, tmp_path: Path) -> None:
    flags = ["--data-dir", str(tmp_path), "--listen", "127.0.0.1:0"]
    async with process(relay.url, tmp_path):
        one = await asyncio.to_thread(serve, *flags)
        several = await asyncio.to_thread(serve, *flags, "--edges", "2")
    assert several == one
    assert one[0] == 1


@pytest.mark.parametrize("edges", [2, 4])
async def test_a_thousand_connections_are_spread_evenly_also_after_one_edge_was_replaced(
    edges: int, relay: Relay, tmp_path: Path
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Connections may say nothing for as long as it takes, and wait for an edge as long as that starts.
    limits = replace(
        QUICK,
        web=WebLimits(request_timeout_s=1_000.0),
        supervisor=replace(QUICK.supervisor, hold_s=1_000.0),
    )
    async with serving(relay, tmp_path, limits, edges=edges) as server, AsyncExitStack() as stack:

        async def connect(count: int) -> None:
            for _ in range(count):
                sock = await connected(server.ports[0])
                stack.callback(sock.close)

        def loads() -> list[int]:
            return [load.total for load in server.acceptor.loads.values()]

        await connect(1_000)
        await until(lambda: sum(loads()) == 1_000)
        # What an edge has not taken goes to others when it is killed, and is not lost.
        await until(lambda: not any(load.untaken for load in server.acceptor.loads.values()))
        assert max(loads()) <= 1.2 * 1_000 / edges
        lost = loads()[0]
        ending = asyncio.create_task(ended_by(server.edges[0], signal.SIGKILL))
        await until(lambda: not server.acceptor.loads[1].ready)  # as its clients notice it
        await connect(lost)
        await ending
        await until(lambda: sum(loads()) == 1_000)
        assert max(loads()) <= 1.2 * 1_000 / edges, loads()


async def told(server: Supervisor, connections: int, subscribers: int) -> None:
    """Return once every edge knows of so many."""
    await until(lambda: sum(each.open for each in server.acceptor.loads.values()) == connections)
    await until(lambda: sum(server._shared._subscribers.values()) == subscribers)
    await until(lambda: server._sharing is None)
    for edge in server.edges:  # messages are taken in order
        await edge.ask(ChannelMessage(SNAPSHOT), PATIENCE_S)


UPGRADE = (
    b"GET /subscribe HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def asked(sock: socket.socket, request: bytes) -> str:
    """Send a request; return the status of its response."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request)
    return (await loop.sock_recv(sock, 4096)).split(b" ")[1].decode()


async def test_limits_hold_for_all_edges_together(relay: Relay, tmp_path: Path) -> None:
    limited: dict[str, Any] = {"max_subscribers": 5, "address_connections": 8, "address_exempt": ()}
    async with serving(relay, tmp_path, **limited) as server, AsyncExitStack() as stack:
        codes = []
        for count in range(10):
            sock = await connected(server.ports[0])
            stack.callback(sock.close)
            codes.append(await asked(sock, UPGRADE))
            if count < 8:
                await told(server, count + 1, min(count + 1, 5))
        assert codes == ["101"] * 5 + ["503"] * 3 + ["429"] * 2


async def test_an_address_is_what_a_proxy_says_and_counts_at_all_edges(relay: Relay, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "proxy_protocol": True,
        "trusted_proxies": parse_networks("127.0.0.1"),
        "address_connections": 3,
    }
    async with serving(relay, tmp_path, **settings) as server, AsyncExitStack() as stack:
        codes = []
        for count in range(4):
            sock = await connected(server.ports[0])
            stack.callback(sock.close)
            codes.append(await asked(sock, b"PROXY TCP4 203.0.113.9 127.0.0.1 4000 6008\r\n" + UPGRADE))
            if count < 3:
                await told(server, count + 1, count + 1)
        assert codes == ["101"] * 3 + ["429"]


async def test_handshakes_of_tls_are_made_at_the_edges(relay: Relay, tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    async with serving(relay, tmp_path, tls_cert=pem) as server, AsyncExitStack() as stack:
        for _ in range(2):  # connections that stay
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=pem))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            async with session.get(f"https://127.0.0.1:{server.ports[0]}/health") as response:
                assert response.status == 200
        assert sorted(server.acceptor.passed.values()) == [1, 1]


async def test_a_hangup_has_every_process_read_its_files_again(relay: Relay, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("alice:alice-alice-alice\n")
    async with process(relay.url, tmp_path, "--edges", "2", "--subscriber-tokens", str(file)) as server:

        async def statuses(token: str) -> list[str]:
            """Return what both edges answer: connections stay open, so they are spread."""
            request = UPGRADE.replace(b"Host: a", f"Host: a\r\nAuthorization: Bearer {token}".encode())
            async with AsyncExitStack() as stack:
                socks = [stack.enter_context(await connected(server.port)) for _ in range(2)]
                return [await asked(sock, request) for sock in socks]

        assert await statuses("alice-alice-alice") == ["101", "101"]
        file.write_text("bob:bob-bob-bob-bob-bob\n")
        server.signal(signal.SIGHUP)
        for place in ("ingest", "edge-1", "edge-2"):
            await until(partial(has_read, server.log, place))
        assert await statuses("alice-alice-alice") == ["401", "401"]
        assert await statuses("bob-bob-bob-bob-bob") == ["101", "101"]


def has_read(lines: list[dict[str, Any]], place: str) -> bool:
    return any(
        line["event"].startswith("tokens: the file was read again") and line.get("process") == place
        for line in lines
    )


async def test_metrics_may_have_a_port_of_their_own(relay: Relay, tmp_path: Path) -> None:
    async with serving(relay, tmp_path, metrics_listen=LOOPBACK) as server:
        port, metrics_port = server.ports
        assert (await figures(metrics_port))['jetstream_process_ready{process="edge-2"}'] == 1
        assert (await get(metrics_port, "/health"))[0] == 404
        assert (await get(port, "/metrics"))[0] == 404


async def test_an_edge_that_ends_again_and_again_ends_the_server(relay: Relay, tmp_path: Path) -> None:
    limits = replace(QUICK, supervisor=replace(QUICK.supervisor, ends_max=2))
    problem = r"edge-1 has ended 2 times within 30 s; the last time: it was ended by SIGKILL"
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(relay, tmp_path, limits))
        await ended_by(server.edges[0], signal.SIGKILL)
        assert server.edges[0].pid is not None
        os.kill(server.edges[0].pid, signal.SIGKILL)
        await until(lambda: server.ingest.channel is None)  # all have ended
        with pytest.raises(ProcessFailed, match=problem):
            await stack.aclose()


async def test_a_replaced_edge_knows_the_lists_and_nothing_that_was_counted_is_lost(
    relay: Relay, tmp_path: Path
) -> None:
    did = "did:plc:" + "a" * 24
    async with serving(relay, tmp_path, edges=1) as server, aiohttp.ClientSession() as session:
        port = server.ports[0]
        async with session.post(f"http://127.0.0.1:{port}/filters", data=did) as response:
            list_id = (await response.json())["id"]
        async with subscribe(port):
            before = await figures(port)
        await ended_by(server.edges[0], signal.SIGTERM)  # it leaves by itself
        after = await figures(port)
        name = 'jetstream_disconnects_total{reason="client"}'
        assert after[name] == before[name] + 1
        assert server.edges[0].ends["died"] == 1
        async with subscribe(port, filter=list_id):  # refused if it were not known
            pass
