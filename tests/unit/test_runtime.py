"""What a long-running command asks of the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from jetstream import runtime as running
from jetstream.runtime import RELEASE_ABOVE_BYTES, YOUNG_MAX, collect_young, release_memory


class Node:
    """Something that can name itself."""

    me: Node


async def test_young_garbage_is_collected_once_much_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetstream.runtime.YOUNG_EVERY_S", 0.001)
    gc.disable()  # what collects here is not the collector by itself
    try:
        young = [[number] for number in range(YOUNG_MAX)]
        node = Node()
        node.me = node
        gone = weakref.ref(node)
        del node
        collecting = asyncio.create_task(collect_young())
        async with asyncio.timeout(20):
            while gone() is not None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
        collecting.cancel()
        assert len(young) == YOUNG_MAX
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("resident", "released"), [(RELEASE_ABOVE_BYTES, False), (RELEASE_ABOVE_BYTES + 1, True)]
)
async def test_memory_is_given_back_while_much_is_in_use(
    monkeypatch: pytest.MonkeyPatch, resident: int, released: bool
) -> None:
    monkeypatch.setattr(running, "RELEASE_EVERY_S", 0)
    looked, trimmed = 0, 0

    def look() -> int:
        nonlocal looked
        looked += 1
        return resident

    def trim() -> None:
        nonlocal trimmed
        trimmed += 1

    releasing = asyncio.create_task(release_memory(trim, look))
    async with asyncio.timeout(20):
        while looked < 3:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
    releasing.cancel()
    assert bool(trimmed) is released


async def test_where_the_c_library_cannot_give_memory_back_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "malloc_trim", lambda: None)
    await release_memory()


@pytest.mark.skipif(running.malloc_trim() is None, reason="the C library is not glibc")
def test_what_a_flood_left_is_given_back() -> None:
    kept, freed = [], []
    for _ in range(1500):
        kept.append(b"x" * 1000)
        freed.append(b"x" * 60_000)  # each between two that stay: glibc keeps it
    full = running.resident_bytes()
    freed.clear()
    trim = running.malloc_trim()
    assert trim is not None
    trim()
    assert full - running.resident_bytes() > 60_000_000
    assert len(kept) == 1500
