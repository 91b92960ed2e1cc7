"""Servers under test, in this process or in one of their own, and what they say of themselves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from jetstream.app import Service
from jetstream.clock import unix_us
from jetstream.eventlog import SourceCursor
from jetstream.limits import Limits, UpstreamLimits
from jetstream.settings import Address
from jetstream.upstream.source import Source

LOOPBACK = Address("127.0.0.1", 0)


def quick(**limits: Any) -> Limits:
    """Return limits of upstream under which a server also connects again at once."""
    return reconnecting_at_once(Limits(upstream=UpstreamLimits(**limits)))


def reconnecting_at_once(limits: Limits) -> Limits:
    """Return limits under which nothing waits before it connects to upstream again."""
    return replace(limits, upstream=replace(limits.upstream, backoff_first_s=0.001))


PATIENCE_S = 20.0


class Start(Protocol):
    """Start a server that reads the relay; it stops with the test. Other arguments are settings."""

    def __call__(
        self, *, clock: Callable[[], int] = unix_us, limits: Limits = Limits(), **settings: Any
    ) -> Awaitable[Service]: ...


class Runs(Protocol):
    """A server of one process, or the supervisor of several."""

    started: asyncio.Event

    async def run(self) -> None: ...

    def stop(self) -> None: ...


Server = TypeVar("Server", bound=Runs)


@asynccontextmanager
async def running(service: Server) -> AsyncIterator[Server]:
    """Run a server; stop it at the end, and let its errors out."""
    task = asyncio.create_task(service.run())
    started = asyncio.create_task(service.started.wait())
    await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
    started.cancel()
    if task.done():
        task.result()
    try:
        yield service
    finally:
        service.stop()
        async with asyncio.timeout(PATIENCE_S):
            await task


async def connected(port: int, receive_buffer: int | None = None) -> socket.socket:
    """Connect to a port. `receive_buffer` limits the unread bytes of the socket."""
    sock = socket.socket()
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:  # refused, or cancelled
        sock.close()
        raise
    return sock


async def until(condition: Callable[[], object]) -> None:
    """Return once something that cannot be waited for is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - it tells nobody when it becomes so
            await asyncio.sleep(0.005)


def cursor(service: Service) -> SourceCursor | None:
    """Return the cursor of the one upstream, as it is stored."""
    return next(iter(service.log.cursors.values()), None)


def source(service: Service) -> Source:
    """Return the source of the one upstream."""
    (only,) = service.intake.sources
    assert isinstance(only, Source)
    return only


async def published(service: Service, seq: int) -> None:
    """Return once the frame of `seq` is stored, and has been published."""

    def is_so() -> bool:
        stored = cursor(service)
        # Above a gap, a number becomes the cursor when the next one comes.
        return (
            stored is not None
            and max(stored.seq, stored.provisional or 0) >= seq
            and service.delivery.position > service.log.tip
        )

    await until(is_so)


async def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    """Return the status and the text of a page."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as response,
    ):
        return response.status, await response.text()


class Figures(dict[str, float]):
    """What `/metrics` says, such as `figures['jetstream_dropped_total{reason="did"}']`.

    The label `upstream` is left out, since there is one upstream.
    """

    families: dict[str, str]  # name: type


async def figures(port: int) -> Figures:
    """Read `/metrics`."""
    status, text = await get(port, "/metrics")
    assert status == 200
    found = Figures()
    found.families = {}
    for family in text_string_to_metric_families(text):
        found.families[family.name] = family.type
        for sample in family.samples:
            named = sorted((name, value) for name, value in sample.labels.items() if name != "upstream")
            labels = ",".join(f'{name}="{value}"' for name, value in named)
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def health(port: int) -> tuple[int, dict[str, Any]]:
    """Read `/health`."""
    status, text = await get(port, "/health")
    return status, json.loads(text)


class Process:
    """`jetstream serve` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0
        self.log: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": line.decode().rstrip(), "level": "raw"})
            self._changed.set()

    async def says(self, event: str, start: int = 0) -> dict[str, Any]:
        """Wait for a line of its log, from the line number `start` on."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                self._changed.clear()
                for line in self.log[start:]:
                    if event in line["event"]:
                        return line
                assert not self._reading.done(), self.log
                await self._changed.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; return its exit code."""
        async with asyncio.timeout(PATIENCE_S):
            code = await self.process.wait()
            await self._reading
        return code

    def limit(self, what: int, soft: int) -> None:
        """Set one of its soft resource limits."""
        _, hard = resource.prlimit(self.process.pid, what)
        resource.prlimit(self.process.pid, what, (soft, hard))


@asynccontextmanager
async def process(
    upstream: str,
    data_dir: Path,
    *flags: str,
    limits: dict[int, tuple[int, int]] | None = None,
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[Process]:
    """Start `jetstream serve`, wait until it listens, and kill it at the end if it still runs.

    `limits` are resource limits, soft and hard, that it begins with.
    """

    def set_limits() -> None:
        for what, pair in (limits or {}).items():
            resource.setrlimit(what, pair)

    server = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jetstream", "serve"),
            *("--upstream", upstream, "--data-dir", str(data_dir), "--listen", listen),
            *("--log-format", "json", *flags),
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.startswith("JETSTREAM_")},
            preexec_fn=set_limits if limits else None,
        )
    )
    try:
        listening = await server.says("listening")
        found = re.search(r":(\d+)/", listening.get("subscribe") or listening["page"])
        assert found is not None
        server.port = int(found[1])
        yield server
    finally:
        if server.process.returncode is None:
            server.process.kill()
        await server.ended()
