"""Blocks that were read from the file, shared between readers of the same range."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from jetstream.events import Batch
from jetstream.log.stored import Part

CACHE_BYTES: Final = 64 * 1024 * 1024
# What CPython takes for a time and seven values, but for the bodies; frames take as much again as the bodies.
EVENT_BYTES: Final = 600
BODY_RATIO: Final = 2

Load = Callable[[Part], Awaitable[Batch | None]]


class BlockCache:
    """The parts read last, by an estimate of the memory they take; each is loaded once, however many ask."""

    def __init__(self, load: Load, bytes_max: int = CACHE_BYTES) -> None:
        self._load = load
        self._bytes_max = bytes_max
        self._bytes: dict[Part, int] = {}
        self._parts: dict[Part, asyncio.Future[Batch | None]] = {}  # the last used is last

    async def get(self, part: Part) -> Batch | None:
        """Return a part's events; None when the part is no longer stored."""
        future = self._parts.pop(part, None)
        if future is None:
            future = asyncio.ensure_future(self._load(part))
            future.add_done_callback(partial(self._loaded, part))
        self._parts[part] = future
        return await asyncio.shield(future)

    def drop(self, last_us: int) -> None:
        """Forget a block that was changed; who reads it at this moment may still see it as it was."""
        for part in (Part(last_us, accounts_only=True), Part(last_us, accounts_only=False)):
            self._remove(part)

    def _loaded(self, part: Part, future: asyncio.Future[Batch | None]) -> None:
        if self._parts.get(part) is not future:
            return
        if future.cancelled() or future.exception() is not None or future.result() is None:
            self._remove(part)
            return
        self._bytes[part] = _weight(future.result())
        while sum(self._bytes.values()) > self._bytes_max and len(self._bytes) > 1:
            self._remove(next(part for part in self._parts if part in self._bytes))

    def _remove(self, part: Part) -> None:
        self._parts.pop(part, None)
        self._bytes.pop(part, None)


def _weight(batch: Batch | None) -> int:
    assert batch is not None
    return sum(map(len, batch.bodies)) * BODY_RATIO + len(batch) * EVENT_BYTES
