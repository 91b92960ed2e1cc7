"""A network for tests: offline, the same each time, and silent until the test tells it to speak.

The fixture `network` needs pytest and pytest-asyncio. Import it into a `conftest.py`:

    from jetstream.testing import network

`simulated_network` makes one with other accounts, another seed or faults by chance; it needs no pytest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from jetstream.simulator.faults import Faults
from jetstream.simulator.stage import SimulatedNetwork, simulated_network

__all__ = ["Faults", "SimulatedNetwork", "network", "simulated_network"]


@pytest_asyncio.fixture
async def network() -> AsyncIterator[SimulatedNetwork]:
    """Serve a network of 20 accounts on a free port, with nothing happening in it yet."""
    async with simulated_network().serving() as served:
        yield served
