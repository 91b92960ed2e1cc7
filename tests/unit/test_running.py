"""What a long-running command asks of the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from jetstream.running import YOUNG_MAX, collect_young


class Node:
    """Something that can name itself."""

    me: Node


async def test_young_garbage_is_collected_once_much_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetstream.running.YOUNG_EVERY_S", 0.001)
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
