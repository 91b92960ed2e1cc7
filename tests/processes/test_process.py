"""`jetstream serve` as a process: its signals, its files, a full disk, and kill -9."""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
from tests.builders import commit, identity, like
from tests.full_disk import fill, small_disk
from tests.relay import Relay, numbered
from tests.serving import get, health, process
from tests.subscriber import subscribe


def frames(first: int, last: int) -> list[tuple[int, bytes]]:
    return numbered([commit(seq, [like(seq)]) for seq in range(first, last + 1)])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_closes_subscribers_with_1001_and_ends_it_cleanly(
    number: signal.Signals, relay: Relay, tmp_path: Path
) -> None:
    relay.publish(frames(1, 3))
    async with process(relay.url, tmp_path, "--upstream-cursor", "0") as server:
        async with subscribe(server.port, cursor=1) as subscriber:
            await subscriber.events(3)
            server.signal(number)
            code, reason = await subscriber.ended()
        assert (code, reason.startswith("the server is shutting down: connect again; cursor=")) == (
            1001,
            True,
        )
        assert await server.ended() == 0
        assert server.log[-1]["event"] == "stopped"


async def test_a_second_signal_ends_it_at_once(relay: Relay, tmp_path: Path) -> None:
    relay.publish(frames(1, 3))
    async with process(relay.url, tmp_path, "--upstream-cursor", "0") as server:
        # A client that never answers the close frame: the shutdown would wait for it.
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            key = "dGhlIHNhbXBsZSBub25jZQ=="
            silent.sendall(
                b"GET /subscribe HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % key.encode()
            )
            assert (await asyncio.to_thread(silent.recv, 4096)).startswith(b"HTTP/1.1 101")
            server.signal(signal.SIGTERM)
            await server.says("stopping")
            server.signal(signal.SIGTERM)
            assert await server.ended() == -signal.SIGTERM
        assert server.log[-1]["event"] == "stopping"


async def test_a_kill_while_events_flow_repeats_and_loses_nothing(relay: Relay, tmp_path: Path) -> None:
    for kill in range(3):
        flags = () if kill else ("--upstream-cursor", "0")
        async with process(relay.url, tmp_path, *flags) as server:
            async with subscribe(server.port, cursor=1) as subscriber:
                # Two hundred more come as fast as they can; it dies with only some of them taken.
                relay.publish(frames(200 * kill + 1, 200 * (kill + 1)))
                await subscriber.events(200 * kill + 7)
                server.signal(signal.SIGKILL)
                await subscriber.rest()
            assert await server.ended() == -signal.SIGKILL
    async with process(relay.url, tmp_path) as server, subscribe(server.port, cursor=1) as subscriber:
        events = await subscriber.events(600)
    times = [event["time_us"] for event in events]
    assert times == sorted(set(times))
    assert [event["commit"]["rkey"] for event in events] == [
        op.path.split("/")[1] for op in map(like, range(1, 601))
    ]


async def test_the_limit_of_open_files_is_raised_and_logged(relay: Relay, tmp_path: Path) -> None:
    limits = {resource.RLIMIT_NOFILE: (256, 4096)}
    async with process(relay.url, tmp_path, limits=limits) as server:
        raised = await server.says("raised the limit of open files")
        assert (raised["soft"], raised["hard"]) == (256, 4096)
        short = await server.says("limit of open files is below")
        assert short["limit"] == 4096
        assert short["needed"] > 20_000
        room = re.search(r"there is room for (\d+) subscribers", short["event"])
        assert room is not None
        assert 4_000 < int(room[1]) < 4_096
        for remedy in ("ulimit -Hn 20200", "LimitNOFILE=20200", "--ulimit nofile=20200", "--max-subscribers"):
            assert remedy in short["event"]
        listening = await server.says("listening")
        assert server.log.index(listening) < server.log.index(short)


