"""What a long-running command asks of the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref

from jetstream.running import collect_young


class Node:
    """Something that can name itself."""

    me: Node


async def test_young_garbage_is_collected_though_little_is_made() -> None:
    gc.disable()  # what collects here is not the collector by itself
    try:
        node = Node()
        node.me = node
        gone = weakref.ref(node)
        del node
        collecting = asyncio.create_task(collect_young())
        async with asyncio.timeout(20):
            while gone() is not None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.005)
        collecting.cancel()
    finally:
        gc.enable()
