"""What the tests of a whole cluster need."""

from __future__ import annotations

from tests.foreign.cluster.conftest import _postgresql, pytest_asyncio_loop_factories

__all__ = ["_postgresql", "pytest_asyncio_loop_factories"]
