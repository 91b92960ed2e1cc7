"""A real Go server as the upstream: its events get positions here, each once, whatever is restarted."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.foreign.clients import go
from tests.foreign.test_mirror_kills import free_port
from tests.programs import program, simulated_relay
from tests.serving import figures, process
from tests.subscriber import subscribe

from jetstream.upstreams import parse_url

EVENTS = 5_000
RATE = 500
QUIET_S = 5.0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    """The Go server of October 2025, which has the v1 wire."""
    build = go("server", "github.com/bluesky-social/jetstream/cmd/jetstream")
    return build(tmp_path_factory.mktemp("go-server"))[0]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    path = tmp_path / "frames.bin.zst"
    command = [sys.executable, "-m", "jetstream", "simulate", "--no-serve", "--events", str(EVENTS)]
    subprocess.run([*command, "--record", path], check=True, capture_output=True)
    return path


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


async def received(port: int, path: str, count: int | None = None) -> list[dict[str, Any]]:
    """Return the oldest events of a server without their numbers: so many, or all until no more come."""
    events: list[dict[str, Any]] = []
    async with subscribe(port, path, cursor=1, queue=10_000) as subscriber:
        with suppress(TimeoutError):
            while count is None or len(events) < count:
                async with asyncio.timeout(QUIET_S if count is None else 120.0):
                    event = json.loads(await subscriber.connection.recv())
                del event["time_us"]
                events.append(event)
    return events


def each_once(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what a server has sent again."""
    return list({text_of(event): event for event in events}.values())


def text_of(event: dict[str, Any]) -> str:
    """Return an event as text. Go servers have another order of keys in blobs."""
    return json.dumps(event, sort_keys=True)


async def test_the_events_of_a_go_server_are_taken_each_once(
    tmp_path: Path, server: str | Path, frames: Path
) -> None:
    data, go_data = tmp_path / "ours", tmp_path / "go"
    go_data.mkdir()
    port = free_port()
    upstream = f"jetstream+ws://127.0.0.1:{port}"
    with simulated_relay("--replay", frames, "--rate", str(RATE)) as relay:
        async with serving(server, relay, port, go_data, override_relay_cursor="0"):
            async with process(upstream, data, "--upstream-cursor", "0", "--forget", "none") as ours:
                await ours.says("upstream: events get positions of this server")
                await received(ours.port, "/v1/subscribe", EVENTS // 5)
                ours.signal(signal.SIGKILL)
            async with process(upstream, data, "--forget", "none") as ours:
                await received(ours.port, "/v1/subscribe", EVENTS * 2 // 5)
                seen = await figures(ours.port)
        async with serving(server, relay, port, go_data), process(upstream, data, "--forget", "none") as ours:
            theirs = each_once(await received(port, "/subscribe"))
            events = await received(ours.port, "/v1/subscribe")
    assert len(theirs) > EVENTS // 2
    assert len(events) == len(each_once(events))
    assert sorted(map(text_of, events)) == sorted(map(text_of, theirs))
    assert seen['jetstream_dropped_total{reason="repeat"}'] > 0
