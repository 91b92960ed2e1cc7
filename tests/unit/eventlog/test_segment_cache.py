from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from jetstream.errors import LogError
from jetstream.eventlog.segment_cache import Loaded, SegmentCache
from jetstream.model.batch import Batch, memory_bytes

BatchOf = Callable[[range], Batch]

SEGMENT_BYTES = memory_bytes(10, 1500)  # more than a segment of these tests takes, less than one and a half


class Segments:
    """Ten events a segment; loading counts, and waits for `ready`."""

    def __init__(self, batch_of: BatchOf) -> None:
        self.loaded: list[int] = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.failure: Exception | None = None
        self._batch_of = batch_of

    async def load(self, last_us: int) -> Loaded | None:
        self.loaded.append(last_us)
        await self.ready.wait()
        if self.failure is not None:
            raise self.failure
        if last_us == 0:
            return None
        batch = self._batch_of(range(last_us - 9, last_us + 1))
        return Loaded(batch, memory_bytes(len(batch), batch.text_bytes()))


@pytest.fixture
async def segments(batch_of: BatchOf) -> Segments:
    return Segments(batch_of)


async def test_a_segment_is_loaded_once_for_all_who_ask(segments: Segments) -> None:
    cache = SegmentCache(segments.load, 10 * SEGMENT_BYTES)
    segments.ready.clear()
    asking = [asyncio.create_task(cache.get(10)) for _ in range(3)]
    await asyncio.sleep(0)
    segments.ready.set()
    first, *others = await asyncio.gather(*asking)
    assert first is not None
    assert all(other is first for other in others)
    assert await cache.get(10) is first
    assert segments.loaded == [10]


async def test_who_gives_up_waiting_takes_it_from_nobody(segments: Segments) -> None:
    cache = SegmentCache(segments.load, 10 * SEGMENT_BYTES)
    segments.ready.clear()
    gone, stays = asyncio.create_task(cache.get(10)), asyncio.create_task(cache.get(10))
    await asyncio.sleep(0)
    gone.cancel()
    segments.ready.set()
    assert await stays is not None
    assert segments.loaded == [10]


async def test_the_least_used_makes_room(segments: Segments) -> None:
    cache = SegmentCache(segments.load, bytes_max=2 * SEGMENT_BYTES)
    for last_us in (10, 20, 10, 30, 10, 20):
        await cache.get(last_us)
    assert segments.loaded == [10, 20, 30, 20]


async def test_a_segment_that_was_changed_is_loaded_again(segments: Segments) -> None:
    cache = SegmentCache(segments.load, 10 * SEGMENT_BYTES)
    await cache.get(10)
    cache.drop(10)
    await cache.get(10)
    assert segments.loaded == [10, 10]


async def test_what_is_changed_while_it_is_loaded_is_loaded_again(segments: Segments) -> None:
    cache = SegmentCache(segments.load, 10 * SEGMENT_BYTES)
    segments.ready.clear()
    reader = asyncio.create_task(cache.get(10))
    await asyncio.sleep(0)
    cache.drop(10)
    segments.ready.set()
    await reader
    await cache.get(10)
    assert segments.loaded == [10, 10]


async def test_a_segment_that_is_gone_or_cannot_be_read_is_not_remembered(
    segments: Segments, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = SegmentCache(segments.load, 10 * SEGMENT_BYTES)
    assert await cache.get(0) is None
    segments.failure = LogError(tmp_path_factory.getbasetemp(), "fails")
    with pytest.raises(LogError):
        await cache.get(10)
    segments.failure = None
    assert await cache.get(10) is not None
    assert segments.loaded == [0, 10, 10]


async def test_the_segment_around_a_position_is_found(segments: Segments) -> None:
    cache = SegmentCache(segments.load, bytes_max=2 * SEGMENT_BYTES)
    segments.ready.clear()
    asking = asyncio.create_task(cache.get(20))
    await asyncio.sleep(0)
    assert cache.at(15) is None  # it is being loaded
    segments.ready.set()
    batch = await asking
    assert [cache.at(position) for position in (10, 11, 20, 21)] == [None, batch, batch, None]
    cache.drop(20)
    assert cache.at(15) is None
