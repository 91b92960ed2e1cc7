"""When a source leaves its socket alone. All else is tested with a relay, in tests/integration."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest
import structlog

from jetstream.conditions import Conditions
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import UpstreamLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.upstream.pipeline import DecodedBatch, Pipeline
from jetstream.upstream.seq_tracker import SeqTracker
from jetstream.upstream.source import Link, Source
from jetstream.upstreams import Upstream

LIMITS = UpstreamLimits()


async def store(_batch: DecodedBatch, _received_at: float) -> None:
    raise AssertionError("nothing is read here")


def source(log: SqliteLog, *, awaited: bool) -> Source:
    link = Link(Throttled(structlog.get_logger()), partial(asyncio.sleep, 0), lambda: None, lambda: awaited)
    upstream = Upstream("relay", "ws://127.0.0.1:1")
    pipeline, metrics = Pipeline(SeqTracker(0), time.monotonic), Metrics().upstream("relay")
    return Source(upstream, link, pipeline, store, metrics, Conditions().of("relay"), log)


@pytest.mark.parametrize(
    ("awaited", "lag_s", "frames", "known", "rest_s"),
    [
        (False, None, 1, 0, LIMITS.unawaited_rest_s),
        (False, 0.3, LIMITS.rest_frames_max, 0, LIMITS.unawaited_rest_s),
        (False, 0.3, LIMITS.rest_frames_max + 1, 0, 0.0),
        (False, LIMITS.unawaited_lag_s, 1, 0, 0.0),
        (True, None, 1, 0, 0.0),
        (True, 0.3, 1, LIMITS.rest_after, LIMITS.rest_s),
        (True, 0.3, LIMITS.rest_frames_max + 1, LIMITS.rest_after, 0.0),
    ],
    ids=["unawaited", "some", "many", "late", "awaited", "known", "many known"],
)
async def test_a_source_rests_where_nobody_waits_for_it_unless_it_is_behind(
    tmp_path: Path, awaited: bool, lag_s: float | None, frames: int, known: int, rest_s: float
) -> None:
    log = await SqliteLog.open(tmp_path)
    one = source(log, awaited=awaited)
    one.lag_s, one._known = lag_s, known
    assert one._rest_s(DecodedBatch(frames=frames)) == rest_s
    await log.close()
