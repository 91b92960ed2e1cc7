"""Servers of several processes: the supervisor in this process, the ingest and the edges as real children."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.relay import Relay
from tests.serving import LOOPBACK, PATIENCE_S, running

from jetstream.limits import Limits, SupervisorLimits, UpstreamLimits
from jetstream.settings import Settings
from jetstream.supervisor.process import Process
from jetstream.supervisor.supervisor import Supervisor

# Under these, nothing waits before it starts again, and figures are always those of now.
QUICK = Limits(
    upstream=UpstreamLimits(backoff_first_s=0.001),
    supervisor=SupervisorLimits(view_kept_s=0.0, backoff_first_s=0.001, backoff_max_s=0.001),
)


@asynccontextmanager
async def serving(
    relay: Relay, data_dir: Path, limits: Limits = QUICK, **settings: Any
) -> AsyncIterator[Supervisor]:
    """Run a server with two edges; stop it at the end, and let its errors out."""
    given: dict[str, Any] = {"upstream": relay.url, "listen": LOOPBACK, "data_dir": data_dir, "edges": 2}
    async with running(Supervisor(Settings(**given | settings), limits)) as supervisor:
        yield supervisor


async def ended_by(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process, and wait until its successor is ready."""
    before = process.pid
    assert before is not None
    os.kill(before, number)
    async with asyncio.timeout(2 * PATIENCE_S):
        while process.pid == before or not process.is_ready.is_set():  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """Tell whether a process runs: one that has ended and is not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
