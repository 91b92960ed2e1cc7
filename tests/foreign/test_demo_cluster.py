"""`jetstream demo-cluster` as an operator runs it: the failover rehearsal of docs/many-machines.md."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.foreign.conftest import missing
from tests.programs import Program, program

from jetstream.client import Message, subscribe
from jetstream.cluster.answers import accepts
from jetstream.cluster.postgres import PostgresMissing, find_binaries

PATIENCE_S = 60.0
COMMAND = (sys.executable, "-m", "jetstream", "demo-cluster", "--port", "0", "--rate", "200")


class Demo(NamedTuple):
    """A cluster that runs, and where it is."""

    program: Program
    url: str
    directory: Path

    @property
    def ports(self) -> range:
        first = int(self.url.split(":")[2].partition("/")[0])
        return range(first, first + 9)

    def pid(self, name: str) -> int:
        return int((self.directory / f"{name}.pid").read_text())

    async def says(self, *words: str) -> str:
        """Return the next line that has all of some words."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await self.program.line()
                if all(word in line for word in words):
                    return line


@asynccontextmanager
async def running(*flags: str) -> AsyncIterator[Demo]:
    """Run the command until it has shown its processes."""
    try:
        find_binaries()
    except PostgresMissing:
        missing("PostgreSQL")
    async with program(*COMMAND, *flags) as command:
        demo = Demo(command, "", Path())
        directory = Path((await demo.says("files are in ")).split()[-1])
        try:
            url = next(
                word for word in (await demo.says("events", "ws://")).split() if word.startswith("ws:")
            )
            await demo.says("postgres-2", "standby, synchronous")
            yield demo._replace(url=url, directory=directory)
        finally:
            if await asyncio.to_thread(directory.exists):  # the test has failed, or has killed the command
                with suppress(ProcessLookupError):
                    command.interrupt()
                await command.ended()
                shutil.rmtree(directory, ignore_errors=True)


def left(directory: Path) -> list[str]:
    """Return the command lines of processes that have to do with a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cwd = str((path / "cwd").readlink())
            if str(directory) in line or cwd.startswith(str(directory)):
                found.append(line)
    return found


async def gone(directory: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while left(directory):  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.05)


class Reader:
    """A client that reads the one URL throughout."""

    def __init__(self, url: str) -> None:
        self.events: list[Message] = []
        self._task = asyncio.create_task(self._read(url))

    async def _read(self, url: str) -> None:
        # Connections are lost on purpose: it tries again soon.
        async with subscribe(url, cursor=0, backoff=lambda _: 0.05) as events:
            async for event in events:
                self.events.append(event)

    async def more(self, count: int) -> None:
        """Wait until it has so many more events."""
        wanted = len(self.events) + count
        async with asyncio.timeout(PATIENCE_S):
            while len(self.events) < wanted:
                assert not self._task.done(), self._task
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def stored(url: str, until: int) -> list[Message]:
    """Return all events up to a position, of one connection."""
    async with asyncio.timeout(PATIENCE_S), subscribe(url, cursor=0, until=until + 1) as events:
        return [event async for event in events]


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
async def test_the_rehearsal_loses_nothing_and_ctrl_c_leaves_nothing() -> None:
    async with running() as demo:
        reader = Reader(demo.url)
        await reader.more(100)

        os.kill(demo.pid("ingest-1"), signal.SIGKILL)
        await demo.says("ingest-1 is gone: it was ended by SIGKILL", "started again in 5 s")
        await demo.says("ingest-2 leads: term 2")
        await reader.more(100)

        os.kill(demo.pid("postgres-1"), signal.SIGKILL)
        await demo.says("postgres-1, the primary, is gone", "its standby is promoted in 5 s")
        await demo.says("postgres-2 is the primary now")
        await demo.says("postgres-1 runs again, as a standby")
        await reader.more(100)

        os.kill(demo.pid("edge-1"), signal.SIGKILL)
        await demo.says("edge-1 runs again")
        await reader.more(100)
        await reader.end()

        times = [event.time_us for event in reader.events]
        assert times == sorted(set(times))
        assert reader.events == await stored(demo.url, times[-1])

        demo.program.interrupt()
        code, _, err = await demo.program.ended()
        assert (code, err) == (0, "")
        assert left(demo.directory) == []
        assert not demo.directory.exists()
        assert [port for port in demo.ports if await accepts(port)] == []


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="only there processes end with their parent")
async def test_without_restarts_the_dead_stay_dead_and_all_end_when_the_command_is_killed() -> None:
    async with running("--no-restart", "--edges", "1") as demo:
        os.kill(demo.pid("edge-1"), signal.SIGKILL)
        line = await demo.says("edge-1 is gone", "it is left alone. It was started with: ")
        assert re.search(
            r"-m jetstream serve --role=edge --log=postgresql://\S+ --listen=127.0.0.1:\d+", line
        )
        demo.program.kill()
        await gone(demo.directory)
