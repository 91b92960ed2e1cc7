"""Events for the tests of the log: few repos and collections, so that filters meet."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from jetstream.events import ACCOUNT, CREATE, DELETE, Batch, Event
from jetstream.log import UpstreamCursor
from jetstream.log.sqlite import SqliteLog

LIKE = b"app.bsky.feed.like"
POST = b"app.bsky.feed.post"


def make_event(number: int) -> Event:
    did = b"did:plc:repo%d" % (number % 7)
    rkey = b"3l3f6nz%06d" % number
    if number % 11 == 0:
        return Event(ACCOUNT, did, b"", b"", b"", b"", b'{"active":true,"did":"%s","seq":%d}' % (did, number))
    if number % 5 == 0:
        return Event(DELETE, did, POST, rkey, rkey, b"", b"")
    return Event(
        CREATE, did, LIKE if number % 2 else POST, rkey, rkey, b"bafyrei%052d" % number, b'{"n":%d}' % number
    )


@pytest.fixture
def batch_of() -> Callable[[range], Batch]:
    """Make a batch whose events have the given times, and are told by them."""
    return lambda times: Batch.of([make_event(time) for time in times], times)


@pytest.fixture
def cursor() -> UpstreamCursor:
    return UpstreamCursor("relay.example:443", 7)


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = await SqliteLog.open(tmp_path)
    yield log
    await log.close()
