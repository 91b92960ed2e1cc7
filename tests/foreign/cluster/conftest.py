"""What the tests of a whole cluster need."""

from __future__ import annotations

import pytest
from tests.foreign.conftest import missing, pytest_asyncio_loop_factories

from jetstream.cluster.postgres import PostgresMissing, find_binaries

__all__ = ["_postgresql", "pytest_asyncio_loop_factories"]


@pytest.fixture(scope="session", autouse=True)
def _postgresql() -> None:
    try:
        find_binaries()
    except PostgresMissing:
        missing("PostgreSQL")
