"""Programs under test: what they print, what they say, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PATIENCE_S = 30.0
LINE_BYTES_MAX = 1 << 20


class Program:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        """Return the next line that it prints, with its end."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
            assert line, f"it ended: {(await self._process.stderr.read()).decode()}"
        return line.decode()

    async def lines(self, count: int) -> list[str]:
        """Return the next lines that it prints."""
        return [await self.line() for _ in range(count)]

    async def word(self) -> str:
        """Return the next line that it says, on standard error."""
        assert self._process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self._process.stderr.readline()).decode()

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    async def ended(self) -> tuple[int, str, str]:
        """Wait for its end; return its exit code, and what it still printed and said."""
        async with asyncio.timeout(PATIENCE_S):
            out, err = await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode, (out or b"").decode(), err.decode()


@asynccontextmanager
async def program(
    *command: str | Path, cwd: Path | None = None, stdout: int = asyncio.subprocess.PIPE
) -> AsyncIterator[Program]:
    """Start a program; kill it and what it has started at the end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
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
