"""A server on a disk of 24 MB that its log fills, at 4,000 events a second, killed and restarted as well."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from tests.full_disk import small_disk
from tests.serving import Process, figures, health, process

from jetstream.eventlog.sqlite.check import check
from jetstream.eventlog.sqlite.repair import repair
from jetstream.eventlog.sqlite.schema import DATABASE

RATE = 4_000
# A disk that is full once is full again as soon as some of it is free, until upstream's backlog is taken: how
# often events can be stored says little, how many are stored says it.
FIT_24_MB = 130_000
FIT_16_MB = 70_000
PATIENCE_S = 400.0
STORED = "jetstream_events_total{"
KILLS = 15

pytestmark = pytest.mark.timeout(1_000)


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    async with simulated() as url:
        yield url


@asynccontextmanager
async def simulated() -> AsyncIterator[str]:
    """Run a network as a process of its own, and give the URL of its firehose."""
    command = [sys.executable, "-m", "jetstream", "simulate", "--rate", str(RATE), "--port", "0"]
    network = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert network.stderr is not None
    url = ""
    while not url:
        line = await network.stderr.readline()
        assert line, "the network did not start"
        with_url = json.loads(line).get("read_with")
        url = with_url.split()[-1] if with_url else ""
    drain = asyncio.create_task(network.stderr.read())
    try:
        yield url
    finally:
        network.kill()
        await network.wait()
        await drain


async def total(server: Process, family: str) -> float:
    return sum(value for name, value in (await figures(server.port)).items() if name.startswith(family))


async def stored(server: Process, events: int) -> None:
    """Return once a server has stored so many events since it started."""
    async with asyncio.timeout(PATIENCE_S):
        while await total(server, STORED) < events:  # noqa: ASYNC110 - what another process says
            await asyncio.sleep(0.5)


async def full(server: Process) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await health(server.port))[0] == 200:  # noqa: ASYNC110 - what another process says
            await asyncio.sleep(0.2)


async def test_a_log_that_fills_its_disk_goes_on_when_retention_is_due(upstream: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:
        async with process(upstream, disk / "data", "--retention", "25s") as server:
            await stored(server, 2 * FIT_24_MB)
        assert check(disk / "data").problems == []


async def test_a_restart_with_less_retention_goes_on(upstream: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        async with process(upstream, disk / "data", "--retention", "1h") as server:
            await full(server)
            await asyncio.sleep(3.0)
            server.signal(signal.SIGKILL)
            await server.ended()
        assert repair(disk / "data")[0].problems == []
        assert not (disk / "data" / "jetstream.new").exists()
        async with process(upstream, disk / "data", "--retention", "5s") as server:
            await stored(server, 2 * FIT_16_MB)


async def test_kills_while_the_disk_is_full_leave_a_whole_log(upstream: str, tmp_path: Path) -> None:
    dice = random.Random(7)
    with small_disk(tmp_path / "disk", "16m") as disk:
        for kill in range(KILLS):
            retention = "1h" if kill % 3 < 2 else "4s"
            async with process(upstream, disk / "data", "--retention", retention) as server:
                if kill % 3 == 0:
                    await full(server)
                await asyncio.sleep(dice.uniform(0.05, 4.0))
                server.signal(signal.SIGKILL)
                await server.ended()
            found = check(disk / "data")
            assert found.problems == []
            with closing(sqlite3.connect(disk / "data" / DATABASE)) as connection:
                assert connection.execute("SELECT events FROM extent").fetchone() == (found.events,)
