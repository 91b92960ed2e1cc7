from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from jetstream.errors import LogError
from jetstream.eventlog.segment_cache import BlockCache
from jetstream.model.batch import Batch, memory_bytes

BatchOf = Callable[[range], Batch]

BLOCK_BYTES = memory_bytes(10, 1500)  # more than a block of these tests takes, less than one and a half


class Blocks:
    """Ten events a block; loading counts, and waits for `ready`."""

    def __init__(self, batch_of: BatchOf) -> None:
        self.loaded: list[int] = []
        self.ready = asyncio.Event()
        self.ready.set()
        self.failure: Exception | None = None
        self._batch_of = batch_of

    async def load(self, last_us: int) -> Batch | None:
        self.loaded.append(last_us)
        await self.ready.wait()
        if self.failure is not None:
            raise self.failure
        return None if last_us == 0 else self._batch_of(range(last_us - 9, last_us + 1))


@pytest.fixture
async def blocks(batch_of: BatchOf) -> Blocks:
    return Blocks(batch_of)


async def test_a_block_is_loaded_once_for_all_who_ask(blocks: Blocks) -> None:
    cache = BlockCache(blocks.load)
    blocks.ready.clear()
    asking = [asyncio.create_task(cache.get(10)) for _ in range(3)]
    await asyncio.sleep(0)
    blocks.ready.set()
    first, *others = await asyncio.gather(*asking)
    assert first is not None
    assert all(other is first for other in others)
    assert await cache.get(10) is first
    assert blocks.loaded == [10]


async def test_who_gives_up_waiting_takes_it_from_nobody(blocks: Blocks) -> None:
    cache = BlockCache(blocks.load)
    blocks.ready.clear()
    gone, stays = asyncio.create_task(cache.get(10)), asyncio.create_task(cache.get(10))
    await asyncio.sleep(0)
    gone.cancel()
    blocks.ready.set()
    assert await stays is not None
    assert blocks.loaded == [10]


async def test_the_least_used_makes_room(blocks: Blocks) -> None:
    cache = BlockCache(blocks.load, bytes_max=2 * BLOCK_BYTES)
    for last_us in (10, 20, 10, 30, 10, 20):
        await cache.get(last_us)
    assert blocks.loaded == [10, 20, 30, 20]


async def test_a_block_that_was_changed_is_loaded_again(blocks: Blocks) -> None:
    cache = BlockCache(blocks.load)
    await cache.get(10)
    cache.drop(10)
    await cache.get(10)
    assert blocks.loaded == [10, 10]


async def test_what_is_changed_while_it_is_loaded_is_loaded_again(blocks: Blocks) -> None:
    cache = BlockCache(blocks.load)
    blocks.ready.clear()
    reader = asyncio.create_task(cache.get(10))
    await asyncio.sleep(0)
    cache.drop(10)
    blocks.ready.set()
    await reader
    await cache.get(10)
    assert blocks.loaded == [10, 10]


async def test_a_block_that_is_gone_or_cannot_be_read_is_not_remembered(
    blocks: Blocks, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = BlockCache(blocks.load)
    assert await cache.get(0) is None
    blocks.failure = LogError(tmp_path_factory.getbasetemp(), "fails")
    with pytest.raises(LogError):
        await cache.get(10)
    blocks.failure = None
    assert await cache.get(10) is not None
    assert blocks.loaded == [0, 10, 10]
