"""`jetstream top` in a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sys
from pathlib import Path

from aiohttp import web

EXAMPLE = Path(__file__).parents[1] / "unit" / "cli" / "status.json"
LEAVES_SCREEN = b"\x1b[?1049l"


async def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    asked = asyncio.Event()

    async def status(_request: web.Request) -> web.StreamResponse:
        asked.set()
        return web.FileResponse(EXAMPLE)

    app = web.Application()
    app.router.add_get("/status.json", status)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jetstream", "top", url, "--interval", "0.2"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    try:
        async with asyncio.timeout(30):
            out = await asyncio.to_thread(_read_until, ours, b"Jetstream")
            asked.clear()
            await asked.wait()  # a second look
            process.send_signal(signal.SIGINT)
            out += await asyncio.to_thread(_read_until, ours, LEAVES_SCREEN)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
        await runner.cleanup()
    assert b"bsky.network:443" in out
    assert b"Traceback" not in out


def _read_until(terminal: int, words: bytes) -> bytes:
    """Return what comes on a terminal, up to some words or its end."""
    found = b""
    while words not in found:
        try:
            found += os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            break
    return found
