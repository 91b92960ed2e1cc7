"""Segments that were read from the file, decompressed, and shared by readers of the same range.

Readers that catch up together ask for the same segments at about the same time. Loading one takes some
milliseconds of disk and zstd in a reader thread, so it is done once for all of them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from jetstream.model.batch import Batch


class Loaded(NamedTuple):
    """The events of a segment, and about how much memory they take."""

    batch: Batch
    memory: int


# Reads the segment with a key; returns None if it was deleted, or is damaged.
Load = Callable[[int], Awaitable[Loaded | None]]


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
        self._segments: dict[int, asyncio.Future[Loaded | None]] = {}
        # Those that are loaded; the keys are a subset of those above. And these keys, rising.
        self._loaded: dict[int, Loaded] = {}
        self._keys: list[int] = []

    async def get(self, last_us: int) -> Batch | None:
        """Return the events of the segment with this key; None if it is no longer stored.

        Raises what `load` raises, to all that wait; the next call tries again. A caller that is cancelled
        leaves the load to the others.
        """
        future = self._segments.pop(last_us, None)
        if future is None:
            future = asyncio.ensure_future(self._load(last_us))
            future.add_done_callback(partial(self._note, last_us))
        self._segments[last_us] = future
        loaded = await asyncio.shield(future)  # other readers wait for it too
        return None if loaded is None else loaded.batch

    def at(self, position: int) -> Batch | None:
        """Return the loaded segment in whose events a position lies.

        So a reader in the middle of a segment does not search the file for it again.

        None also while that segment is being loaded: `get` waits for it.
        """
        at = bisect_left(self._keys, position)
        if at == len(self._keys):
            return None
        batch = self._loaded[self._keys[at]].batch
        return batch if batch.first <= position <= batch.last else None

    def drop(self, last_us: int) -> None:
        """Drop a segment that was changed. Readers that are at it may still read the old events."""
        self._segments.pop(last_us, None)
        if self._loaded.pop(last_us, None) is not None:
            self._keys.remove(last_us)

    def clear(self) -> None:
        """Drop all segments, also those that are being loaded.

        Readers that wait for such a load still get its result; it is not kept.
        """
        self._segments.clear()
        self._loaded.clear()
        self._keys.clear()

    def _note(self, last_us: int, future: asyncio.Future[Loaded | None]) -> None:
        """Count the memory of a segment; one that could not be loaded is asked for again."""
        if self._segments.get(last_us) is not future:  # dropped, or loaded again
            return
        loaded = None if future.cancelled() or future.exception() is not None else future.result()
        if loaded is None:
            self.drop(last_us)
            return
        self._loaded[last_us] = loaded
        insort(self._keys, last_us)
        # Drop the least recently used ones until the others fit, or one is left.
        while len(self._loaded) > 1 and self._memory() > self._bytes_max:
            self.drop(next(key for key in self._segments if key in self._loaded))

    def _memory(self) -> int:
        """Return the memory of all loaded segments in bytes; there are few, so it is summed each time."""
        return sum(loaded.memory for loaded in self._loaded.values())
