"""The store between upstream and the log; the service as a whole is tried in `tests/integration`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock

from jetstream.app import Store
from jetstream.clock import unix_us
from jetstream.conditions import Conditions
from jetstream.eventlog import UpstreamCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.ingest import Sequencer
from jetstream.metrics import Metrics
from jetstream.model.event import DELETE, Event
from jetstream.upstream.intake import Taken


async def test_what_is_stored_waits_for_the_hub_and_says_when_it_was_read(tmp_path: Path) -> None:
    read: list[float] = []

    async def ready(read_at: float) -> None:
        read.append(read_at)

    log = await SqliteLog.open(tmp_path)
    store = Store(log, "relay.example:443", Sequencer(log.tip, unix_us), Metrics(), ready, Conditions())
    await store(Taken([Event(DELETE, b"did:plc:a", b"x.y.z", b"1", b"rev", b"", b"")], 1), 10.0)
    await store(Taken(seq=2), 11.0)  # nothing to deliver
    await store(Taken(seq=2), 12.0)
    await store(Taken(), 13.0)
    await log.close()
    assert log.upstream == UpstreamCursor("relay.example:443", 2)
    assert read == [10.0]


async def test_storing_gives_the_loop_a_turn_though_there_is_nothing_to_store(tmp_path: Path) -> None:
    """Else upstream, with frames waiting that give no events, would have the loop to itself."""
    log = await SqliteLog.open(tmp_path)
    store = Store(log, "relay.example:443", Sequencer(log.tip, unix_us), Metrics(), AsyncMock(), Conditions())
    for seq in (1, 1, None):
        task = asyncio.create_task(store(Taken(seq=seq), 0.0))
        await asyncio.sleep(0)
        assert not task.done()
        await task
    await log.close()
