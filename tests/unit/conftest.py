"""What tests of several packages share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.signed import Account
from tests.unit.eventlog.events import make_event

from jetstream.eventlog import Cursors, SourceCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.model.batch import Batch


@pytest.fixture
def account() -> Account:
    """Return a repository of 60 records."""
    account = Account()
    account.create(*(f"{number}" for number in range(60)))
    return account


@pytest.fixture(scope="session")
def batch_of() -> Callable[[range], Batch]:
    """Make a batch whose events have the given times, and are told by them."""
    return lambda times: Batch.of([make_event(time) for time in times], times)


@pytest.fixture(scope="session")
def cursor() -> Cursors:
    return {"relay.example:443": SourceCursor(7)}


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = await SqliteLog.open(tmp_path)
    yield log
    await log.close()
