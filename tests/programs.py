"""Programs under test: starting them, reading their output, and waiting for their end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0
LINE_BYTES_MAX = 1 << 20


class Program:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """Return the next line of its standard output, with its newline."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
            assert line, f"it ended: {(await self._process.stderr.read()).decode()}"
        return line.decode()

    async def lines(self, count: int) -> list[str]:
        """Return the next lines of its standard output."""
        return [await self.line() for _ in range(count)]

    async def error_line(self) -> str:
        """Return the next line of its standard error."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self._process.stderr.readline()).decode()

    def interrupt(self) -> None:
        """Send the signal of Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """Kill it alone."""
        self._process.kill()

    async def ended(self) -> tuple[int, str, str]:
        """Wait for its end. Return the exit code and the rest of standard output and standard error."""
        async with asyncio.timeout(PATIENCE_S):
            out, err = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, (out or b"").decode(), err.decode()


@asynccontextmanager
async def program(
    *command: str | Path,
    cwd: Path | None = None,
    stdout: int = asyncio.subprocess.PIPE,
    unbuffered: bool = False,
) -> AsyncIterator[Program]:
    """Start a program. At the end kill it and everything that it started.

    What a program in Python prints is buffered, as in a pipe, or with `unbuffered` comes at once.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | {"PYTHONUNBUFFERED": "1" if unbuffered else ""},
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


@contextmanager
def jetstream(*arguments: str | Path, awaited: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run a command of `jetstream`, and kill it at the end. Yield it with its log line `awaited`."""
    command = [sys.executable, "-m", "jetstream", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JETSTREAM_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        facts = _log_line(process.stderr, awaited)
        # The pipe must not fill.
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            yield process, facts
        finally:
            process.kill()
            drain.join()


def _log_line(lines: Iterable[str], awaited: str) -> dict[str, Any]:
    for line in lines:
        facts: dict[str, Any] = json.loads(line)
        if facts["event"] == awaited:
            return facts
    raise AssertionError(f"it ended without logging {awaited!r}")


@contextmanager
def simulated_relay(*arguments: str | Path) -> Iterator[str]:
    """Run `jetstream simulate` on a free port. Yield its URL."""
    with jetstream("simulate", "--port", "0", *arguments, awaited="network is running") as (_, facts):
        yield facts["read_with"].split()[-1]
