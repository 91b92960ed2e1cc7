"""Test a consumer of a Jetstream offline: fixtures for a simulated network and a Jetstream that reads it.

Install it with `pip install '.[testing]'`, and import the fixtures into a `conftest.py`:

    from jetstream.testing import jetstream, network

The network is silent until the test lets something happen. `simulated_network` makes one with other accounts,
another seed, or faults by chance; `serving_jetstream` serves a Jetstream of it. See
`examples/test_my_consumer.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jetstream.app import Service
from jetstream.settings import Address, Settings
from jetstream.simulator.errors import MissingExtra

try:
    import pytest_asyncio

    from jetstream.simulator.faults import Faults
    from jetstream.simulator.relays import Relay
    from jetstream.simulator.server import HOST
    from jetstream.simulator.simulated_network import SimulatedNetwork, simulated_network
except ModuleNotFoundError as error:
    raise MissingExtra("jetstream.testing", "testing", error.name) from error

__all__ = [
    "Faults",
    "Relay",
    "SimulatedNetwork",
    "jetstream",
    "network",
    "serving_jetstream",
    "simulated_network",
]


@asynccontextmanager
async def serving_jetstream(network: SimulatedNetwork, data_dir: Path, **settings: Any) -> AsyncIterator[str]:
    """Serve a Jetstream of a network on a free port while the block runs. Yield its URL, `ws://host:port`.

    It is connected to the network, and reads it from the oldest message in its replay window. `settings` are
    those of `jetstream.settings.Settings`. If the server ends with an error, an ExceptionGroup with that
    error is raised.
    """
    given: dict[str, Any] = {"listen": Address(HOST, 0), "upstream_cursor": 0}
    service = Service(Settings(upstream=network.firehose_url, data_dir=data_dir, **given | settings))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run())
        try:
            await service.started.wait()
            await network.wait_subscribed()
            yield f"ws://{HOST}:{service.port}"
        finally:
            service.stop()


@pytest_asyncio.fixture
async def network() -> AsyncIterator[SimulatedNetwork]:
    """Serve a network of 20 accounts on a free port. Nothing has happened in it yet."""
    async with simulated_network().serving() as served:
        yield served


@pytest_asyncio.fixture
async def jetstream(network: SimulatedNetwork, tmp_path: Path) -> AsyncIterator[str]:
    """Serve a Jetstream of `network` on a free port. Give its URL, such as `ws://127.0.0.1:40123`."""
    async with serving_jetstream(network, tmp_path / "jetstream") as url:
        yield url
