"""An ingest and two edges as processes that are killed or frozen at any moment: nothing lost, nothing twice.

Clients change edges with nothing but their cursor. `EDGE_KILLS=100 pytest tests/foreign/test_edge_kills.py`
goes on for longer, with another `EDGE_SEED`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.programs import simulated_relay
from tests.serving import Process, process
from tests.subscriber import subscribe
from websockets.exceptions import ConnectionClosed, InvalidHandshake

KILLS = int(os.environ.get("EDGE_KILLS", "10"))
SEED = int(os.environ.get("EDGE_SEED", "1"))
RATE = 1_000
FROZEN_S = 1.5
CLIENTS = 8
EDGES = 2
FAILURES = (ConnectionClosed, OSError, EOFError, InvalidHandshake, TimeoutError)


@pytest.fixture
def recording(tmp_path: Path) -> tuple[Path, list[Any]]:
    """Frames, and the events that are in them."""
    frames, truth = tmp_path / "frames.bin.zst", tmp_path / "truth.jsonl"
    command = [sys.executable, "-m", "jetstream", "simulate", "--no-serve", "--seed", str(SEED)]
    command += ["--repos", "300", "--records", "5", "--events", str(1_500 * (KILLS + 2))]
    subprocess.run([*command, "--record", frames, "--truth", truth], check=True, capture_output=True)
    return frames, [json.loads(line) for line in truth.read_bytes().splitlines()]


class Roamed(Protocol):
    """Servers among which clients change."""

    @property
    def edges(self) -> list[Process]:
        """Those that run."""


class Servers:
    """An ingest and edges, each of which is started again when it was killed."""

    def __init__(self, upstream: str, directory: Path) -> None:
        self._upstream = upstream
        self._directory = directory
        self._stacks: dict[int, AsyncExitStack] = {}
        self.running: dict[int, Process] = {}

    async def start(self, number: int) -> None:
        """Start the ingest, which is number 0, or an edge."""
        role = "edge" if number else "ingest"
        flags = ["--role", role, "--log", f"sqlite:{self._directory / 'log'}", "--forget", "none"]
        stack = self._stacks[number] = AsyncExitStack()
        server = process(self._upstream, self._directory / f"data{number}", *flags)
        self.running[number] = await stack.enter_async_context(server)

    async def kill(self, number: int) -> None:
        server = self.running.pop(number)
        server.signal(signal.SIGKILL)
        await self._stacks.pop(number).aclose()

    async def freeze(self, number: int) -> None:
        server = self.running[number]
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_S)
        server.signal(signal.SIGCONT)

    @property
    def edges(self) -> list[Process]:
        return [server for number, server in self.running.items() if number]

    async def close(self) -> None:
        for stack in self._stacks.values():
            await stack.aclose()


@asynccontextmanager
async def started(upstream: str, directory: Path) -> AsyncIterator[Servers]:
    servers = Servers(upstream, directory)
    try:
        await asyncio.gather(*map(servers.start, range(EDGES + 1)))
        yield servers
    finally:
        await servers.close()


async def roam(servers: Roamed, dice: random.Random, count: int) -> list[Any]:
    """Read until there are so many events, some at one edge, some at another."""
    events: list[Any] = []
    cursor = 0
    while len(events) < count:
        edges = servers.edges
        with suppress(*FAILURES):
            if not edges:
                raise TimeoutError
            async with subscribe(dice.choice(edges).port, "/v1/subscribe", cursor=cursor) as subscriber:
                try:
                    async with asyncio.timeout(dice.uniform(0.3, 1.0)):
                        while len(events) < count:
                            event = json.loads(await subscriber.connection.recv())
                            events.append(event)
                            cursor = event["time_us"] + 1
                finally:
                    subscriber.connection.transport.abort()
        await asyncio.sleep(0)
    return events


async def disturb(servers: Servers, dice: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(dice.uniform(0.2, 0.8))
        number = dice.randrange(EDGES + 1)
        if dice.random() < 0.25:
            await servers.freeze(number)
        else:
            await servers.kill(number)
            await servers.start(number)


async def test_killed_and_frozen_processes_lose_and_repeat_nothing(
    tmp_path: Path, recording: tuple[Path, list[Any]]
) -> None:
    frames, truth = recording
    dice = random.Random(SEED)
    with simulated_relay("--replay", frames, "--rate", str(RATE)) as upstream:
        async with started(upstream, tmp_path) as servers, asyncio.timeout(300):
            clients = [roam(servers, random.Random(SEED + n), len(truth)) for n in range(CLIENTS)]
            disturbing = asyncio.create_task(disturb(servers, dice))
            received = await asyncio.gather(*clients)
            await disturbing
    for events in received:
        times = [event.pop("time_us") for event in events]
        assert times == sorted(set(times))
        assert events == truth
