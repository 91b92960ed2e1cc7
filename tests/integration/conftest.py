"""A server and a relay, in this process, on ports of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.relay import Relay
from tests.scripted import Jetstream, Sleeps
from tests.serving import LOOPBACK, Start, reconnecting_at_once, running

from jetstream.app import Service
from jetstream.clock import unix_us
from jetstream.limits import Limits
from jetstream.settings import Settings


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the loop that `jetstream serve` runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay() as relay:
        yield relay


@pytest.fixture
async def start(relay: Relay, tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as servers:

        async def start(
            *, clock: Callable[[], int] = unix_us, limits: Limits = Limits(), **settings: Any
        ) -> Service:
            given: dict[str, Any] = {"upstream": relay.url, "listen": LOOPBACK, "data_dir": tmp_path}
            service = Service(Settings(**given | settings), reconnecting_at_once(limits), clock=clock)
            return await servers.enter_async_context(running(service))

        yield start


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
async def jetstream() -> AsyncIterator[Jetstream]:
    jetstream = Jetstream()
    await jetstream.start()
    yield jetstream
    await jetstream.stop()


@pytest.fixture
async def another() -> AsyncIterator[Jetstream]:
    another = Jetstream()
    await another.start()
    yield another
    await another.stop()
