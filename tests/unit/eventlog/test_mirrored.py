"""Readers of a mirror: how far the stream is, the upstream is asked, once for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jetstream.eventlog.mirrored import SLACK_US, MirroredLog
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.upstreams import AHEAD_MAX_US

NOW = 1_795_000_000_000_000


class Upstream:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.newest: int | None = 0
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.is_asked = asyncio.Event()

    async def __call__(self) -> int | None:
        self.asked += 1
        self.is_asked.set()
        await self.may_answer.wait()
        return self.newest


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SqliteLog]:
    log = await SqliteLog.open(tmp_path)
    yield log
    await log.close()


async def test_the_stream_reaches_as_far_as_the_upstream_says_and_never_falls(log: SqliteLog) -> None:
    upstream = Upstream()
    mirrored = MirroredLog(log, upstream, lambda: NOW)
    assert (mirrored.newest, mirrored.watermark, mirrored.tip) == (0, 1, 0)
    for newest, expected in (NOW, NOW), (NOW - 5, NOW), (0, NOW), (NOW + 5, NOW + 5):
        upstream.newest = newest
        await mirrored.look()
        assert mirrored.newest == expected


async def test_an_upstream_without_an_answer_may_have_events_up_to_now(log: SqliteLog) -> None:
    upstream = Upstream()
    upstream.newest = None
    mirrored = MirroredLog(log, upstream, lambda: NOW)
    await mirrored.look()
    assert mirrored.newest == NOW + SLACK_US


async def test_an_answer_of_the_far_future_is_none(log: SqliteLog) -> None:
    upstream = Upstream()
    mirrored = MirroredLog(log, upstream, lambda: NOW)
    for newest, expected in (NOW + AHEAD_MAX_US + 1, 0), (NOW + AHEAD_MAX_US, NOW + AHEAD_MAX_US):
        upstream.newest = newest
        await mirrored.look()
        assert mirrored.newest == expected


async def test_those_who_come_while_it_is_asked_share_the_next_question(log: SqliteLog) -> None:
    """The one that is under way may be older than what they have seen."""
    upstream = Upstream()
    upstream.may_answer.clear()
    mirrored = MirroredLog(log, upstream, lambda: NOW)
    first = asyncio.create_task(mirrored.look())
    await upstream.is_asked.wait()
    others = [asyncio.create_task(mirrored.look()) for _ in range(5)]
    await asyncio.sleep(0)
    others[0].cancel()
    upstream.newest = NOW
    upstream.may_answer.set()
    await asyncio.gather(first, *others, return_exceptions=True)
    assert (upstream.asked, mirrored.newest) == (2, NOW)
