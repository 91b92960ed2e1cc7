"""A PostgreSQL server for all tests of this package, and a log of its own for each."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import asyncpg
import pytest
from tests.foreign.conftest import missing
from tests.foreign.postgresql.engine import PostgresEngine, new_engine
from tests.foreign.postgresql.server import Server, running
from tests.unit.conftest import batch_of, cursor

from jetstream.cluster.postgres import PostgresMissing, find_binaries

__all__ = ["batch_of", "cursor"]

_numbers = count()


@pytest.fixture(scope="session")
def programs() -> Path:
    try:
        return find_binaries()
    except PostgresMissing:
        missing("PostgreSQL")


@pytest.fixture(scope="session")
def server(programs: Path) -> Iterator[Server]:
    with running(programs) as server:
        yield server


@pytest.fixture
def own_server(programs: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that a test may kill."""

    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running(programs, **settings))


@pytest.fixture
async def engine(server: Server) -> PostgresEngine:
    return await new_engine(server.address, f"log_{os.getpid()}_{next(_numbers)}")


@pytest.fixture
def kills() -> int:
    """How often something is killed: `POSTGRESQL_KILLS=20`."""
    return int(os.environ.get("POSTGRESQL_KILLS", "3"))


@pytest.fixture(autouse=True)
async def _no_connection_is_left() -> AsyncIterator[None]:
    """Cut what a test that has failed has left: uvloop's end would wait for it."""
    yield
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if not tasks:
        return
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=1.0)
    for each in gc.get_objects():
        if type(each) is asyncpg.Connection and not each.is_closed():
            each.terminate()
    await asyncio.sleep(0)
