"""Blocks that were read from the file, shared between readers of the same range."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from jetstream.events import Batch

CACHE_BYTES: Final = 32 * 1024 * 1024
# What CPython takes for a time, seven values and a frame, but for the bodies; frames take as much again as
# the bodies, and so do slices. (Of one wire: with both in use it is up to two thirds more.)
EVENT_BYTES: Final = 1_000
BODY_RATIO: Final = 3

Load = Callable[[int], Awaitable[Batch | None]]


class BlockCache:
    """The blocks read last, by an estimate of the memory they take; each is loaded once, however many ask."""

    def __init__(self, load: Load, bytes_max: int = CACHE_BYTES) -> None:
        self._load = load
        self._bytes_max = bytes_max
        self._bytes: dict[int, int] = {}
        self._blocks: dict[int, asyncio.Future[Batch | None]] = {}  # the last used is last

    async def get(self, last_us: int) -> Batch | None:
        """Return a block's events; None when it is no longer stored."""
        future = self._blocks.pop(last_us, None)
        if future is None:
            future = asyncio.ensure_future(self._load(last_us))
            future.add_done_callback(partial(self._loaded, last_us))
        self._blocks[last_us] = future
        return await asyncio.shield(future)

    def drop(self, last_us: int) -> None:
        """Forget a block that was changed; who reads it at this moment may still see it as it was."""
        self._blocks.pop(last_us, None)
        self._bytes.pop(last_us, None)

    def _loaded(self, last_us: int, future: asyncio.Future[Batch | None]) -> None:
        if self._blocks.get(last_us) is not future:
            return
        if future.cancelled() or future.exception() is not None or future.result() is None:
            self.drop(last_us)
            return
        self._bytes[last_us] = _weight(future.result())
        while sum(self._bytes.values()) > self._bytes_max and len(self._bytes) > 1:
            self.drop(next(key for key in self._blocks if key in self._bytes))


def _weight(batch: Batch | None) -> int:
    assert batch is not None
    return sum(map(len, batch.bodies)) * BODY_RATIO + len(batch) * EVENT_BYTES