@pytest.mark.parametrize("flags", [("--max-subscribers", "100"), ("--max-subscribers", "3896")])
async def test_there_is_no_warning_when_all_subscribers_fit(
    relay: Relay, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    limits = {resource.RLIMIT_NOFILE: (4096, 4096)}
    async with process(relay.url, tmp_path, *flags, limits=limits) as server:
        await server.says("upstream: connected")
        assert not [line for line in server.log if "open files" in line["event"]]


async def test_as_many_subscribers_fit_as_the_warning_says(relay: Relay, tmp_path: Path) -> None:
    limits = {resource.RLIMIT_NOFILE: (128, 128)}
    async with process(relay.url, tmp_path, limits=limits) as server:
        said = re.search(r"room for (\d+)", (await server.says("open files is below"))["event"])
        assert said is not None
        assert int(said[1]) > 64
        async with AsyncExitStack() as all_of_them:
            for _ in range(int(said[1])):
                await all_of_them.enter_async_context(subscribe(server.port))
        assert not [line for line in server.log if "cannot accept" in line["event"]]


def test_a_start_that_fails_prints_only_the_reason(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ["--data-dir", str(tmp_path), "--upstream", "ws://127.0.0.1:1", "--listen", listen]
        done = subprocess.run(
            [sys.executable, "-m", "jetstream", "serve", *flags],
            check=False,
            preexec_fn=limit,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert "cannot be listened on" in done.stderr
    assert "open files" not in done.stderr


HANDSHAKE = (
    b"GET /subscribe HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_without_free_files_accepting_pauses_and_continues_later(relay: Relay, tmp_path: Path) -> None:
    relay.publish(frames(1, 3))
    async with process(relay.url, tmp_path, "--upstream-cursor", "0") as server:
        async with subscribe(server.port, cursor=1) as early:
            await early.events(3)
            server.limit(resource.RLIMIT_NOFILE, 60)
            with ExitStack() as crowd:
                for _ in range(80):  # subscribers: silent connections would be closed to make room
                    member = crowd.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                    member.sendall(HANDSHAKE)
                await server.says("cannot accept, pausing")
                # What is left is enough to connect to upstream again, and to read the log.
                await relay.cut()
                relay.publish(frames(4, 6))
                assert [event["commit"]["rkey"] for event in await early.events(3)] == ["4", "5", "6"]
            await server.says("accepting again")
        async with subscribe(server.port, cursor=1) as late:
            assert len(await late.events(6)) == 6


async def test_a_full_disk_holds_upstream_serves_readers_and_recovers_by_itself(
    relay: Relay, tmp_path: Path
) -> None:
    relay.publish(frames(1, 20))
    async with process(relay.url, tmp_path, "--upstream-cursor", "0") as server:
        async with subscribe(server.port, cursor=1) as subscriber:
            before = await subscriber.events(20)
            server.limit(resource.RLIMIT_FSIZE, 0)
            relay.publish(frames(21, 40))
            await server.says("degraded: the log cannot be written")
            status, body = await health(server.port)
            assert status == 503
            assert "cannot be written" in body["status"]
            async with subscribe(server.port, cursor=1) as reader:
                assert await reader.events(20) == before
            server.limit(resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
            await server.says("recovered from: the log cannot be written")
            after = await subscriber.events(20)
            times = [event["time_us"] for event in before + after]
            assert times == sorted(set(times))
            assert len({event["commit"]["rkey"] for event in before + after}) == 40
        assert (await health(server.port))[0] == 200


async def test_a_full_disk_does_not_delay_shutdown(relay: Relay, tmp_path: Path) -> None:
    relay.publish([(seq, identity(seq)) for seq in range(1, 11)])
    async with process(relay.url, tmp_path, "--upstream-cursor", "0") as server:
        async with subscribe(server.port, cursor=1) as subscriber:
            await subscriber.events(10)
            server.limit(resource.RLIMIT_FSIZE, 0)
            relay.publish([(seq, identity(seq)) for seq in range(11, 21)])
            await server.says("degraded: the log cannot be written")
            server.signal(signal.SIGTERM)
            assert (await subscriber.ended())[0] == 1001
        assert await server.ended() == 0
    async with process(relay.url, tmp_path) as server, subscribe(server.port, cursor=1) as subscriber:
        events = await subscriber.events(20)
        assert [event["identity"]["seq"] for event in events] == list(range(1, 21))
        assert (await get(server.port, "/health"))[0] == 200


async def test_a_disk_that_another_program_fills_is_waited_for(relay: Relay, tmp_path: Path) -> None:
    relay.publish(frames(1, 20))
    with small_disk(tmp_path / "disk", "16m") as disk:
        async with process(relay.url, disk / "data", "--upstream-cursor", "0") as server:
            async with subscribe(server.port, cursor=1) as subscriber:
                before = await subscriber.events(20)
                filler = fill(disk)
                relay.publish(frames(21, 2_000))
                await server.says("degraded: the log cannot be written")
                assert (await health(server.port))[0] == 503
                async with subscribe(server.port, cursor=1, queue=2_000) as reader:
                    assert await reader.events(20) == before
                filler.unlink()
                await server.says("recovered from: the log cannot be written")
                assert len(await subscriber.events(1_980)) == 1_980
            assert (await health(server.port))[0] == 200
