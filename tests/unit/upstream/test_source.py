"""When a source leaves its socket alone, and how far it is behind.

All else is tested with a relay, in tests/integration.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import structlog
from tests.builders import commit

from jetstream.conditions import Conditions
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import UpstreamLimits
from jetstream.logging_setup import Throttled
from jetstream.metrics import Metrics
from jetstream.model.event import Key
from jetstream.upstream.inbox import Inbox
from jetstream.upstream.pipeline import DecodedBatch, Pipeline
from jetstream.upstream.reconnecting import Link
from jetstream.upstream.seq_tracker import SeqTracker
from jetstream.upstream.source import Source
from jetstream.upstreams import Upstream

LIMITS = UpstreamLimits()
NOW_US = 1_795_000_000_000_000  # 2026-11-18T11:06:40Z


async def store(_batch: DecodedBatch, _received_at: float) -> None:
    raise AssertionError("nothing is read here")


def source(log: SqliteLog, *, awaited: bool) -> Source:
    link = Link(
        Throttled(structlog.get_logger()),
        partial(asyncio.sleep, 0),
        lambda: None,
        lambda: awaited,
        lambda: NOW_US,
    )
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


@pytest.mark.parametrize(
    ("times", "lag_s"),
    [
        (["2026-11-18T11:06:38.5Z"], 1.5),
        (["2026-11-18T12:06:40+01:00"], 0.0),
        (["2026-11-18T11:06:41Z"], -1.0),
        (["2026-11-18T11:06:38.5Z", ""], 1.5),
        (["2026-11-18T11:06:38.5Z", "soon"], 1.5),
        (["2026-11-18T11:06:38.5"], None),
    ],
)
async def test_the_lag_is_by_the_clock_that_ignores_steps(
    times: list[str], lag_s: float | None, tmp_path: Path
) -> None:
    log = await SqliteLog.open(tmp_path)
    one = source(log, awaited=True)
    for time_ in times:
        one._count(DecodedBatch(frames=1, accepted=1, time=time_))
    assert one.lag_s == lag_s
    await log.close()


class Frames:
    """An inbox that has some frames, and is over after them."""

    received_at = 0.0

    def __init__(self, *frames: bytes) -> None:
        self._frames = list(frames)

    async def wait(self, count_max: int) -> list[bytes]:
        return self._frames[:count_max]

    def drop(self, count: int) -> None:
        del self._frames[:count]


async def test_frames_in_doubt_have_one_turn_after_the_log_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await SqliteLog.open(tmp_path)
    one, untils = source(log, awaited=True), list[float]()
    resolve = one._pipeline.resolve

    def noted(batch: DecodedBatch, known: Mapping[Key, int], until: float = float("inf")) -> None:
        untils.append(until)
        resolve(batch, known, until)

    async def stored(_batch: DecodedBatch, _received_at: float) -> None: ...

    monkeypatch.setattr(one._pipeline, "resolve", noted)
    monkeypatch.setattr(one, "_store", stored)
    await one._read(cast(Inbox, Frames(commit(5), commit(6))))  # not those that follow 0
    assert untils
    assert max(untils) <= time.monotonic() + LIMITS.turn_s
    await log.close()
