"""A real Go server as the upstream: its events get positions here, each once, whatever is restarted."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.foreign.clients import go
from tests.foreign.test_edge_kills import RATE, recording
from tests.foreign.test_mirror_kills import free_port
from tests.programs import program, simulated_relay
from tests.serving import Process, figures, process
from tests.subscriber import subscribe

from jetstream.upstreams import parse_url

__all__ = ["recording"]

FIRST_EVENTS = 2_000


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    """The Go server of October 2025, which has the v1 wire."""
    build = go("server", "github.com/bluesky-social/jetstream/cmd/jetstream")
    return build(tmp_path_factory.mktemp("go-server"))[0]


@asynccontextmanager
async def serving(
    server: str | Path, relay: str, port: int, directory: Path, **more: str
) -> AsyncIterator[None]:
    """Run the Go server until it is killed."""
    flags = {
        "ws-url": parse_url(relay),
        "data-dir": directory,
        "listen-addr": f"127.0.0.1:{port}",
        "metrics-listen-addr": f"127.0.0.1:{free_port()}",
        "liveness-ttl": "1h",
    }
    more = {name.replace("_", "-"): value for name, value in more.items()}
    command = [f"--{name}={value}" for name, value in (flags | more).items()]
    async with program(server, *command, stdout=asyncio.subprocess.DEVNULL):
        await accepting(port)
        yield


async def accepting(port: int) -> None:
    """Return once a port accepts connections."""
    async with asyncio.timeout(30):
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    return
            await asyncio.sleep(0.05)


async def received(server: Process, count: int) -> list[dict[str, Any]]:
    """Return the oldest events, once there are so many."""
    async with subscribe(server.port, "/v1/subscribe", cursor=0) as subscriber, asyncio.timeout(120):
        return [json.loads(await subscriber.connection.recv()) for _ in range(count)]


async def test_the_events_of_a_go_server_are_taken_each_once(
    tmp_path: Path, server: str | Path, recording: tuple[Path, list[Any]]
) -> None:
    frames, truth = recording
    port, data = free_port(), tmp_path / "ours"
    upstream = f"jetstream+ws://127.0.0.1:{port}"
    go_data = tmp_path / "go"
    go_data.mkdir()
    with simulated_relay("--replay", frames, "--rate", str(RATE)) as relay:
        async with serving(server, relay, port, go_data, override_relay_cursor="0"):
            async with process(upstream, data, "--upstream-cursor", "0", "--forget", "none") as ours:
                await ours.says("upstream: events get positions of this server")
                await received(ours, FIRST_EVENTS)
                ours.signal(signal.SIGKILL)
            async with process(upstream, data, "--forget", "none") as ours:
                events = await received(ours, FIRST_EVENTS * 2)
                seen = await figures(ours.port)
        async with serving(server, relay, port, go_data), process(upstream, data, "--forget", "none") as ours:
            events = await received(ours, len(truth))
    times = [event.pop("time_us") for event in events]
    assert times == sorted(set(times))
    assert events == truth
    assert seen['jetstream_dropped_total{reason="repeat"}'] > 0
