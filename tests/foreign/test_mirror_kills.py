"""A server, its mirror, and a mirror of that one, killed at any moment: nothing lost, nothing twice.

Clients change between all three with nothing but their cursor. `MIRROR_KILLS=100 pytest
tests/foreign/test_mirror_kills.py` goes on for longer, with another `MIRROR_SEED`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.foreign.test_edge_kills import recording, roam
from tests.programs import simulated_relay
from tests.serving import Process, process
from tests.subscriber import subscribe

from jetstream.upstreams import SUBSCRIBE_EVENTS_PATH

__all__ = ["recording"]

KILLS = int(os.environ.get("MIRROR_KILLS", "10"))
SEED = int(os.environ.get("MIRROR_SEED", "1"))
RATE = 1_000
CLIENTS = 8
SERVERS = 3


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Servers:
    """A server and mirrors, each of the one before it. One that was killed starts again at its port."""

    def __init__(self, relay: str, directory: Path) -> None:
        self._directory = directory
        self._ports = [free_port() for _ in range(SERVERS)]
        self._upstreams = [relay, *(f"jetstream+ws://127.0.0.1:{port}" for port in self._ports)]
        self._stacks: dict[int, AsyncExitStack] = {}
        self.running: dict[int, Process] = {}

    async def start(self, number: int) -> None:
        stack = self._stacks[number] = AsyncExitStack()
        server = process(
            self._upstreams[number],
            self._directory / f"data{number}",
            *("--forget", "none"),
            listen=f"127.0.0.1:{self._ports[number]}",
        )
        self.running[number] = await stack.enter_async_context(server)

    async def kill(self, number: int) -> None:
        server = self.running.pop(number)
        server.signal(signal.SIGKILL)
        await self._stacks.pop(number).aclose()

    @property
    def edges(self) -> list[Process]:
        """Where clients may be."""
        return list(self.running.values())

    async def close(self) -> None:
        for stack in self._stacks.values():
            await stack.aclose()


@asynccontextmanager
async def started(relay: str, directory: Path) -> AsyncIterator[Servers]:
    servers = Servers(relay, directory)
    try:
        for number in range(SERVERS):
            await servers.start(number)
        yield servers
    finally:
        await servers.close()


async def disturb(servers: Servers, dice: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(dice.uniform(0.2, 0.8))
        number = dice.randrange(SERVERS)
        await servers.kill(number)
        await asyncio.sleep(dice.uniform(0.0, 0.5))
        await servers.start(number)


async def messages(server: Process, count: int) -> list[str]:
    """Return the oldest messages of the v2 wire, as they come."""
    async with subscribe(server.port, SUBSCRIBE_EVENTS_PATH, cursor=0) as subscriber, asyncio.timeout(60):
        return [str(await subscriber.connection.recv()) for _ in range(count)]


async def test_killed_mirrors_lose_and_repeat_nothing(
    tmp_path: Path, recording: tuple[Path, list[Any]]
) -> None:
    frames, truth = recording
    dice = random.Random(SEED)
    with simulated_relay("--replay", frames, "--rate", str(RATE)) as relay:
        async with started(relay, tmp_path) as servers, asyncio.timeout(300):
            clients = [roam(servers, random.Random(SEED + n), len(truth)) for n in range(CLIENTS)]
            disturbing = asyncio.create_task(disturb(servers, dice))
            received = await asyncio.gather(*clients)
            await disturbing
            of_each = [await messages(server, len(truth)) for server in servers.edges]
    for events in received:
        times = [event.pop("time_us") for event in events]
        assert times == sorted(set(times))
        assert events == truth
    assert of_each[1:] == of_each[:-1]


async def test_a_mirror_with_edges_of_its_own(tmp_path: Path, recording: tuple[Path, list[Any]]) -> None:
    frames, truth = recording
    with simulated_relay("--replay", frames, "--rate", str(2 * RATE)) as relay:
        port = free_port()
        flags = ("--forget", "none")
        async with (
            process(relay, tmp_path / "above", *flags, listen=f"127.0.0.1:{port}") as above,
            process(f"jetstream+ws://127.0.0.1:{port}", tmp_path / "below", *flags, "--edges", "2") as below,
        ):
            listening = await below.says("listening")
            assert "verify" not in listening
            assert await messages(below, len(truth)) == await messages(above, len(truth))
