"""Blocks that were read from the file, shared between readers of the same range."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from jetstream.model.batch import Batch, memory_bytes

# Five ordinary blocks.
CACHE_BYTES: Final = 20 << 20

Load = Callable[[int], Awaitable[Batch | None]]


class BlockCache:
    """The blocks read last, by an estimate of the memory they take; each is loaded once, however many ask."""

    def __init__(self, load: Load, bytes_max: int = CACHE_BYTES) -> None:
        self._load = load
        self._bytes_max = bytes_max
        self._loaded_blocks: dict[int, int] = {}  # the bytes that each takes
        self._blocks: dict[int, asyncio.Future[Batch | None]] = {}  # the last used is last

    async def get(self, last_us: int) -> Batch | None:
        """Return a block's events; None when it is no longer stored."""
        future = self._blocks.pop(last_us, None)
        if future is None:
            future = asyncio.ensure_future(self._load(last_us))
            future.add_done_callback(partial(self._loaded, last_us))
        self._blocks[last_us] = future
        self._make_room()
        return await asyncio.shield(future)

    def drop(self, last_us: int) -> None:
        """Forget a block that was changed; who reads it at this moment may still see it as it was."""
        self._blocks.pop(last_us, None)
        self._loaded_blocks.pop(last_us, None)

    def _loaded(self, last_us: int, future: asyncio.Future[Batch | None]) -> None:
        if self._blocks.get(last_us) is not future:
            return
        batch = None if future.cancelled() or future.exception() is not None else future.result()
        if batch is None:
            self.drop(last_us)
            return
        self._loaded_blocks[last_us] = memory_bytes(len(batch), batch.text_bytes())
        self._make_room()

    def _make_room(self) -> None:
        """Drop the blocks used least lately, but for one, until the others fit."""
        while len(self._loaded_blocks) > 1 and sum(self._loaded_blocks.values()) > self._bytes_max:
            self.drop(next(key for key in self._blocks if key in self._loaded_blocks))
