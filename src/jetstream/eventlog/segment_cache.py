"""Segments that were read from the file, decompressed, and shared by readers of the same range.

Readers that catch up together ask for the same segments at about the same time. Loading one takes some
milliseconds of disk and zstd in a reader thread, so it is done once for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from jetstream.model.batch import Batch, memory_bytes

Load = Callable[[int], Awaitable[Batch | None]]


class SegmentCache:
    """The least recently used segments are dropped when all take more than `bytes_max` of memory.

    `load` reads the segment with a key. It runs once for all readers that ask at the same time. Used by the
    event loop's thread only.
    """

    def __init__(self, load: Load, bytes_max: int) -> None:
        self._load = load
        # The bound of all loaded segments. The most recently used one may exceed it alone.
        self._bytes_max = bytes_max
        # Each segment that is loaded or being loaded, by its key; the least recently used first.
        self._segments: dict[int, asyncio.Future[Batch | None]] = {}
        # The memory that each loaded one takes; the keys are a subset of those above.
        self._memory: dict[int, int] = {}

    async def get(self, last_us: int) -> Batch | None:
        """Return the events of the segment with this key; None if it is no longer stored."""
        future = self._segments.pop(last_us, None)
        if future is None:
            future = asyncio.ensure_future(self._load(last_us))
            future.add_done_callback(partial(self._loaded, last_us))
        self._segments[last_us] = future
        return await asyncio.shield(future)  # other readers wait for it too

    def at(self, position: int) -> Batch | None:
        """Return the loaded segment that has events on both sides of a position, or an event at it.

        So a reader in the middle of a segment does not search the file for it again.
        """
        for last_us in self._memory:
            batch = self._segments[last_us].result()
            if batch is not None and batch.first <= position <= batch.last:
                return batch
        return None

    def drop(self, last_us: int) -> None:
        """Drop a segment that was changed. Readers that are at it may still read the old events."""
        self._segments.pop(last_us, None)
        self._memory.pop(last_us, None)

    def _loaded(self, last_us: int, future: asyncio.Future[Batch | None]) -> None:
        """Count the memory of a segment; one that could not be loaded is asked for again."""
        if self._segments.get(last_us) is not future:  # dropped, or loaded again
            return
        batch = None if future.cancelled() or future.exception() is not None else future.result()
        if batch is None:
            self.drop(last_us)
            return
        self._memory[last_us] = memory_bytes(len(batch), batch.text_bytes())
        # Drop the least recently used ones until the others fit, or one is left.
        while len(self._memory) > 1 and sum(self._memory.values()) > self._bytes_max:
            self.drop(next(key for key in self._segments if key in self._memory))
