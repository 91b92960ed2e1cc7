"""The keeper with small programs in the place of servers. tests/foreign has it with PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jetstream.cluster.cluster import Cluster
from jetstream.cluster.keeper import ENDS_MAX, Keeper
from jetstream.cluster.members import Member
from jetstream.cluster.ports import free_ports

PATIENCE_S = 20.0
# A relay is ready when it takes connections.
LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[2].partition("=")[2]))) as server:
    while True:
        server.accept()
"""


def relay(code: str) -> Member:
    [port] = free_ports(1)
    program = (sys.executable, "-I", "-S", "-c", code)
    return Member("relay", 1, port, {"port": str(port)}, program=program)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster of one process that listens. Nothing runs."""
    async with Cluster([relay(LISTEN)], tmp_path, binaries=tmp_path) as cluster:
        yield cluster


async def told(keeper: Keeper, said: list[str], count: int) -> None:
    """Look until so much was said."""
    async with asyncio.timeout(PATIENCE_S):
        while len(said) < count:
            keeper.look()
            await asyncio.sleep(0.005)


async def test_what_ends_is_told_and_started_again(cluster: Cluster) -> None:
    said: list[str] = []
    keeper = Keeper(cluster, said.append, restart_s=0.0)
    await cluster.spawn("relay-1")
    process = cluster.processes["relay-1"]
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await told(keeper, said, 2)
    assert process.pid not in (None, first)
    assert said == [
        "relay-1 is gone: it was ended by SIGKILL; it is started again in 0 s",
        f"relay-1 runs again: process {process.pid}",
    ]
    assert not keeper.recovers("relay-1")
    await keeper.close()


async def test_what_is_to_stay_dead_is_told_with_its_command(cluster: Cluster) -> None:
    said: list[str] = []
    keeper = Keeper(cluster, said.append, restart_s=None)
    await cluster.spawn("relay-1")
    process = cluster.processes["relay-1"]
    os.kill(process.pid or 0, signal.SIGKILL)
    await told(keeper, said, 1)
    [line] = said
    assert line.startswith(
        "relay-1 is gone: it was ended by SIGKILL; it is left alone. It was started with: "
    )
    assert line.endswith(f"simulate --port={process.port}")
    assert not keeper.recovers("relay-1")
    assert not process.pid_file.exists()
    keeper.look()
    assert len(said) == 1


async def test_what_is_stopped_on_purpose_is_not_missed(cluster: Cluster) -> None:
    said: list[str] = []
    keeper = Keeper(cluster, said.append, restart_s=0.0)
    await cluster.spawn("relay-1")
    await cluster.kill("relay-1")
    keeper.look()
    assert said == []


async def test_what_ends_again_and_again_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    async with Cluster([relay("raise SystemExit('no')")], tmp_path, binaries=tmp_path) as cluster:
        keeper = Keeper(cluster, said.append, restart_s=0.0)
        cluster.processes["relay-1"].spawn()
        await told(keeper, said, 2 * ENDS_MAX - 1)
        again, last = said[:-1], said[-1]
        assert sum("it is started again" in line for line in again) == ENDS_MAX - 1
        assert (
            sum("it ended with status 1; " in line and "ends: no" in line for line in again) == ENDS_MAX - 1
        )
        assert "it has ended 5 times within 120 s and is left alone: see " in last
        assert not keeper.recovers("relay-1")


async def test_what_would_be_started_again_is_not_after_the_end(cluster: Cluster) -> None:
    said: list[str] = []
    keeper = Keeper(cluster, said.append, restart_s=60.0)
    await cluster.spawn("relay-1")
    os.kill(cluster.processes["relay-1"].pid or 0, signal.SIGKILL)
    await told(keeper, said, 1)
    assert keeper.recovers("relay-1")
    await keeper.close()
    assert not keeper.recovers("relay-1")
    assert not cluster.processes["relay-1"].running
