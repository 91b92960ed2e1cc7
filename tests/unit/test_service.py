"""The store between upstream and the log; the service as a whole is tried in `tests/integration`."""

from __future__ import annotations

from pathlib import Path

from jetstream.clock import unix_us
from jetstream.events import DELETE, Event
from jetstream.log import UpstreamCursor
from jetstream.log.sqlite import SqliteLog
from jetstream.metrics import Metrics
from jetstream.sequencer import Sequencer
from jetstream.service import Store


async def test_delivery_lasts_from_reading_a_frame_to_the_last_write(tmp_path: Path) -> None:
    metrics = Metrics()

    async def ready() -> float:
        return 12.5

    log = await SqliteLog.open(tmp_path)
    store = Store(log, "relay.example:443", Sequencer(log.tip, unix_us), metrics, ready)
    await store([Event(DELETE, b"did:plc:a", b"x.y.z", b"1", b"rev", b"", b"")], 1, 10.0)
    await store([], 2, 11.0)  # nothing to deliver
    await log.close()
    assert log.upstream == UpstreamCursor("relay.example:443", 2)
    assert metrics.registry.get_sample_value("jetstream_delivery_seconds_count") == 1
    assert metrics.registry.get_sample_value("jetstream_delivery_seconds_sum") == 2.5
