"""`jetstream serve --edges`: processes that are killed, frozen or wrong, and 1,000 connections."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.builders import commit, like
from tests.edges import QUICK, alive, ended_by, serving
from tests.relay import Relay, numbered
from tests.serving import PATIENCE_S, connected, figures, get, process, until
from tests.subscriber import Event, subscribe
from websockets.exceptions import ConnectionClosed

from jetstream.supervisor.supervisor import Supervisor


@pytest.fixture
async def relay() -> object:
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


async def test_nothing_is_lost_or_repeated_whichever_process_is_killed(relay: Relay, tmp_path: Path) -> None:
    relay.publish(frames(1, 50))
    async with serving(relay, tmp_path, upstream_cursor=0) as server:
        followers = [Follower(server.ports[0]) for _ in range(8)]
        tasks = [asyncio.create_task(each.run()) for each in followers]
        seq = 50
        for victim in (server.edges[0], server.ingest, server.edges[1], server.ingest, server.edges[0]):
            await until(lambda seq=seq: all(len(each.events) >= seq for each in followers))
            relay.publish(frames(seq + 1, seq + 50))
            await ended_by(victim, signal.SIGKILL)
            seq += 50
        await until(lambda: all(len(each.events) >= seq for each in followers))
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


async def test_a_second_signal_ends_all_at_once(relay: Relay, tmp_path: Path) -> None:
    async with process(relay.url, tmp_path, "--edges", "1", "--drain", "1000s") as server:
        _, text = await get(server.port, "/status.json")
        pids = [each["pid"] for each in json.loads(text)["processes"]]
        async with subscribe(server.port):
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
    async with serving(relay, tmp_path, edges=edges) as server, AsyncExitStack() as stack:
        port = server.ports[0]

        async def connect(count: int) -> None:
            for _ in range(count):
                sock = await connected(port)
                stack.callback(sock.close)

        def loads() -> dict[int, int]:
            return {number: load.total for number, load in server.acceptor.loads.items()}

        await connect(1_000)
        await until(lambda: sum(loads().values()) == 1_000)
        assert max(loads().values()) <= 1.2 * 1_000 / edges
        lost = loads()[1]
        await asyncio.gather(ended_by(server.edges[0], signal.SIGKILL), connect(lost))
        await until(lambda: sum(loads().values()) == 1_000)
        assert max(loads().values()) <= 1.2 * 1_000 / edges, loads()


async def test_limits_hold_for_all_edges_together(relay: Relay, tmp_path: Path) -> None:
    limits = replace(QUICK, supervisor=replace(QUICK.supervisor, share_every_s=0.001))
    async with serving(
        relay, tmp_path, limits, max_subscribers=5, address_connections=8, address_exempt=()
    ) as server:
        port, codes = server.ports[0], Counter[str]()
        async with AsyncExitStack() as stack:
            for _ in range(10):
                sock = await connected(port)
                stack.callback(sock.close)
                loop = asyncio.get_running_loop()
                upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                await loop.sock_sendall(sock, f"GET /subscribe HTTP/1.1\r\nHost: a\r\n{upgrade}{key}".encode())
                answer = await loop.sock_recv(sock, 4096)
                codes[answer.split(b" ")[1].decode()] += 1
                await asyncio.sleep(0.05)  # longer than the others take to know it
        assert codes == {"101": 5, "503": 3, "429": 2}


async def test_an_edge_that_ends_again_and_again_ends_the_server(relay: Relay, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"edge-1 has ended 2 times within 30 s; the last time: it was ended by"):
        limits = replace(QUICK, supervisor=replace(QUICK.supervisor, ends_max=2))
        async with serving(relay, tmp_path, limits) as server:
            await ended_by(server.edges[0], signal.SIGKILL)
            assert server.edges[0].pid is not None
            os.kill(server.edges[0].pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE_S):
                while server.ingest.channel is not None:  # noqa: ASYNC110 - until all have ended
                    await asyncio.sleep(0.01)


async def test_a_replaced_edge_knows_the_lists_and_counters_do_not_fall(relay: Relay, tmp_path: Path) -> None:
    async with serving(relay, tmp_path, edges=1) as server:
        port = server.ports[0]
        async with subscribe(port):
            before = await figures(port)
        await ended_by(server.edges[0], signal.SIGTERM)  # it leaves by itself
        after = await figures(port)
        name = 'jetstream_disconnects_total{reason="client"}'
        assert after[name] == before[name] + 1
        assert not isinstance(server, Supervisor) or server.edges[0].ends["died"] == 1
